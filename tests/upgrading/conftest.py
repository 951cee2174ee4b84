from __future__ import annotations

from pathlib import Path

import pytest

from upgrading.upgraded_models import character_tokenizer


@pytest.fixture
def tokenizer_files(tmp_path: Path) -> Path:
    """A folder with a tokenizer of single characters."""
    folder = tmp_path / "tokenizer"
    character_tokenizer().save_pretrained(folder)
    return folder
