from __future__ import annotations

from data.conftest import bpe, bpe_file

__all__ = ["bpe", "bpe_file"]
