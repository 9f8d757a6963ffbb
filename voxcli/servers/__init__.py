"""Speaks to servers: how one is reached, one request on a thread, and what its errors mean."""
