from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import exsel
from exsel.config import ExclusiveConfig, SelectiveConfig
from exsel.data import PackedData, collate, load_data
from exsel.errors import ExselError
from exsel.evaluation import evaluate_loss
from exsel.nn.mechanisms import Mechanisms
from exsel.training.mechanism_parameters import mechanism_names, mechanism_parameters
from exsel.training.run_model import build_model, sketch_model
from exsel.training.settings import Settings
from exsel.variants import VARIANTS
from training.small_runs import Watcher, interrupted, metrics, small_data, small_settings, train, without_times
from training.small_sources import write_source

KINDS = ("exsel", "llama", "gpt2")
ADDING = [variant for variant in VARIANTS if variant != "baseline"]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    return {kind: write_source(folder / kind, kind) for kind in (*KINDS, "bert", "bloom", "t5")}


def from_source(source: Path, **changes: Any) -> Settings:
    values = {"source": str(source), "tokenizer": str(source), "learning_rate": 1e-3, "save_every": 2}
    return small_settings(source, **{**values, "tokens": 4 * 4 * 32, "evaluations": 2, "warmup_steps": 1, **changes})


def logits(model: Any, data: PackedData) -> Tensor:
    batch = collate([data.validation[index] for index in range(2)])
    with torch.no_grad():
        return model.eval()(input_ids=batch["input_ids"]).logits


def plain(source: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(source)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_begins_with_the_models_weights(
    sources: dict[str, Path], data: PackedData, kind: str, variant: str
) -> None:
    original = plain(sources[kind])
    model = build_model(from_source(sources[kind], variant=variant), data)
    weights = model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in original.state_dict().items())
    new = mechanism_parameters(model)
    assert bool(new) == ("selective" in variant)
    assert weights.keys() - original.state_dict().keys() == mechanism_names(model) & weights.keys()
    assert isinstance(model.config, type(original.config))
    assert type(model) is type(original)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_put_in_changes_the_model_as_far_as_it_should(
    sources: dict[str, Path], data: PackedData, kind: str
) -> None:
    before = logits(plain(sources[kind]), data)

    def difference(**changes: Any) -> float:
        model = build_model(from_source(sources[kind], **changes), data)
        return float((logits(model, data) - before).abs().max() / before.abs().max())

    assert difference(variant="baseline") == 0
    # w = 0, γ = 0, no term for the position: the model itself.
    itself = SelectiveConfig(position=False, value_position=False)
    learned = ExclusiveConfig(strength="learned")
    assert difference(variant="exclusive+selective", exclusive=learned, selective=itself) < 1e-5
    assert 1e-6 < difference(variant="selective") < 0.02
    assert difference(variant="exclusive") > 0.02
    assert difference(variant="exclusive", exclusive=ExclusiveConfig(strength=0.0)) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_the_saved_model_is_what_was_trained(
    sources: dict[str, Path], data: PackedData, tmp_path: Path, kind: str
) -> None:
    settings = from_source(sources[kind], variant="exclusive+selective")
    result = train(settings, data, tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "exsel-manifest.json",
        "settings.json",
        "metrics.jsonl",
        "result.json",
        "model",
    }
    own, auto = exsel.from_pretrained(tmp_path / "run" / "model"), plain(tmp_path / "run" / "model")
    assert torch.equal(logits(own, data), logits(auto, data))
    assert len(mechanism_parameters(own)) == 2 * 2 * 2  # layers, query and value, w and a
    loss = evaluate_loss(auto, data.validation, batch_size=4, device=torch.device("cpu")).loss
    assert loss == pytest.approx(result["loss"], abs=1e-6)
    assert result["trained_parameters"] == result["parameters"] == sum(p.numel() for p in own.parameters())
    assert (result["similarity"] is None) == (kind != "exsel")
    assert {record["kind"] for record in result["temperatures"]} in (set(), {"query", "value"})
    assert metrics(tmp_path / "run")[-1]["loss"] < metrics(tmp_path / "run")[0]["loss"]
    # And it is a model to go on with, as it is.
    again = train(from_source(tmp_path / "run" / "model", variant="exclusive+selective"), data, tmp_path / "again")
    assert again["loss"] < result["loss"]


