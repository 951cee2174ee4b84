"""The code of a saved model in one file of its folder, for programs without exsel."""

from exsel.standalone.exporting import export_standalone

__all__ = ["export_standalone"]
