from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

import exsel
from cli.conftest import run_main
from exsel.cli import COMMANDS
from exsel.models import SIZES
from exsel.report.formatting import compact
from exsel.variants import VARIANTS

HEAVY = ("torch", "transformers", "matplotlib", "datasets", "rich", "numpy")


@pytest.mark.parametrize("arguments", [[], *([command] for command in COMMANDS)])
def test_help_is_quick(arguments: list[str]) -> None:
    script = (
        "import sys\nfrom exsel.cli import main\n"
        f"try: main({[*arguments, '--help']!r})\nexcept SystemExit as stop: assert stop.code == 0\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\nassert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


@pytest.mark.parametrize(
    "arguments",
    [
        ["eval", "./none"],
        ["generate", "EMPTY", "--prompt", "x"],
        ["diagnose", "EMPTY", "--text", "x", "--out", "new"],
        ["support", "EMPTY"],
        ["train", "--out", "FULL"],
        ["train", "--from", "./none", "--out", "new"],
        ["compare", "--out", "FULL"],
        ["compare", "--variants", "exclusiv"],
        ["compare", "--minutes", "1", "--tokens", "1k"],
    ],
)
def test_mistakes_are_said_before_anything_heavy_is_imported(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    words = [{"EMPTY": "empty", "FULL": "full"}.get(word, word) for word in arguments]
    script = (
        "import sys\nfrom exsel.cli import main\n"
        f"assert main({words!r}) == 2\n"
        "loaded = [name for name in ('torch', 'transformers', 'datasets', 'matplotlib') if name in sys.modules]\n"
        "assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stderr.startswith("exsel: ")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["eval", "MODEL"], "model: MODEL, exsel, exclusive+selective, 2 layers of width 32, COUNT weights\n"),
        (["support", "MODEL"], "model: MODEL, exsel, exclusive+selective, 2 layers of width 32, COUNT weights\n"),
        (["generate", "MODEL", "--prompt", "the quick"], "the quick\n"),
    ],
)
def test_the_first_line_comes_before_anything_heavy_is_imported(trained: Path, arguments: list[str], line: str) -> None:
    words = [str(trained) if word == "MODEL" else word for word in arguments]
    script = f"import sys\nfrom exsel.cli import main\nsys.modules['torch'] = None\nmain({words!r})"
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    weights = load_file(trained / "model" / "model.safetensors").values()
    count = compact(sum(weight.numel() for weight in weights))
    assert done.stdout == line.replace("MODEL", str(trained)).replace("COUNT", count)
    assert "import of torch halted" in done.stderr


def test_python_dash_m() -> None:
    done = subprocess.run([sys.executable, "-m", "exsel", "--version"], check=True, capture_output=True, text=True)
    assert done.stdout == f"exsel {exsel.__version__}\n"


def test_help_lists_the_commands() -> None:
    text = run_main("--help").out
    assert all(re.search(rf"^    {command} ", text, re.M) for command in COMMANDS)


@pytest.mark.parametrize("command", ["compare", "train"])
def test_help_names_the_variants_and_sizes_that_there_are(command: str) -> None:
    text = " ".join(run_main(command, "--help").out.split())
    assert set(re.findall(r"(?:baseline|exclusive|selective)(?:\+\w+)?", text)) >= set(VARIANTS)
    if command == "compare":
        assert ",".join(VARIANTS) in text
    assert f"{', '.join(SIZES)}; a path" in text


def test_no_command_is_a_mistake() -> None:
    outcome = run_main()
    assert outcome.code == 2
    assert "COMMAND" in outcome.err


def test_flags_cannot_be_abbreviated(tmp_path: Path) -> None:
    """An abbreviated --overwrite would survive into the command that goes on after an interruption."""
    outcome = run_main("train", "--over", "--out", tmp_path / "out")
    assert outcome.code == 2
    assert "--over" in outcome.err
