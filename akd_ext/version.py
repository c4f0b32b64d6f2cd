"""The version, where nothing else is imported: setuptools reads it from the text, `op.library` compares it."""

__version__ = "0.1.0"
