"""How much memory :func:`exsel.diagnose` takes beyond the model, on one long text, on the CPU.

    python -m evidence.benchmarks.diagnose_memory [--tokens N] [--out FILE]

A small model like Llama (4 layers of 8 heads of 64) reads one sequence; its peak resident memory is compared with what
it was before. All heads' attention matrices of one layer would take 8 GiB in float32. Minutes on one core.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path

import psutil
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import exsel
from exsel.files import write_json
from exsel.machine import describe_machine, git_revision

OUT = Path(__file__).parent / "results" / "diagnose_memory.json"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=16384, help="(%(default)s)")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=arguments.tokens,
    )
    model = LlamaForCausalLM(config).eval()
    model(torch.zeros(1, 8, dtype=torch.long))  # what a first pass loads is not counted
    before = psutil.Process().memory_info().rss
    started = time.perf_counter()
    diagnosis = exsel.diagnose(model, [torch.randint(0, 32000, (1, arguments.tokens))])
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    record = {
        "format": 1,
        "command": f"python -m evidence.benchmarks.diagnose_memory --tokens {arguments.tokens}",
        "machine": describe_machine("cpu"),
        "git_revision": git_revision(),
        "model": "Llama, 4 layers, 8 heads of 64",
        "tokens": arguments.tokens,
        "bytes_before": before,
        "bytes_beyond": peak - before,
        "seconds": seconds,
        "metrics": sorted(diagnosis.layers[0]["metrics"]),
    }
    write_json(arguments.out, record)
    print(f"{(peak - before) / 2**20:.0f} MiB beyond the model, {seconds:.0f} s; kept: {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
