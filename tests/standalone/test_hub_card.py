"""What ``push_to_hub`` uploads has exsel's model card."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.errors import EntryNotFoundError

import exsel
from models.small_models import small_model
from upgrading.upgraded_models import llama


@pytest.mark.parametrize("build", [llama, lambda: small_model(exclusive=0.5)], ids=["upgraded", "own"])
def test_the_hub_keeps_exsels_card(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded: dict[str, str] = {}

    def no_card(*args: Any, **kwargs: Any) -> Any:
        raise EntryNotFoundError("there is none yet")

    def create_commit(operations: Any, **kwargs: Any) -> None:
        for operation in operations:
            if operation.path_in_repo.endswith((".md", ".json")):
                uploaded[operation.path_in_repo] = Path(operation.path_or_fileobj).read_text(encoding="utf-8")

    hub = SimpleNamespace(
        create_repo=lambda *args, **kwargs: SimpleNamespace(repo_id="somebody/model"), create_commit=create_commit
    )
    monkeypatch.setattr(ModelCard, "load", no_card)
    monkeypatch.setattr("transformers.utils.hub.hf_api", lambda: hub)
    build().push_to_hub("somebody/model")
    card = uploaded["README.md"]
    assert f"exsel {exsel.__version__} has put in:" in card
    assert "exclusive attention" in card
    assert "exsel.from_pretrained(" in card
    assert "automatically generated" not in card
    assert "exsel" in uploaded["config.json"]
