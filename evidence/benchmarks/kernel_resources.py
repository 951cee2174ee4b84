# mypy: disable-error-code="import-untyped"
"""Registers, spills and shared memory of every Triton kernel in every shipped configuration, without a GPU.

    python -m evidence.benchmarks.kernel_resources [--launchers project …] [--targets sm_90 …] [--head-dims 128 …]
        [--dtypes bfloat16 …] [--jobs 2] [--out evidence/benchmarks/results]

Compiles what the launchers would launch, for each architecture of ``configs/defaults.json`` and each chip with a
configuration file of its own, and reads the binaries. Exits with 1 if a kernel spills at a head dimension of at most
128 or asks for more shared memory than a program may have. ``--out`` writes kernel_resources_tritonVERSION.json there.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import sys
from collections.abc import Callable
from functools import partial
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

from exsel.files import read_json, write_json
from exsel.kernels.triton import attention, attention_backward, decode, project, temperature
from exsel.kernels.triton.binaries import TARGETS, compile_launches
from exsel.kernels.triton.tuning import SHARED_MEMORY, Config, default_config, padded

EPS = 1e-12
HEAD_DIMS = (16, 32, 64, 80, 128, 256)
DTYPES = ("bfloat16", "float32")
#: The architecture of a chip with a configuration file of its own, by a word of its name.
CHIPS = {"a100": "sm_80", "h100": "sm_90", "h200": "sm_90", "b200": "sm_100", "mi300": "gfx942"}


@dataclasses.dataclass(frozen=True)
class Job:
    """One launch to compile, with the configurations of its kernels that have some in the files."""

    launcher: str
    variant: str
    target: str
    source: str
    dtype: str
    head_dim: int
    configs: dict[str, Config]


class Inputs:
    """Tensors as a model has them: [B, H, T, D] views of [B, T, H, D]."""

    def __init__(self, head_dim: int, dtype: torch.dtype, batch_size: int = 2, num_heads: int = 8, kv_heads: int = 2):
        self.head_dim, self.dtype = head_dim, dtype
        self.batch_size, self.num_heads, self.kv_heads, self.tokens = batch_size, num_heads, kv_heads, 256

    def heads(self, tokens: int | None = None) -> Tensor:
        """[B, H, T, D]."""
        shape = self.batch_size, tokens or self.tokens, self.num_heads, self.head_dim
        return torch.zeros(shape, dtype=self.dtype).transpose(1, 2)

    def kv(self, tokens: int | None = None) -> Tensor:
        """[B, Hkv, T, D]."""
        shape = self.batch_size, tokens or self.tokens, self.kv_heads, self.head_dim
        return torch.zeros(shape, dtype=self.dtype).transpose(1, 2)

    def row(self, tokens: int | None = None) -> Tensor:
        """[B, H, T] in float32."""
        return torch.zeros(self.batch_size, self.num_heads, tokens or self.tokens)

    def kv_row(self) -> Tensor:
        """[B, Hkv, T] in float32."""
        return torch.zeros(self.batch_size, self.kv_heads, self.tokens)


Launch = Callable[[int, torch.dtype, dict[str, Config]], object]


def project_forward(
    head_dim: int, dtype: torch.dtype, configs: dict[str, Config], *, strength: bool = False, gate: bool = False
) -> None:
    x = Inputs(head_dim, dtype)
    y = x.heads()
    project.project(y, x.kv(), x.row() if strength else None, x.row() if gate else None, EPS, y, x.row())


def project_backward(
    head_dim: int,
    dtype: torch.dtype,
    configs: dict[str, Config],
    *,
    strength: bool = False,
    gate: bool = False,
    from_z: bool = False,
    wanted: str = "dy dv",
) -> None:
    x = Inputs(head_dim, dtype)
    alpha, gates, along = x.row() if strength else None, x.row() if gate else None, x.row() if from_z else None
    dy, dv = x.heads() if "dy" in wanted else None, x.kv() if "dv" in wanted else None
    project.project_backward(
        x.heads(), x.heads(), x.kv(), alpha, gates, EPS, along, dy, dv, alpha, gates, accumulate=wanted == "dv"
    )


def forward(
    head_dim: int,
    dtype: torch.dtype,
    configs: dict[str, Config],
    *,
    exclusive: bool = True,
    scales: bool = False,
    packed: bool = False,
    is_causal: bool = True,
) -> None:
    x = Inputs(head_dim, dtype, batch_size=1)
    attention.attention_forward(
        x.heads(), x.kv(), x.kv(), **attention_options(x, exclusive, scales, packed, is_causal),
        config=configs["attention_forward"],
    )  # fmt: skip


def backward(
    head_dim: int,
    dtype: torch.dtype,
    configs: dict[str, Config],
    *,
    exclusive: bool = True,
    scales: bool = False,
    packed: bool = False,
    is_causal: bool = True,
) -> None:
    x = Inputs(head_dim, dtype, batch_size=1)
    attention_backward.attention_backward(
        x.heads(), x.heads(), x.kv(), x.kv(), x.heads(), x.row(), x.row() if exclusive else None,
        **attention_options(x, exclusive, scales, packed, is_causal),
        key_value_config=configs["attention_backward_key_value"], query_config=configs["attention_backward_query"],
    )  # fmt: skip


def attention_options(x: Inputs, exclusive: bool, scales: bool, packed: bool, is_causal: bool) -> dict[str, Any]:
    return {
        "exclusive": exclusive,
        "strength": x.row() if scales and exclusive else None,
        "query_scale": x.row() if scales else None,
        "value_scale": x.kv_row() if scales else None,
        "cu_seqlens": torch.tensor([0, 100, 256], dtype=torch.int32) if packed else None,
        "is_causal": is_causal,
        "window": 128 if packed else None,
        "scale": 1.0,
        "eps": EPS,
    }


def decode_step(
    head_dim: int,
    dtype: torch.dtype,
    configs: dict[str, Config],
    *,
    exclusive: bool = True,
    scales: bool = False,
    mask: bool = False,
    num_splits: int = 1,
) -> None:
    x = Inputs(head_dim, dtype, num_heads=32, kv_heads=1)
    decode.decode(
        x.heads(1), x.kv(), x.kv(), x.kv(1) if exclusive else None,
        strength=x.row(1) if scales else None, query_scale=x.row(1) if scales else None,
        value_scale=x.kv_row() if scales else None,
        attn_mask=torch.ones(2, 1, 1, 256, dtype=torch.bool).expand(2, 32, 1, 256) if mask else None,
        scale=1.0, eps=EPS, config=configs["decode"], num_splits=num_splits,
    )  # fmt: skip


def inverse_temperature(
    head_dim: int, dtype: torch.dtype, configs: dict[str, Config], *, position: bool = True, is_backward: bool = False
) -> None:
    x = Inputs(head_dim, dtype)
    weight, logit = torch.zeros(x.num_heads, head_dim), torch.zeros(x.num_heads) if position else None
    number = torch.arange(1, x.tokens + 1).expand(x.batch_size, -1) if position else None
    if is_backward:
        temperature.inverse_temperature_backward(x.row(), x.heads(), weight, number, logit)
    else:
        temperature.inverse_temperature(x.heads(), weight, number, logit)


#: What a launcher takes from the configuration files; the others compute theirs.
CONFIGURED = {
    "attention_forward": ("attention_forward",),
    "attention_backward": ("attention_backward_key_value", "attention_backward_query"),
    "decode": ("decode",),
}
#: Launcher to variant to what launches it.
LAUNCHES: dict[str, dict[str, Launch]] = {
    "project": {
        "plain": project_forward,
        "strength, gate": partial(project_forward, strength=True, gate=True),
    },
    "project_backward": {
        "plain": project_backward,
        "strength, gate": partial(project_backward, strength=True, gate=True),
        "strength, from z": partial(project_backward, strength=True, from_z=True),
        "from z, dy": partial(project_backward, from_z=True, wanted="dy"),
        "from z, dv added": partial(project_backward, from_z=True, wanted="dv"),
    },
    "attention_forward": {
        "plain": partial(forward, exclusive=False),
        "exclusive": forward,
        "exclusive, scales": partial(forward, scales=True),
        "exclusive, scales, window, packed": partial(forward, scales=True, packed=True),
        "exclusive, bidirectional": partial(forward, is_causal=False),
    },
    "attention_backward": {
        "plain": partial(backward, exclusive=False),
        "exclusive": backward,
        "exclusive, scales": partial(backward, scales=True),
        "exclusive, scales, window, packed": partial(backward, scales=True, packed=True),
        "exclusive, bidirectional": partial(backward, is_causal=False),
    },
    "decode": {
        "plain": partial(decode_step, exclusive=False),
        "exclusive": decode_step,
        "exclusive, scales, mask": partial(decode_step, scales=True, mask=True),
        "exclusive, scales, mask, split": partial(decode_step, scales=True, mask=True, num_splits=2),
    },
    "temperature": {
        "token": partial(inverse_temperature, position=False),
        "token, position": inverse_temperature,
    },
    "temperature_backward": {
        "token": partial(inverse_temperature, position=False, is_backward=True),
        "token, position": partial(inverse_temperature, is_backward=True),
    },
}


def shipped() -> list[tuple[str, str, dict[str, Any]]]:
    """Target, file and kernels' configurations of every configuration file."""
    folder = resources.files("exsel.kernels.triton").joinpath("configs")
    contents = {Path(file.name).stem: read_json(Path(str(file))) for file in folder.iterdir()}
    defaults = contents.pop("defaults")
    found = [
        (target, "defaults", {kernel: by_target[target] for kernel, by_target in defaults.items()})
        for target in SHARED_MEMORY
    ]
    for name, tuned in sorted(contents.items()):
        (target,) = {target for word, target in CHIPS.items() if word in name}
        found.append((target, name, tuned))
    return found


