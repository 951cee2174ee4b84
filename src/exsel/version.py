"""The version: the package's metadata, ``exsel --version`` and every record read it here."""

__version__ = "0.1.0"
