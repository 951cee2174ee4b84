"""The processes that train together: how they meet, agree, and end.

A launcher starts them (``torchrun``, ``accelerate launch``) and tells each its number through the environment. Without
a launcher there is one process.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from exsel.errors import ExselError

Result = TypeVar("Result")

# How long a process waits for the others, of which the first may be writing a large checkpoint.
_PATIENCE = timedelta(hours=1)
# What gloo and NCCL say when another process is gone.
_LOST = re.compile(r"gloo|NCCL|[Cc]onnection (closed|reset|refused)|Broken pipe|recvValue failed")


@dataclass(frozen=True, kw_only=True)
class Processes:
    """This process among those that train together: the first, of rank 0, writes and speaks for all.

    Args:
        rank, count: its number, and how many there are.
        local_rank, local_count: the same on its machine; the rank is also that of its GPU.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def share(self, sequences: int) -> int:
        """How many of so many sequences are this process's."""
        return sequences // self.count

    def first(self, work: Callable[[], Result]) -> Result:
        """Do something on the first process; all get its result, or raise its error."""
        outcome: list[Any] = [None, None]
        if self.is_first:
            try:
                outcome[0] = work()
            except (ExselError, OSError) as error:
                if self.count == 1:
                    raise
                outcome[1] = error
        if self.count > 1:
            dist.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise outcome[1]
        result: Result = outcome[0]
        return result

    def in_turn(self, work: Callable[[], Result]) -> Result:
        """Do something on the first process of each machine, then on its others, which find its files in the cache."""
        if self.local_rank:
            self.wait()
        result = work()
        if not self.local_rank:
            self.wait()
        return result

    def wait(self) -> None:
        """Wait until all are here."""
        self.largest(0)

    def largest(self, value: int) -> int:
        """The largest of all processes' values."""
        if self.count == 1:
            return value
        largest = torch.tensor(value)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def mean(self, values: list[float]) -> list[float]:
        """The means over the processes, of equally many values each."""
        if self.count == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return [value / self.count for value in total.tolist()]

    def gather(self, value: Result) -> list[Result]:
        """All processes' values, in their order."""
        values: list[Any] = [value]
        if self.count > 1:
            values *= self.count
            dist.all_gather_object(values, value)
        return values

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Send what the others than the first print nowhere."""
        if self.is_first:
            yield
            return
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
            yield


def current() -> Processes:
    """This process among those that have met."""
    if not dist.is_available() or not dist.is_initialized():
        return Processes()
    count = dist.get_world_size()
    return Processes(
        rank=dist.get_rank(),
        count=count,
        local_rank=int(os.environ.get("LOCAL_RANK", 0)),
        local_count=int(os.environ.get("LOCAL_WORLD_SIZE", count)),
    )


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """Meet the other processes that the launcher started, if it did and they have not met yet.

    On ``"cpu"`` they talk by gloo, on ``"cuda"`` by NCCL, each with a GPU of its own.

    Raises:
        ExselError: a device that they cannot share, or another process ended.
    """
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched == 1 or dist.is_initialized():
        with _or_lost():
            yield current()
        return
    if device == "cuda":
        local_rank, gpus = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
        if local_rank >= gpus:
            raise ExselError(f"this machine has {gpus} GPUs, and the launcher started more processes: start as many")
        torch.cuda.set_device(local_rank)
    elif device != "cpu":
        raise ExselError(f"--device {device} takes one process, and the launcher started {launched}")
    with _or_lost():
        dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timeout=_PATIENCE)
        yield current()
        # After an error it stays: the others must not see this process end before it has said why.
        dist.destroy_process_group()


@contextmanager
def _or_lost() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not _LOST.search(str(error)):
            raise
        raise ExselError(
            "another process of this run has ended, and all end with it: go on from the last checkpoint with --resume"
        ) from error


def speaks() -> bool:
    """Whether this process is the first of all that has something to say when it ends in an error."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return True
    key = f"exsel/said/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    try:
        store = dist.TCPStore(  # type: ignore[attr-defined]
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=timedelta(seconds=5),
        )
        return store.add(key, 1) == 1
    except (KeyError, ValueError, RuntimeError) as error:
        # Better said twice than not at all.
        print(f"exsel: the launcher cannot be reached ({error!r:.80})", file=sys.stderr)
        return True