def jobs(launchers: list[str], targets: list[str], head_dims: list[int], dtypes: list[str]) -> list[Job]:
    """Every variant with every configuration that a user of one of ``targets`` gets."""
    result = []
    for (target, source, configs), launcher, dtype, head_dim in product(shipped(), launchers, dtypes, head_dims):
        size, dim = str(getattr(torch, dtype).itemsize), str(padded(head_dim))
        needed = CONFIGURED.get(launcher, ())
        chosen = {name: configs[name][size][dim] for name in needed if dim in configs.get(name, {}).get(size, {})}
        if target not in targets or (source != "defaults" and not chosen):
            continue
        for name in needed:
            chosen.setdefault(name, default_config(name, head_dim, getattr(torch, dtype), target))
        result += [Job(launcher, variant, target, source, dtype, head_dim, chosen) for variant in LAUNCHES[launcher]]
    return result


def compile_job(job: Job) -> list[dict[str, Any]]:
    """A row for each kernel that the job launches."""
    launch = LAUNCHES[job.launcher][job.variant]
    dtype: torch.dtype = getattr(torch, job.dtype)
    binaries = compile_launches(lambda: launch(job.head_dim, dtype, job.configs), job.target)
    row = dataclasses.asdict(job)
    configs = row.pop("configs")
    return [
        {**row, **dataclasses.asdict(binary), "config": configs.get(binary.kernel.removesuffix("_kernel"))}
        for binary in binaries
    ]


