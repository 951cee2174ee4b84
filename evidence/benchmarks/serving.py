"""What the mechanisms cost in vLLM: a pretrained model served plain, exclusive, and with both, in one process.

    python -m evidence.benchmarks.serving [--batch 8] [--tokens 48] [--rounds 9] [--compile]

Needs an environment with vLLM and exsel (``pip install 'exsel[vllm]'``), and the model of ``exsel pull smollm2``. The
plain model is served by vLLM's transformers backend, which also runs the others, and by vLLM's own class, its fast path.
All generate as many tokens after the same prompts, in turn; a ratio is that of times within a round.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import exsel
from exsel.files import write_json
from exsel.machine import describe_machine, git_revision

OUT = Path(__file__).parent / "results" / "serving_cpu.json"
PLAIN, NATIVE = "plain, by vLLM's transformers backend", "plain, by vLLM's own class"
MECHANISMS: dict[str, dict[str, Any]] = {
    "exclusive": {"exclusive": True},
    "both": {"exclusive": True, "selective": True},
}
HEADINGS = {
    "name": "Served",
    "rate": "Tokens a second",
    "ratio": "Time, beside plain",
    "middle": "Middle half of rounds",
}
_PROMPT = 32


def upgraded(plain: Path, folder: Path) -> dict[str, Path]:
    """The model with each of the mechanisms, saved."""
    from transformers import AutoModelForCausalLM

    made = {}
    for name, mechanisms in MECHANISMS.items():
        model = exsel.upgrade(AutoModelForCausalLM.from_pretrained(plain), **mechanisms)
        model.save_pretrained(folder / name)
        made[name] = folder / name
    return made


def measure(batch: int, tokens: int, rounds: int, *, is_compiled: bool) -> dict[str, list[float]]:
    """Seconds of each round, by how the model is served."""
    plain = exsel.pull("smollm2")
    with tempfile.TemporaryDirectory() as folder:
        folders = upgraded(plain, Path(folder))
        from vllm import LLM, SamplingParams

        def serve(path: Path, **options: Any) -> Any:
            return LLM(
                str(path),
                skip_tokenizer_init=True,
                max_model_len=256,
                dtype="float32",
                enforce_eager=not is_compiled,
                enable_prefix_caching=False,
                **options,
            )

        served = {PLAIN: serve(plain, model_impl="transformers")}
        served |= {name: serve(path) for name, path in folders.items()}
        served[NATIVE] = serve(plain, model_impl="vllm")
    prompts = [{"prompt_token_ids": list(range(first, first + _PROMPT))} for first in range(3, 3 + batch)]
    options = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    seconds: dict[str, list[float]] = {name: [] for name in served}
    for number in range(rounds + 1):  # the first one warms up
        for name, llm in served.items():
            start = time.perf_counter()
            llm.generate(prompts, options, use_tqdm=False)
            if number:
                seconds[name].append(time.perf_counter() - start)
                print(f"round {number} of {rounds}, {name}: {seconds[name][-1]:.2f} s", flush=True)
    return seconds


def rows(result: dict[str, Any]) -> list[dict[str, str]]:
    """A row for each way, for :data:`HEADINGS`."""
    made = []
    for name, seconds in result["seconds"].items():
        ratios = [own / plain for own, plain in zip(seconds, result["seconds"][PLAIN], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        rate = result["batch"] * result["tokens"] / statistics.median(seconds)
        is_plain = name == PLAIN
        made.append(
            {
                "name": name,
                "rate": f"{rate:.0f}",
                "ratio": "1" if is_plain else f"{middle:.3f}",
                "middle": "" if is_plain else f"{low:.3f} to {high:.3f}",
            }
        )
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8, help="sequences at a time (%(default)s)")
    parser.add_argument("--tokens", type=int, default=48, help=f"to generate after {_PROMPT} (%(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="(%(default)s)")
    parser.add_argument("--compile", action="store_true", help="as vLLM does by default; takes minutes a model")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    seconds = measure(arguments.batch, arguments.tokens, arguments.rounds, is_compiled=arguments.compile)
    from vllm import __version__ as vllm_version

    result = {
        "command": " ".join(["python -m evidence.benchmarks.serving", *sys.argv[1:]]),
        "machine": describe_machine("cpu"),
        "git_revision": git_revision(),
        "vllm": vllm_version,
        "is_compiled": arguments.compile,
        "batch": arguments.batch,
        "tokens": arguments.tokens,
        "seconds": seconds,
    }
    write_json(arguments.out, result)
    for row in rows(result):
        print(" · ".join(row.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
