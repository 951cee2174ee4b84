"""Can the mechanisms be put into a model that exists? A plain model, trained on for an equal budget as each variant.

    python -m evidence.benchmarks.finetune [--out FILE] [--work runs/finetune] [--from MODEL] [--seeds 0] [--resume]

The plain model is one that ``exsel train`` makes of standard-library source, unless ``--from`` names another. Then it
is trained on with ``exsel train --from``, on three parts documents with a passkey and one part source, nothing twice:
as it is, and with each of the mechanisms. About 10 minutes a seed on two cores; ``--resume`` goes on with what was
interrupted.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import exsel
from evidence.papers.passkey_task import (
    ASKED_LENGTHS,
    LEARNING_RATE,
    MODEL,
    SEQ_LEN,
    SHARE,
    TRAINED_LENGTHS,
    passkey_data,
)
from exsel.cli import main as command_line
from exsel.cli.checkpoint import find_checkpoint
from exsel.data import load_evaluation_data
from exsel.errors import ExselError
from exsel.evaluation import evaluate_loss
from exsel.evaluation.retrieval import passkey
from exsel.files import read_json, write_json
from exsel.machine import describe_machine, git_revision

# Sequences a step, and keys for each length and depth.
BATCH_SIZE = 2
SAMPLES = 40
EVALUATION_BLOCKS = 64

#: What is trained on, by its name in the table, as flags.
VARIANTS: Mapping[str, Sequence[str]] = {
    "plain": ("--variant", "baseline"),
    "+ exclusive": ("--variant", "exclusive"),
    "+ exclusive, learned strength": ("--variant", "exclusive", "--exclusive", "strength=learned"),
    "+ selective": ("--variant", "selective"),
    "+ both": ("--variant", "exclusive+selective"),
}


def finetune(folder: Path, flags: Sequence[str], *, resume: bool) -> dict[str, Any]:
    """``exsel train``; its result.

    Raises:
        SystemExit: it ended otherwise than well, with its exit code.
    """
    how = "--resume" if resume and folder.exists() else "--overwrite"
    code = command_line(["train", *flags, "--seq-len", str(SEQ_LEN), "--out", str(folder), how])
    if code != 0:
        raise SystemExit(code)
    result: dict[str, Any] = read_json(folder / "result.json")
    return result


def evaluate(folder: str) -> dict[str, Any]:
    """Loss on the files of the standard library that nothing was trained on, and the passkeys found."""
    from transformers import AutoTokenizer

    model = exsel.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    blocks, description = load_evaluation_data(tokenizer=tokenizer, seq_len=SEQ_LEN, max_blocks=EVALUATION_BLOCKS)
    loss = evaluate_loss(model, blocks, batch_size=16, device=torch.device("cpu"))
    found = passkey(model, tokenizer, lengths=ASKED_LENGTHS, samples=SAMPLES, batch_size=40)
    return {
        "loss": loss.loss,
        "bits_per_byte": loss.bits_per_byte(description.bytes_per_token),
        "passkey": found.to_dict(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("evidence/benchmarks/results/finetune_tiny.json"))
    parser.add_argument("--work", type=Path, default=Path("runs/finetune"))
    parser.add_argument("--from", dest="source", metavar="MODEL", help="a plain model, rotary (it is trained first)")
    parser.add_argument(
        "--base-steps", type=int, default=1200, help="of the plain model, each of 2 × 512 bytes (%(default)s)"
    )
    parser.add_argument("--steps", type=int, default=2800, help="of each variant, the same (%(default)s)")
    parser.add_argument("--lr", type=float, default=LEARNING_RATE, help="peak learning rate of all (%(default)s)")
    parser.add_argument("--seeds", default="0", help="of the order of the data, as 0,1 (%(default)s)")
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    # What says nothing of the results is not in the command that is on record.
    measured = {"source": "from", "base_steps": "base-steps", "steps": "steps", "lr": "lr", "seeds": "seeds"}
    values = {flag: getattr(arguments, name) for name, flag in measured.items()}
    given = [f"--{flag}={value}" for flag, value in values.items() if value is not None]
    try:
        seeds = [int(seed) for seed in arguments.seeds.split(",")]
        results = run(arguments, seeds, shlex.join(["python", "-m", "evidence.benchmarks.finetune", *given]))
    except (ExselError, ValueError) as error:
        print(f"finetune: {error}", file=sys.stderr)
        return 2
    write_json(arguments.out, results)
    return 0


def run(arguments: argparse.Namespace, seeds: Sequence[int], command: str) -> dict[str, Any]:
    """Everything, for the record."""
    started = datetime.now(UTC).isoformat(timespec="seconds")
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    tokens_a_step = BATCH_SIZE * SEQ_LEN
    shared = ["--lr", str(arguments.lr), "--batch-size", str(BATCH_SIZE), "--device", "cpu", "--save-every", "500"]
    base = find_checkpoint(arguments.source) if arguments.source else str(work / "base" / "model")
    if not arguments.source:
        write_json(work / "config.json", MODEL)
        flags = ["--model", str(work / "config.json"), "--tokens", str(arguments.base_steps * tokens_a_step)]
        finetune(work / "base", [*flags, *shared], resume=arguments.resume)
    tokens = arguments.steps * tokens_a_step
    # Each document by itself from position 0, as it is when the key is asked for.
    flags = ["--from", base, "--data", *passkey_data((), work, tokens), "--tokens", str(tokens), "--pack", "isolate"]
    runs = []
    for seed in seeds:
        for name, variant in VARIANTS.items():
            own = work / f"{name.strip('+ ').replace(', ', '-').replace(' ', '-')}-seed{seed}"
            print(f"\n{name}, seed {seed}", flush=True)
            result = finetune(own, [*flags, *variant, *shared, "--seed", str(seed)], resume=arguments.resume)
            kept = ("parameters", "new_parameters", "steps", "tokens", "train_seconds", "ms_per_step")
            record = {"name": name, "flags": list(variant), "seed": seed, **{key: result[key] for key in kept}}
            runs.append({**record, "loss_in_training": result["loss"], **evaluate(str(own / "model"))})
            print(f"loss {runs[-1]['loss']:.4f}, passkeys {runs[-1]['passkey']['by_length']}", flush=True)
    settings = read_json(own / "settings.json")
    return {
        "schema": 1,
        "exsel_version": exsel.__version__,
        "command": command,
        "started": started,
        "git_revision": git_revision(),
        "machine": describe_machine("cpu"),
        "config": settings,
        "passkeys": {"lengths": list(TRAINED_LENGTHS), "share": SHARE},
        "base": {
            "name": arguments.source,
            "config": MODEL if arguments.source is None else None,
            "steps": None if arguments.source else arguments.base_steps,
            **evaluate(base),
        },
        "runs": runs,
    }


if __name__ == "__main__":
    sys.exit(main())