def problems(rows: list[dict[str, Any]]) -> list[str]:
    """What is wrong, a line each."""
    found = []
    for row in rows:
        name = f"{row['kernel']} ({row['variant']}), {row['target']}, {row['dtype']}, head_dim {row['head_dim']}"
        if row["spilled_bytes"] and row["head_dim"] <= 128:
            found.append(f"{name}: spills {row['spilled_bytes']} bytes")
        if row["shared_bytes"] > (limit := SHARED_MEMORY[row["target"]]):
            found.append(f"{name}: {row['shared_bytes']} bytes of shared memory, of {limit}")
    return found


def print_row(row: dict[str, Any]) -> None:
    print(
        f"{row['kernel']:<38}{row['variant']:<36}{row['target']:<8}{row['dtype']:<10}{row['head_dim']:>4}"
        f"{row['registers']:>6}{row['spilled_bytes']:>8}{row['shared_bytes']:>8}  {row['config'] or ''}",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--launchers", nargs="+", default=list(LAUNCHES), choices=list(LAUNCHES))
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--head-dims", nargs="+", type=int, default=list(HEAD_DIMS))
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--jobs", type=int, default=2, help="processes that compile at the same time")
    parser.add_argument("--out", type=Path, help="folder of the results")
    arguments = parser.parse_args()

    rows = []
    todo = jobs(arguments.launchers, arguments.targets, arguments.head_dims, arguments.dtypes)
    print(f"{'kernel':<38}{'variant':<36}{'target':<8}{'dtype':<10}{'dim':>4}{'regs':>6}{'spilled':>8}{'shared':>8}")
    with multiprocessing.get_context("spawn").Pool(arguments.jobs) as pool:
        for compiled in pool.imap(compile_job, todo):
            rows += compiled
            for row in compiled:
                print_row(row)
    if arguments.out:
        write_json(arguments.out / f"kernel_resources_triton{triton.__version__}.json", rows)
    found = problems(rows)
    print("\n".join(["", f"{len(rows)} binaries, {len(found)} problems", *found]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
