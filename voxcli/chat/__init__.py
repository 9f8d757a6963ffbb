"""The live conversation: its loop, listener, responses, audio devices, keyboard and views."""
