"""What the commands have in common: flags, help pages, completion and the log."""
