"""Tools that a model may call: commands, MCP servers and those built in."""
