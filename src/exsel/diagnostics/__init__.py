"""What attention does inside a trained model."""

from exsel.diagnostics.similarity import similarity_bias

__all__ = ["similarity_bias"]
