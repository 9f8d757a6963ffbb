"""Servers of tools that speak the Model Context Protocol, through the package `mcp`."""
