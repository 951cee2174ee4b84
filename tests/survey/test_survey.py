from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import __version__ as transformers_version

from evidence.survey.layer_checks import VerificationError
from evidence.survey.records import survey
from evidence.survey.verification import verify
from exsel.nn.mechanism_pass import MechanismPass

#: One or two of every layout, family and peculiarity: caches, gates, norms, sinks, fused and written-out attention.
TYPES = {
    "verified": (
        "llama gpt2 gpt_neox bloom falcon mpt gptj codegen phi3 opt gemma2 gemma3_text gpt_oss qwen3 "
        "qwen3_next cohere2 mixtral zamba inkling_text bert albert deberta-v2 mpnet xlm electra t5 bart "
        "pegasus vit dinov2 sam siglip qwen2_5_vl llava whisper wav2vec2 clip"
    ),
    "partly": "swinv2 led gemma3n_text",
    "refused": "deepseek_v3 reformer diffllama neomme xlnet",
    "no attention": "mamba resnet",
}


CASES = [(name, outcome) for outcome, names in TYPES.items() for name in names.split()]


@pytest.mark.parametrize(("model_type", "outcome"), CASES)
def test_types_of_every_kind(model_type: str, outcome: str) -> None:
    (record,) = survey([model_type])
    assert record.outcome == outcome, record.reasons
    assert bool(record.called) == (outcome in ("verified", "partly"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_type_is_wrong_and_none_is_lost() -> None:
    """Against the committed survey, where it is of the installed version; and none wrong whatever the version."""
    from evidence.survey.zoo import model_types

    records = {record.model_type: record for record in survey(model_types())}
    wrong = {name: record.reasons for name, record in records.items() if record.outcome == "wrong"}
    assert not wrong
    results = Path(__file__).parents[2] / "evidence" / "benchmarks" / "results"
    committed = results / f"support_transformers{transformers_version}.json"
    if committed.exists():
        expected = {record["model_type"]: record["outcome"] for record in json.loads(committed.read_text())["records"]}
        assert {name: record.outcome for name, record in records.items()} == expected


# A wrong upgrade must not pass: what the verification would see of mistakes that people make.
MISTAKES = {
    "projected off the scaled value's neighbour": ("own_value", lambda value: value.roll(1, dims=-2)),
    "projected off another head's value": ("own_value", lambda value: value.roll(1, dims=1)),
    "values scaled by no temperature": ("value", lambda value: value),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "bert"])
def test_a_mistake_is_seen(model_type: str, mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from evidence.survey.zoo import build_small_model

    what, change = MISTAKES[mistake]
    if what == "own_value":
        before = MechanismPass.before

        def wrong_before(self, query, key, value, *args):  # type: ignore[no-untyped-def]
            states = before(self, query, key, value, *args)
            self.own_value = change(self.own_value)
            return states

        monkeypatch.setattr(MechanismPass, "before", wrong_before)
    else:
        scaled = MechanismPass.scaled
        monkeypatch.setattr(
            MechanismPass, "scaled", lambda self, kind, states: states if kind == what else scaled(self, kind, states)
        )
    specimen = build_small_model(model_type)
    with pytest.raises(VerificationError):
        verify(specimen.model, specimen.inputs, can_generate=specimen.can_generate)


def test_a_projection_behind_an_output_gate_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Qwen3-Next gates between its attention and its output projection; a gate does not commute with a projection."""
    from evidence.survey.zoo import build_small_model

    specimen = build_small_model("qwen3_next")
    layers = [module for module in specimen.model.modules() if type(module).__name__ == "Qwen3NextAttention"]
    attend = MechanismPass.attend

    def without_projection(self, function, module, *arguments, **kwargs):  # type: ignore[no-untyped-def]
        exclusive, self.exclusive = self.exclusive, None
        result = attend(self, function, module, *arguments, **kwargs)
        self.exclusive = exclusive
        if exclusive is not None:
            own_value = self.own_value if self.own_value is not None else arguments[2]
            module._pending = (exclusive, own_value)
        return result

    def behind_the_gate(module, arguments):  # type: ignore[no-untyped-def]
        (y,) = arguments
        layer = next(layer for layer in layers if layer.o_proj is module)
        if not hasattr(layer, "_pending"):
            return arguments
        exclusive, own_value = layer.__dict__.pop("_pending")
        heads = y.unflatten(-1, (-1, own_value.shape[-1])).transpose(1, 2)
        return (exclusive(heads, own_value).transpose(1, 2).flatten(-2),)

    monkeypatch.setattr(MechanismPass, "attend", without_projection)
    for layer in layers:
        layer.o_proj.register_forward_pre_hook(behind_the_gate)
    with (
        pytest.raises(VerificationError, match=r"own tokens' values is left|beside its own value"),
        torch.random.fork_rng(devices=[]),
    ):
        verify(specimen.model, specimen.inputs, can_generate=specimen.can_generate)
