"""Programs in processes of their own, which begin with torch and transformers imported and exsel not.

A server has imported them once and forks: this takes a tenth of a second, where a new interpreter takes six.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["transformers.models.llama.modeling_llama", "transformers.models.gpt2.modeling_gpt2"])


def run_forked(code: str, *arguments: str, environments: Sequence[Mapping[str, str]] = ({},)) -> str:
    """What programs print that run at the same time, one in each of the environments; an error in one fails the test.

    Args:
        code: the source of the program, which has the arguments in ``sys.argv[1:]``.
        environments: the variables that each has beside those of this process.
    """
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder, str(index)) for index in range(len(environments))]
        processes = [
            _CONTEXT.Process(target=_run, args=(code, arguments, dict(environment), output))
            for environment, output in zip(environments, outputs, strict=True)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(240)
        for process, output in zip(processes, outputs, strict=True):
            process.kill()
            errors = output.with_suffix(".err")
            assert process.exitcode == 0, errors.read_text() if errors.exists() else process.exitcode
        return "".join(output.read_text() for output in outputs)


def run_ranks(code: str, *arguments: str) -> str:
    """As :func:`run_forked`, in two processes that torch.distributed joins by the variables that torchrun sets."""
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    ranks = [
        {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        for rank in range(2)
    ]
    return run_forked(f"import torch\ntorch.set_num_threads(1)\n{code}", *arguments, environments=ranks)


def _run(code: str, arguments: Sequence[str], environment: Mapping[str, str], output: Path) -> None:
    for path, stream in ((output, 1), (output.with_suffix(".err"), 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
    os.environ.update(environment)
    sys.argv[1:] = arguments
    exec(code, {"__name__": "__main__"})
