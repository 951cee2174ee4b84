from __future__ import annotations

from pathlib import Path

import pytest

from exsel.data import PackedData
from training.small_runs import small_data, write_corpus, write_model


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def data(corpus: Path) -> PackedData:
    return small_data(corpus)


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "config.json")
