"""How long every command takes to its first line and to its answer: two source trees, each with cached bytecode.

    python -m evidence.benchmarks.startup --before ../before --rounds 5

A command is started, read until it answers, and stopped. The first line says what is being worked on: the model, the
data, the prompt. Beside the seconds stands the processor time that the process had used by then, which other programs
of the machine hardly change. ``--before`` is a checkout of the revision to compare with; the trees alternate.
``--rounds 0`` only fills the caches; ``--add`` adds rounds to those of the results.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from exsel.files import read_json, write_json
from exsel.machine import describe_machine, git_revision

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "evidence" / "benchmarks" / "results" / "startup_cpu.json"

#: Each command with what its answer matches. MODEL is a small trained model, OUT a folder.
COMMANDS = {
    "--version": r"exsel \d",
    "compare --help": "usage",
    "generate MODEL --prompt def --max-new-tokens 3": r"def(.|\n)*\n",
    "support MODEL": r"attention layer",
    "eval MODEL --data TEXT": r"^loss",
    "diagnose MODEL --text hello --out OUT --overwrite": r"^all ",
    "bench attention --shapes tiny --seq-lens 256 --out OUT --overwrite": r"case 1 of",
    "train --tokens 60k --out OUT --overwrite": r"step 1/",
    "compare --tokens 60k --out OUT --overwrite": r"step 1/",
}
#: What is timed: the first output, and what matches in :data:`COMMANDS`.
MOMENTS = ("first", "answer")
#: Seconds and processor seconds at each of the moments.
Moments = dict[str, dict[str, float]]


def until_answer(tree: Path, words: list[str], pattern: str) -> Moments:
    """Seconds, and processor seconds, until a command of a source tree writes anything, and what matches."""
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "PYTHONUNBUFFERED": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "exsel", *words],
        env=environment,
        cwd=tempfile.gettempdir(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        assert process.stdout is not None
        watched = psutil.Process(process.pid)
        said, moments = b"", Moments()
        while part := os.read(process.stdout.fileno(), 65536):
            seconds, used = time.perf_counter() - start, watched.cpu_times()
            said += part
            moment = {"seconds": seconds, "cpu_seconds": used.user + used.system}
            moments.setdefault("first", moment)
            if re.search(pattern, said.decode(errors="replace"), re.MULTILINE):
                process.kill()
                return {**moments, "answer": moment}
    raise RuntimeError(f"exsel {' '.join(words)} of {tree} said nothing that matches {pattern}:\n{said.decode()}")


def measure_starts(
    trees: dict[str, Path], rounds: int, folder: Path, model: Path
) -> dict[str, dict[str, list[Moments]]]:
    text = folder / "text.txt"
    text.write_text("A line of text to be read.\n" * 40, encoding="utf-8")
    places = {"MODEL": str(model), "TEXT": str(text), "OUT": str(folder / "out")}
    found: dict[str, dict[str, list[Moments]]] = {}
    for command, pattern in COMMANDS.items():
        words = [places.get(word, word) for word in command.split()]
        rows = found[command] = {name: [] for name in trees}
        for number in range(max(1, rounds)):
            for name in list(trees) if number % 2 == 0 else reversed(trees):
                rows[name].append(until_answer(trees[name], words, pattern))
                print(f"{command} {name} {json.dumps(rows[name][-1])}", flush=True)
    return found


def trained(folder: Path) -> Path:
    """A model that a short run leaves."""
    words = ["train", "--tokens", "8k", "--no-compile", "--evaluations", "1", "--out", str(folder / "model")]
    subprocess.run([sys.executable, "-m", "exsel", *words], check=True, stdout=subprocess.DEVNULL)
    return folder / "model"


def medians(result: dict[str, Any]) -> list[dict[str, str]]:
    """A row a command, for :data:`HEADINGS`."""
    rows = []
    for command, sides in result["rows"].items():
        middle = {
            (name, moment, key): statistics.median(each[moment][key] for each in sides[name])
            for name in ("before", "after")
            for moment in MOMENTS
            for key in ("seconds", "cpu_seconds")
        }
        said = command.replace(" --overwrite", "").replace(" --out OUT", "")
        ratio = middle["after", "answer", "cpu_seconds"] / middle["before", "answer", "cpu_seconds"]
        rows.append(
            {
                "command": f"`exsel {said}`",
                **{" ".join(key): f"{value:.2f}" for key, value in middle.items()},
                "ratio": f"{ratio:.2f}×",
            }
        )
    return rows


#: The columns of the table.
HEADINGS = {
    "command": "",
    "before first cpu_seconds": "First line: CPU s, before",
    "after first cpu_seconds": "CPU s, now",
    "before answer seconds": "Answer: s, before",
    "after answer seconds": "s, now",
    "before answer cpu_seconds": "CPU s, before",
    "after answer cpu_seconds": "CPU s, now",
    "ratio": "CPU, now to before",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, metavar="DIR", help="a checkout to compare with")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--model", type=Path, metavar="DIR", help="a trained model (default: one of a short run)")
    parser.add_argument("--add", action="store_true", help="add to the rounds of the results")
    arguments = parser.parse_args()
    trees = {"before": arguments.before.resolve(), "after": ROOT}
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or trained(Path(folder))
        rows = measure_starts(trees, arguments.rounds, Path(folder), model.resolve())
    if not arguments.rounds:
        return
    if arguments.add:
        for command, sides in read_json(RESULT)["rows"].items():
            for name, earlier in sides.items():
                rows[command][name] = [*earlier, *rows[command][name]]
    revision = ["git", "-C", str(arguments.before), "rev-parse", "HEAD"]
    result = {
        "command": "python -m evidence.benchmarks.startup",
        "git_revision": git_revision(),
        "before_revision": subprocess.run(revision, check=True, capture_output=True, text=True).stdout.strip(),
        "machine": describe_machine("cpu"),
        "rows": rows,
    }
    write_json(RESULT, result)
    for row in medians(result):
        print("  ".join(row.values()))


if __name__ == "__main__":
    main()
