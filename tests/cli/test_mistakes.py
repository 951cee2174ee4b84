"""Bad input: one or two clear lines, exit code 2, and nothing half-written."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cli.conftest import Outcome, run_main
from exsel.files import locked
from training.small_runs import write_corpus, write_model


def assert_refused(outcome: Outcome, *fragments: str) -> None:
    assert outcome.code == 2
    assert "Traceback" not in outcome.err + outcome.out
    assert "usage:" not in outcome.err
    assert outcome.err.startswith("exsel: ")
    assert 1 <= len(outcome.err.splitlines()) <= 2
    for fragment in fragments:
        assert fragment in outcome.err


@pytest.mark.parametrize("command", ["compare", "train"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seq-len", "0"], "--seq-len must be at least 1"),
        (["--seq-len", "1"], "at least 2 tokens"),
        (["--seq-len", "3000", "--tokens", "100k"], "a sequence of 3000 tokens is longer than the"),
        (["--batch-size", "-3"], "--batch-size must be at least 1, got -3"),
        (["--tokens", "-5"], "--tokens must be at least 1"),
        (["--tokens", "5"], "--tokens 5 is less than one step"),
        (["--accumulation", "3"], "--accumulation 3 must divide --batch-size 4"),
        (["--warmup-steps", "100"], "--warmup-steps must lie between 0 and the 12 steps, got 100"),
        (["--warmup-steps", "-1"], "--warmup-steps must be at least 0"),
        (["--save-every", "-1"], "--save-every"),
        (["--weight-decay", "-1"], "--weight-decay"),
        (["--token-lr", "0"], "--token-lr must be a positive number"),
        (["--lr", "-0.5"], "--lr must be a positive number"),
        (["--lr", "nan"], "--lr must be a positive number"),
        (["--selective", "foo=1"], "--selective: SelectiveConfig has no field 'foo'"),
        (["--selective", "token"], "--selective takes true, false or NAME=VALUE, each name once; got 'token'"),
        (["--selective", "token=magic"], "--selective: token must be one of"),
        (["--exclusive", "strength=strong"], "--exclusive: strength must be"),
        (["--exclusive", "layers=last:9"], "--model"),
        (["--model", "huge"], "neither a size (tiny, 25m, 124m"),
        (["--device", "gpu"], "--device gpu: choose auto, cpu, cuda or mps"),
        (["--report-to", "paper"], "--report-to paper: no such logger"),
        (["--data", "/no/such/file.txt"], "no such file or folder: /no/such/file.txt"),
        (["--tokenizer", "/no/such/tokenizer.json"], "no such tokenizer file"),
        (["--resume"], "holds nothing to resume"),
        (["--resume", "--overwrite"], "give one of them"),
    ],
)
def test_flags(flags: list[str], tmp_path: Path, command: str, arguments: list[str], message: str) -> None:
    # Of the mechanisms' flags a plain run has no use.
    variant = [] if command == "compare" else ["--variant", "exclusive+selective"]
    outcome = run_main(command, *flags, *variant, *arguments, "--out", tmp_path / "deep" / "out")
    assert_refused(outcome, message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--lr", "abc"], "argument --lr: not a number: 'abc'"),
        (["train", "--seed", "x"], "argument --seed: not a whole number: 'x'"),
        (["train", "--tokens", "many"], "argument --tokens: not a number: 'many' (examples: 819200, 500k, 2.5b)"),
        (["train", "--pack", "loosely"], "argument --pack: invalid choice: 'loosely'"),
        (["train", "--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
        (["compare", "--lr", "1e-3,abc"], "argument --lr: not a number: 'abc'"),
        (["compare", "--lr", "1e-3,"], "argument --lr: not a number: ''"),
        (["compare", "--seeds", "x"], "argument --seeds: not a whole number: 'x'"),
        (["compare", "--seeds", "0.5"], "argument --seeds: not a whole number: '0.5'"),
        (["generate", "somewhere"], "required: --prompt"),
        (["eval"], "required: MODEL"),
        (["train", "--momentum", "1"], "unrecognized arguments: --momentum 1"),
        (["tune"], "invalid choice: 'tune'"),
    ],
)
def test_flags_that_cannot_be_read(arguments: list[str], message: str) -> None:
    assert_refused(run_main(*arguments), message, "--help")


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--model", ""],
        ["train", "--tokenizer="],
        ["train", "--out", ""],
        ["train", "--data", "a.txt", ""],
        ["compare", "--variants", ""],
        ["eval", "somewhere", "--json", ""],
        ["diagnose", "somewhere", "--against", ""],
        ["support", "somewhere", "--json", ""],
        ["bench", "--contenders", ""],
        ["generate", "somewhere", "--prompt", ""],
    ],
)
def test_an_empty_value_means_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    flag = arguments[-1].rstrip("=") or next(word for word in reversed(arguments) if word.startswith("--"))
    assert_refused(run_main(*arguments), f"{flag} is empty: give it a value, or leave it out")
    assert list(tmp_path.iterdir()) == []


def test_a_long_value_is_not_repeated_whole(flags: list[str], tmp_path: Path) -> None:
    for value in ("9" * 5000, "x" * 5000, "x\n" * 5000):
        outcome = run_main("train", *flags, "--seq-len", value, "--out", tmp_path / "out")
        assert_refused(outcome, "--seq-len")
        assert len(outcome.err) < 1000
        outcome = run_main("train", *flags, "--model", value, "--out", tmp_path / "out")
        assert outcome.code == 2
        assert len(outcome.err) < 1500


def test_more_memory_than_there_is(flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried to"),
        MemoryError(),
    ):

        def fail(*_: Any, error: Exception = error, **__: Any) -> None:
            raise error

        monkeypatch.setattr("exsel.training.run_model.load_data", fail)
        outcome = run_main("train", *flags, "--out", tmp_path / "out")
        assert_refused(outcome, "this does not fit into the memory")


@pytest.mark.parametrize("command", [["train"], ["compare"], ["support", "somewhere"]])
def test_an_extra_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, command: list[str]) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "transformers" else find_spec(name))
    assert_refused(run_main(*command), "transformers is not installed: pip install 'exsel[")


@pytest.mark.parametrize(
    "error",
    [
        ImportError("cannot import name 'sharpen' from 'exsel.functional'", name="exsel.functional"),
        ModuleNotFoundError("No module named 'exsel.sharpening'", name="exsel.sharpening"),
        ImportError("cannot import name 'tokenise' from 'transformers'", name="transformers"),
    ],
)
def test_a_broken_import_is_a_traceback(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: ImportError
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("exsel.training.run_model.load_data", fail)
    with pytest.raises(ImportError, match=str(error)):
        run_main("train", *flags, "--out", tmp_path / "out")


@pytest.mark.parametrize("target", ["/no/such/folder/file.json", "/", "/dev/null", "x" * 250])
@pytest.mark.parametrize("command", [["eval", "somewhere"], ["support", "somewhere"]])
def test_where_the_numbers_cannot_go_is_said_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], target: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(run_main(*command, "--json", target), f"--json {target} cannot be written: name a file in a folder")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--variant", "sparse"], "no variant is called 'sparse': choose from baseline, exclusive, selective"),
        (["compare", "--variants", "baseline,sparse"], "no variant is called 'sparse'"),
        (["compare", "--variants", ","], "--variants names nothing to run"),
        (["compare", "--variants", "baseline,baseline"], "--variants names the same one twice"),
        (["compare", "--seeds", "1,1"], "--seeds names the same one twice"),
        (["compare", "--seeds", "-1"], "--seeds must lie between 0 and 4294967295, got -1"),
        (["train", "--seed", "-1"], "--seed must lie between"),
        (["compare", "--lr", "1e-3,1e-3"], "--lr names the same one twice"),
    ],
)
def test_what_to_run(flags: list[str], tmp_path: Path, arguments: list[str], message: str) -> None:
    assert_refused(run_main(*arguments, *flags, "--out", tmp_path / "out"), message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 3, "num_key_value_heads": 2}, "must be a multiple of num_key_value_heads=2"),
        ({"hidden_size": 30, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": None}, "hidden_size=30"),
        ({"model_type": "gpt9"}, "transformers knows no model of type 'gpt9'"),
        ({"model_type": "bert"}, "in this BertLMHeadModel tokens see those after them"),
        ({"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}}, "cannot be built"),
        ({"num_layers": 3}, "no field 'num_layers'"),
        ({"num_attention_heads": 0}, "num_attention_heads must be at least 1, got 0"),
        ({"hidden_size": -8}, "hidden_size must be at least 1, got -8"),
    ],
)
def test_models(flags: list[str], tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write_model(tmp_path / "config.json", **changes)
    assert_refused(run_main("train", *flags, "--model", path, "--out", tmp_path / "out"), message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "empty.txt is empty"),
        ("latin.txt", "café".encode("latin1") * 500, "latin.txt is not UTF-8 text: byte 3"),
        ("rows.jsonl", b'{"body": "x"}\n' * 50, "has no field 'text': choose one of body"),
        ("rows.jsonl", b"{\n" * 50, "line 1 is not JSON"),
        ("rows.jsonl", b'{"text": ' + b"[" * 100_000, "line 1 is not JSON"),
        ("rows.jsonl", b'{"text": ' + b"1" * 5000 + b"}", "line 1 is not JSON"),
        ("rows.jsonl", b'{"text": ""}\n' * 50, "every document is empty"),
        ("rows.parquet", b"PAR1 not really", "is not a readable Parquet file"),
        ("rows.csv", b"a,b\n", "files of type .csv are not supported"),
        ("short.txt", b"too short", "longer than the"),
    ],
)
def test_data(flags: list[str], tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert_refused(run_main("compare", *flags, "--data", tmp_path / name, "--out", tmp_path / "out"), message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("device", ["cuda", "mps"])
@pytest.mark.parametrize("command", ["compare", "train", "generate", "eval"])
def test_an_absent_device(
    flags: list[str], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, command: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    arguments = {
        "generate": [trained, "--prompt", "x"],
        "eval": [trained],
    }.get(command, [*flags, "--out", tmp_path / "out"])
    outcome = run_main(command, *arguments, "--device", device)
    assert_refused(outcome, f"--device {device}: ", "finds no such device here; use --device cpu")
    assert list(tmp_path.iterdir()) == []


def test_a_compiler_that_is_not_there(flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("machine", "training.settings"):
        monkeypatch.setattr(f"exsel.{module}.can_compile", lambda: False)
    monkeypatch.setattr("exsel.training.settings.COMPILED_STEPS", 12)
    assert_refused(run_main("train", *flags, "--compile", "--out", tmp_path / "out"), "--compile needs a C++ compiler")
    assert list(tmp_path.iterdir()) == []
    without = [flag for flag in flags if flag != "--no-compile"]
    outcome = run_main("train", *without, "--lr", "1e-2", "--out", tmp_path / "out")
    assert outcome.code == 0
    assert outcome.err == (
        "exsel: no C++ compiler (g++ or clang++) found: training runs eager, without torch.compile\n"
    )
    assert "eager" in outcome.out


def test_an_output_that_is_a_file(flags: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in ("file", "file/deeper"):
        assert_refused(run_main("train", *flags, "--out", tmp_path / out), "is a file")
    assert (tmp_path / "file").read_text() == "mine"


def test_an_output_without_permission(flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    outcome = run_main("train", *flags, "--out", tmp_path / "deep" / "out")
    assert_refused(outcome, "cannot be written: no permission to write into", str(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_an_output_that_is_really_read_only(flags: list[str], tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    assert_refused(run_main("train", *flags, "--out", tmp_path / "out"), "no permission")


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_an_output_that_is_not_empty(flags: list[str], trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    before = contents(folder)
    for command in ("train", "compare"):
        outcome = run_main(command, *flags, "--out", folder)
        assert_refused(outcome, "is not empty: add --resume to go on with it or --overwrite to replace it")
    assert_refused(run_main("compare", *flags, "--resume", "--out", folder), "was written by `exsel train`")
    assert_refused(run_main("train", *flags, "--resume", "--out", folder), "other settings", "variant")
    assert contents(folder) == before


@pytest.mark.parametrize("flag", [[], ["--overwrite"], ["--resume"]])
@pytest.mark.parametrize(
    "files", [{"thesis.tex": ""}, {"settings.json": "{}"}, {"results.json": "{}", "report.html": "mine"}]
)
def test_a_foreign_folder_is_left_alone(
    flags: list[str], tmp_path: Path, flag: list[str], files: dict[str, str]
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    before = contents(folder)
    for command in ("train", "compare"):
        assert_refused(run_main(command, *flags, *flag, "--out", folder), "files that exsel did not write")
    assert contents(folder) == before


def test_overwrite_with_another_mistake_keeps_what_is_there(flags: list[str], trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    before = contents(folder)
    for mistake in (["--data", "/none.txt"], ["--variant", "sparse"], ["--seq-len", "99999", "--tokens", "10m"]):
        assert run_main("train", *flags, "--overwrite", *mistake, "--out", folder).code == 2
    assert contents(folder) == before


def test_overwrite_replaces_a_run_and_keeps_what_was_put_beside_it(
    flags: list[str], trained: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    (folder / "notes.md").write_text("mine")
    before = contents(folder)
    outcome = run_main("train", *flags, "--lr", "2e-2", "--overwrite", "--out", folder)
    assert outcome.code == 0, outcome.err
    after = contents(folder)
    assert after["notes.md"] == before["notes.md"]
    assert json.loads(after["settings.json"][1])["learning_rate"] == 2e-2
    assert after["metrics.jsonl"][1].count(b"\n") == 12


def test_a_full_disk_is_seen_before_anything_is_touched(
    flags: list[str], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert_refused(run_main("train", *flags, "--out", tmp_path / "out"), "has 0 MiB free", "free some disk")
    assert list(tmp_path.iterdir()) == []
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    before = contents(folder)
    assert_refused(run_main("compare", *flags, "--overwrite", "--out", folder), "has 0 MiB free")
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (["--variant", "exclusive"], "(variant, selective)"),
        (["--exclusive", "strength=0.5"], "(exclusive)"),
        (["--selective", "token=mlp"], "(selective)"),
        (["--tokenizer", "bytes", "--pack", "isolate"], "(pack, what the data holds)"),
    ],
)
def test_a_run_is_not_gone_on_with_as_another(
    flags: list[str], trained: Path, tmp_path: Path, changes: list[str], named: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    before = contents(folder)
    begun = ["train", *flags, "--lr", "1e-2", "--variant", "exclusive+selective", "--out", folder]
    assert_refused(run_main(*begun, *changes, "--resume"), f"was begun with other settings {named}")
    assert contents(folder) == before


def test_what_a_run_or_a_comparison_has_left_is_whole_or_refused(flags: list[str], tmp_path: Path) -> None:
    """The runs of a comparison are read as a lone run is."""
    corpus = write_corpus(tmp_path / "corpus")
    command = ["compare", *flags, "--data", corpus, "--variants", "baseline", "--out", tmp_path / "out"]
    assert run_main(*command).code == 0
    (run,) = (tmp_path / "out" / "runs").iterdir()
    for name, text, message in (
        ("result.json", "{}", "result.json has changed since it was saved"),
        ("metrics.jsonl", "", "metrics.jsonl has changed since it was saved"),
        ("settings.json", "{", "settings.json is not JSON"),
        ("settings.json", "[" * 100_000, "settings.json is not JSON"),
        ("model/config.json", "{}", "config.json has changed since it was saved"),
        ("exsel-manifest.json", "[]", "exsel-manifest.json is not a JSON object"),
    ):
        whole = (run / name).read_text()
        (run / name).write_text(text)
        assert_refused(run_main(*command, "--resume"), message)
        (run / name).write_text(whole)
    (tmp_path / "out" / "results.json").write_text("{")
    assert run_main(*command, "--resume").code == 0
    assert json.loads((tmp_path / "out" / "results.json").read_text())["runs"]
    before = contents(tmp_path / "out")
    with locked(tmp_path / "out"):
        for flag in ("--resume", "--overwrite"):
            assert_refused(run_main(*command, flag), f"another process is at work in {tmp_path / 'out'}")
    (corpus / "00.txt").write_text((corpus / "00.txt").read_text().replace("fox", "cat"))
    assert_refused(run_main(*command, "--resume"), "begun with other settings (what the data holds)")
    assert contents(tmp_path / "out") == before


def test_a_loss_that_is_no_number(flags: list[str], tmp_path: Path) -> None:
    outcome = run_main(
        "train", *flags, "--lr", "1e30", "--warmup-steps", "0", "--save-every", "1", "--out", tmp_path / "out"
    )
    assert outcome.code == 2
    assert_refused(outcome, "step ", "lower --lr")


@pytest.mark.parametrize(
    ("command", "module", "extra"),
    [
        ("compare", "rich", "train"),
        ("compare", "matplotlib", "train"),
        ("train", "accelerate", "train"),
        ("train", "datasets", "train"),
        ("generate", "transformers", "models"),
        ("eval", "datasets", "train"),
    ],
)
def test_a_missing_extra(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, module: str, extra: str
) -> None:
    original = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == module else original(name))
    arguments = {"generate": ["x", "--prompt", "x"], "eval": ["x"]}.get(
        command, [*flags, "--out", str(tmp_path / "out")]
    )
    outcome = run_main(command, *arguments)
    assert_refused(outcome, f"{module} is not installed: pip install 'exsel[{extra}]'")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_logger(flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.integrations.get_available_reporting_integrations", list)
    outcome = run_main("train", *flags, "--report-to", "tensorboard", "--out", tmp_path / "out")
    assert_refused(outcome, "--report-to tensorboard: it is not installed: pip install tensorboard")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", ""], "--prompt is empty"),
        (["--prompt", "x", "--max-new-tokens", "0"], "--max-new-tokens must be at least 1"),
        (["--prompt", "x", "--temperature", "0"], "--temperature must lie between 0.0001 and 10000, got 0.0"),
        (["--prompt", "x", "--temperature", "1e-45"], "--temperature must lie between"),
        (["--prompt", "x", "--temperature", "nan"], "--temperature must lie between"),
        (["--prompt", "x", "--top-p", "1.5"], "--top-p"),
        (["--prompt", "x", "--seed", "-1"], "--seed must lie between"),
    ],
)
def test_generate(trained: Path, arguments: list[str], message: str) -> None:
    assert_refused(run_main("generate", trained, *arguments), message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seq-len", "0"], "--seq-len must be at least 1"),
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["--max-sequences", "0"], "--max-sequences must be at least 1"),
        (["--data", "/no/such.txt"], "no such file or folder"),
        (["--json", "/no/such/folder/file.json"], "--json /no/such/folder/file.json cannot be written"),
        (["--json", "/"], "--json / cannot be written"),
    ],
)
def test_eval(trained: Path, corpus: Path, arguments: list[str], message: str) -> None:
    assert_refused(run_main("eval", trained, "--data", corpus, *arguments), message)


@pytest.mark.parametrize("command", [["generate", "--prompt", "x"], ["eval"]])
def test_folders_without_a_model(trained: Path, tmp_path: Path, command: list[str]) -> None:
    name, *rest = command
    assert_refused(run_main(name, tmp_path / "none", *rest), "no such folder")
    assert_refused(run_main(name, tmp_path, *rest), "holds no saved model")
    (tmp_path / "runs" / "a").mkdir(parents=True)
    assert_refused(run_main(name, tmp_path, *rest), "it holds several, such as", "runs/a")


@pytest.mark.parametrize("command", [["generate", "--prompt", "x"], ["eval"]])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", b"cut"),
        ("model.safetensors", None),
        ("config.json", b"{"),
        ("config.json", b'{"model_type": "unheard-of"}'),
        ("tokenizer_config.json", b"{"),
        ("tokenizer_config.json", None),
    ],
)
def test_damaged_models(trained: Path, tmp_path: Path, command: list[str], name: str, content: bytes | None) -> None:
    folder = tmp_path / "model"
    shutil.copytree(trained / "model", folder)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    assert_refused(run_main(command[0], folder, *command[1:]), str(folder), "cannot be loaded: ")


def test_a_pickled_model_is_refused(trained: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = tmp_path / "model"
    shutil.copytree(trained / "model", folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert_refused(run_main("generate", folder, "--prompt", "x"), "cannot be loaded: ")


def test_weights_that_are_missing_are_not_made_up(trained: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(trained / "model", folder)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.self_attn.v_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    outcome = run_main("generate", folder, "--prompt", "x")
    assert_refused(outcome, "lacks 1 weights, such as model.layers.1.self_attn.v_proj.weight")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ACCELERATE_MIXED_PRECISION", "fp16", "accelerate's --mixed_precision fp16 contradicts --dtype float32"),
        ("ACCELERATE_MIXED_PRECISION", "bf16", "accelerate's --mixed_precision bf16 contradicts --dtype float32"),
        ("ACCELERATE_USE_FSDP", "true", "accelerate's --use_fsdp has no effect here"),
    ],
)
def test_what_a_launcher_asks_for_in_vain(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    assert_refused(run_main("train", *flags, "--dtype", "float32", "--out", tmp_path / "run"), message)
    assert not (tmp_path / "run").exists()
