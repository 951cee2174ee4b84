"""Exclusive and selective attention for PyTorch Transformers."""

__version__ = "0.1.0"
