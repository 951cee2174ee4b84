"""What the mechanisms cost in vLLM: a pretrained model served plain, exclusive, and with both, in one process.

    python -m evidence.benchmarks.vllm_tokens [--batch 8] [--tokens 48] [--rounds 9] [--compile]

Needs an environment with vLLM and exsel (``pip install 'exsel[vllm]'``), and the model of ``exsel pull smollm2``. The
plain model is served by vLLM's transformers backend, which runs the others too, and by vLLM's own class, its fast path.
All generate as many tokens after the same prompts, in turn; a ratio is that of times within a round.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import exsel
from evidence.benchmarks.cpu_rows import command_of
from evidence.papers.results_page import machine_in_words, markdown_table
from exsel.cli.flags import whole
from exsel.files import write_json
from exsel.machine import describe_machine, git_revision

RESULTS = Path(__file__).parent / "results"
PLAIN, NATIVE = "plain, by vLLM's transformers backend", "plain, by vLLM's own class"
MECHANISMS: dict[str, dict[str, Any]] = {
    "exclusive": {"exclusive": True},
    "both": {"exclusive": True, "selective": True},
}
_PROMPT = 32


def save_upgraded(plain: Path, folder: Path) -> None:
    """Save the model with each of the mechanisms, in folders of their names."""
    from transformers import AutoModelForCausalLM

    for name, mechanisms in MECHANISMS.items():
        exsel.upgrade(AutoModelForCausalLM.from_pretrained(plain), **mechanisms).save_pretrained(folder / name)


def seconds_of_rounds(batch: int, tokens: int, rounds: int, *, is_compiled: bool) -> dict[str, list[float]]:
    """Seconds of each round, by how the model is served."""
    plain = exsel.pull("smollm2")
    with tempfile.TemporaryDirectory() as folder:
        # vLLM binds the threads of this process, which must not have computed before.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:
            apart.submit(save_upgraded, plain, Path(folder)).result()
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
        served |= {name: serve(Path(folder) / name) for name in MECHANISMS}
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


def headings_and_rows(result: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings, and a row for each way."""
    made: list[tuple[str, ...]] = []
    for name, seconds in result["seconds"].items():
        ratios = [own / plain for own, plain in zip(seconds, result["seconds"][PLAIN], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        rate = result["batch"] * result["tokens"] / statistics.median(seconds)
        beside = ("1", "") if name == PLAIN else (f"{middle:.3f}", f"{low:.3f} to {high:.3f}")
        made.append((name, f"{rate:.0f}", *beside))
    return ("Served", "Tokens a second", "Time, beside plain", "Middle half of rounds"), made


def what_serving_costs(results: Iterable[dict[str, Any]]) -> str:
    """The results as part of a page."""
    parts = []
    for result in results:
        how = "compiled, as vLLM does by default" if result["is_compiled"] else "with `--enforce-eager`"
        machine = machine_in_words(result["machine"], result["git_revision"])
        parts.append(
            f"SmolLM2-135M on a CPU in float32, {how}: {result['batch']} sequences of {_PROMPT} tokens and "
            f"{result['tokens']} more, {len(result['seconds'][PLAIN])} rounds in turn, medians; vLLM {result['vllm']}, "
            f"{machine}. `{result['command']}`\n\n" + markdown_table(*headings_and_rows(result))
        )
    return "\n\n".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8, help="sequences at a time (%(default)s)")
    parser.add_argument("--tokens", type=int, default=48, help=f"to generate after {_PROMPT} (%(default)s)")
    parser.add_argument("--rounds", type=whole(2), default=9, help="at least 2, for quartiles (%(default)s)")
    parser.add_argument("--compile", action="store_true", help="as vLLM does by default; takes minutes a model")
    arguments = parser.parse_args()
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    seconds = seconds_of_rounds(arguments.batch, arguments.tokens, arguments.rounds, is_compiled=arguments.compile)
    from vllm import __version__ as vllm_version

    result = {
        "command": command_of("evidence.benchmarks.vllm_tokens", sys.argv[1:]),
        "machine": describe_machine("cpu"),
        "git_revision": git_revision(),
        "vllm": vllm_version,
        "is_compiled": arguments.compile,
        "batch": arguments.batch,
        "tokens": arguments.tokens,
        "seconds": seconds,
    }
    write_json(RESULTS / f"serving_{'compiled' if arguments.compile else 'eager'}_cpu.json", result)
    print(what_serving_costs([result]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