@pytest.mark.parametrize("kind", KINDS)
def test_new_trains_the_new_parameters_alone(
    sources: dict[str, Path], data: PackedData, tmp_path: Path, kind: str
) -> None:
    sizes: list[int] = []

    def look() -> None:
        content = json.loads((tmp_path / "run" / "checkpoint-2" / "optimizer.json").read_text())
        sizes.extend(len(group["params"]) for group in content["param_groups"])
        state = load_file(tmp_path / "run" / "checkpoint-2" / "optimizer.safetensors")
        sizes.append(len({name.split(".")[0] for name in state}))

    settings = from_source(
        sources[kind],
        variant="exclusive+selective",
        train="new",
        exclusive=ExclusiveConfig(strength="learned"),
        selective=SelectiveConfig(token="mlp"),
        token_learning_rate=1e-2,
        position_learning_rate=1e-2,
    )
    result = train(settings, data, tmp_path / "run", progress=Watcher(after=3, action=look))
    before = build_model(settings, data).state_dict()
    model = exsel.from_pretrained(tmp_path / "run" / "model")
    new = mechanism_parameters(model)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in new), name
    # Layers times: W' of queries and values; their w, and γ; their a; all of them.
    assert sizes == [2 * 2, 2 * 3, 2 * 2, 2 * 7]
    assert result["trained_parameters"] == result["new_parameters"] == sum(value.numel() for value in new.values())
    assert result["new_parameters"] < result["parameters"]


@pytest.mark.parametrize("train_what", ["all", "new"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_goes_on_to_the_same_weights(  # GPT-2 has dropout: the random generators too
    sources: dict[str, Path], data: PackedData, tmp_path: Path, kind: str, train_what: str
) -> None:
    settings = from_source(
        sources[kind], variant="exclusive+selective", train=train_what, selective=SelectiveConfig(token="mlp")
    )
    whole = train(settings, data, tmp_path / "whole")
    stop = Watcher(after=3, action=lambda: os.kill(os.getpid(), signal.SIGTERM))
    interrupted(settings, data, tmp_path / "run", stop)
    resumed = train(settings, data, tmp_path / "run", resume=True)
    assert resumed["loss"] == whole["loss"]
    assert without_times(tmp_path / "run") == without_times(tmp_path / "whole")
    weights = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "run")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def drop(path: Path, name: str) -> None:
    weights = load_file(path)
    del weights[name]
    save_file(weights, path, metadata={"format": "pt"})


def test_isolated_documents(sources: dict[str, Path], corpus: Path, tmp_path: Path) -> None:
    isolated = small_data(corpus, pack="isolate")
    for kind in KINDS:
        settings = from_source(sources[kind], variant="exclusive+selective", pack="isolate")
        assert train(settings, isolated, tmp_path / kind)["loss"] < 10
    with pytest.raises(ExselError, match=r"BloomForCausalLM does not keep documents apart .*: use --pack concat"):
        build_model(from_source(sources["bloom"], variant="exclusive", pack="isolate"), isolated)
    assert train(from_source(sources["bloom"], variant="exclusive"), small_data(corpus), tmp_path / "bloom")


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_positions_that_go_on_across_documents_are_noticed(
    sources: dict[str, Path], corpus: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    isolated = small_data(corpus, pack="isolate")
    settings = from_source(sources[kind], variant="selective", pack="isolate")
    model = build_model(settings, isolated)
    # What the check did to σ(a) is undone.
    starts = [value for name, value in mechanism_parameters(model).items() if name.endswith("position_logit")]
    assert torch.cat(starts).sigmoid().tolist() == pytest.approx(
        [SelectiveConfig().position_init] * sum(map(len, starts))
    )
    begin = Mechanisms.begin
    # Neither positions nor a mask: a layer then counts on from the first token.
    monkeypatch.setattr(Mechanisms, "begin", lambda self, *_, cache=None, **__: begin(self, cache=cache))
    with pytest.raises(ExselError, match="does not keep documents apart"):
        build_model(settings, isolated)


def test_token_frequencies_are_counted_for_a_model_of_our_own(
    sources: dict[str, Path], data: PackedData, tmp_path: Path
) -> None:
    frequency = SelectiveConfig(token="frequency")
    settings = from_source(sources["exsel"], variant="selective", selective=frequency)
    train(settings, data, tmp_path / "run")
    counted = exsel.from_pretrained(tmp_path / "run" / "model").model.token_log_frequency
    assert counted[ord(" ") + 3] > counted[ord("!") + 3]
    # They are the model's, whatever it is trained on later.
    other = load_data("passkey:count=40", seq_len=128)
    later = build_model(from_source(tmp_path / "run" / "model", variant="selective", seq_len=64), other)
    assert torch.equal(later.model.token_log_frequency, counted)
    with pytest.raises(ExselError, match="token='frequency' needs each token's frequency"):
        sketch_model(from_source(sources["llama"], variant="selective", selective=frequency), 259)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("llama", {"seq_len": 65, "tokens": 1000}, "--seq-len 65 is more than the 64 tokens of --from"),
        ("gpt2", {"seq_len": 65, "tokens": 1000}, "--seq-len 65 is more than the 64 tokens of --from"),
        ("exsel", {"seq_len": 65, "tokens": 1000}, "--seq-len 65 is more than the 64 tokens of --from"),
        ("t5", {}, "a t5 model is no causal language model"),
        ("llama", {"exclusive": ExclusiveConfig(layers="last:3")}, "cannot be exclusive: layers='last:3'"),
        ("exsel", {"exclusive": ExclusiveConfig(layers="last:3")}, "cannot be exclusive: layers='last:3'"),
        ("llama", {"train": "new"}, "--train new: nothing would train, since --variant exclusive"),
        ("exsel", {"train": "new"}, "--train new: nothing would train, since --variant exclusive"),
        ("gpt2", {"train": "new", "variant": "baseline"}, "nothing would train, since --variant baseline"),
    ],
)
def test_what_cannot_be(sources: dict[str, Path], kind: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ExselError) as caught:
        sketch_model(from_source(sources[kind], **{"variant": "exclusive", **changes}), 259)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variant", ["baseline", "selective", "exclusive+selective"])
