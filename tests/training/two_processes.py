"""What ``test_processes.py`` starts two of: ``torchrun --nproc-per-node 2 two_processes.py FOLDER``."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

from torch.distributed.tensor import DTensor

from exsel.training.processes import joined
from exsel.training.run import Interrupted, train_run
from training.small_runs import Watcher, everything_at_once, float64_model, small_data


def main(home: Path) -> None:
    """Runs with copies of the model, divided, and divided in each of two "machines"; the first two also stopped."""
    data = small_data(home / "corpus", pack="isolate")
    with joined("cpu") as processes:
        for name in ("copies", "shard", "machines"):
            settings = everything_at_once(home / "model.json", shard=name != "copies")
            if name == "machines":
                os.environ["LOCAL_WORLD_SIZE"] = "1"
            model = float64_model(settings, data)
            train_run(settings, data, home / name, name=name, progress=Watcher(), model=model)
            assert all(isinstance(parameter, DTensor) == settings.shard for parameter in model.parameters())

            if name == "machines":
                return
            folder = home / f"{name}-stopped"
            # The second process alone is told to stop.
            watcher = Watcher(after=6, action=terminate) if processes.rank == 1 else Watcher()
            try:
                model = float64_model(settings, data)
                train_run(settings, data, folder, name=name, progress=watcher, model=model)
            except Interrupted as stop:
                stopped_after = stop.step
            assert stopped_after == 7
            processes.first(lambda folder=folder: shutil.copytree(folder, f"{folder}-copy"))
            model = float64_model(settings, data)
            train_run(settings, data, folder, name=name, progress=Watcher(), resume=True, model=model)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
