"""Talk with Voxtral from a terminal: one audio pass a turn, replies spoken aloud."""

__version__ = "0.1.0"