def test_a_model_that_is_another_variant_already(
    sources: dict[str, Path], data: PackedData, tmp_path: Path, kind: str, variant: str
) -> None:
    build_model(from_source(sources[kind], variant="exclusive"), data).save_pretrained(tmp_path)
    sketch_model(from_source(tmp_path, variant="exclusive"), 259)
    with pytest.raises(ExselError) as caught:
        sketch_model(from_source(tmp_path, variant=variant), 259)
    assert f"is exclusive already, and cannot become {variant}: leave out --variant" in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_are_missing_or_damaged(
    sources: dict[str, Path], data: PackedData, tmp_path: Path, kind: str
) -> None:
    source = write_source(tmp_path / "source", kind)
    path = source / "model.safetensors"
    name = next(name for name in load_file(path) if "1" in name and name.endswith("weight"))
    drop(path, name)
    settings = from_source(source, variant="exclusive")
    with pytest.raises(ExselError, match=f"it lacks 1 weights, such as .*{name[-12:]}"):
        build_model(settings, data)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ExselError, match="cannot be loaded: "):
        build_model(settings, data)
    path.unlink()
    with pytest.raises(ExselError, match="cannot be loaded: "):
        build_model(settings, data)


def test_weights_that_are_no_numbers(tmp_path: Path, data: PackedData) -> None:
    source = write_source(tmp_path, "gpt2")
    model = plain(source)
    model.transformer.ln_f.weight.data.fill_(float("nan"))
    model.save_pretrained(source)
    with pytest.raises(ExselError, match="logits that are no numbers"):
        build_model(from_source(source), data)


def test_an_encoder_is_refused(sources: dict[str, Path], data: PackedData) -> None:
    with pytest.raises(ExselError, match="in this BertLMHeadModel tokens see those after them"):
        build_model(from_source(sources["bert"], variant="exclusive"), data)


def test_a_vocabulary_smaller_than_the_tokenizers(tmp_path: Path, data: PackedData) -> None:
    source = write_source(tmp_path, "llama")
    model = plain(source)
    model.resize_token_embeddings(200)
    model.save_pretrained(source)
    with pytest.raises(ExselError, match="its tokenizer has ids up to 258 and the model only 200 embeddings"):
        build_model(from_source(source), data)


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    source = write_source(tmp_path, "llama")
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(ExselError, match=r"its weights are quantised: .*exsel\.peft"):
        sketch_model(from_source(source), 259)


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"model_type": "none"}'])
def test_a_folder_that_holds_no_model(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ExselError, match=f"--from {tmp_path} cannot be loaded: "):
        sketch_model(from_source(tmp_path), 259)


def test_a_name_that_the_hub_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("exsel.hub_access.reason_unavailable", lambda name, kind: asked.append(name) or "no connection")
    with pytest.raises(ExselError, match="--from nobody/nothing: neither a folder"):
        sketch_model(from_source(Path("nobody/nothing")), 259)
    assert asked == ["nobody/nothing"]


def test_half_precision_weights_are_trained_in_single(
    sources: dict[str, Path], data: PackedData, tmp_path: Path
) -> None:
    source = write_source(tmp_path, "llama")
    plain(source).to(torch.bfloat16).save_pretrained(source)
    model = build_model(from_source(source, variant="selective"), data)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_new_parameters_need_a_model_that_exists(model_file: Path) -> None:
    with pytest.raises(ExselError, match="--train new belongs to --from"):
        small_settings(model_file, train="new")
    with pytest.raises(ExselError, match="--train must be all or new, got 'some'"):
        small_settings(model_file, train="some")
