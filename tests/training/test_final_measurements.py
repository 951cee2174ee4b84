from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config

from exsel.data import PackedData
from exsel.training.final_measurements import measure_trained
from exsel.training.processes import Processes
from exsel.training.run_model import build_model
from training.small_runs import SEQ_LEN, small_data, small_settings
from training.test_own_model import Own


class Positioned(Own):
    def __init__(self, vocab_size: int, seq_len: int) -> None:
        super().__init__(vocab_size)
        self.places = nn.Embedding(seq_len, 16)

    def logits(self, ids: Tensor) -> Tensor:
        place: Tensor = self.places(torch.arange(ids.shape[1], device=ids.device)).mean()
        return super().logits(ids) + place


def measured(model: Any, data: PackedData, **changes: Any) -> dict[str, Any]:
    settings = small_settings(model, **changes)
    return measure_trained(build_model(settings, data), settings, data, Processes(), validation=None)


def test_the_loss_goes_on_beyond_the_trained_length(model_file: Path, data: PackedData) -> None:
    found = measured(model_file, data, variant="exclusive+selective")
    assert found["longer"]["length"] == 4 * SEQ_LEN
    assert found["longer"]["reason"] is None
    assert [bucket["last"] for bucket in found["longer"]["by_position"]] == [1, 3, 7, 15, 31, 63, 127]
    assert [bucket["last"] for bucket in found["by_position"]] == [1, 3, 7, 15, 31]
    assert [set(sample) for sample in found["samples"]] == [{"prompt", "continuation", "text"}] * 3
    assert found["similarity"] is not None


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (GPT2Config(n_embd=32, n_layer=1, n_head=2).to_dict(), f"the model has positions for {SEQ_LEN} tokens"),
        (Positioned, "it cannot be called with longer sequences: IndexError: index out of range"),
    ],
    ids=["a table of positions", "one's own table"],
)
def test_a_model_that_cannot_take_longer_sequences_says_so(model: Any, reason: str, data: PackedData) -> None:
    longer = measured(model, data)["longer"]
    assert (longer["length"], longer["by_position"]) == (None, [])
    assert longer["reason"].startswith(reason)


def test_what_else_stands_against_longer_sequences(model_file: Path, corpus: Path, data: PackedData) -> None:
    isolated = small_data(corpus, pack="isolate")
    assert "documents are kept apart" in measured(model_file, isolated, pack="isolate")["longer"]["reason"]
    short = small_data(corpus, seq_len=400)
    assert "too little validation text" in measured(model_file, short, seq_len=400, batch_size=1)["longer"]["reason"]
    assert measured(Own, data)["longer"]["reason"] is None
