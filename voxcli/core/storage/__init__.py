"""Sessions on disk: the database, searching, and export as Markdown, JSON and HTML."""
