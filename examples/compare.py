"""Does it help on your data? Two small models, plain and exclusive, trained on the same bytes; what came of it."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

# --8<-- [start:train]
folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(), "comparison")
subprocess.run(
    [
        *(sys.executable, "-m", "exsel", "compare"),
        *("--variants", "baseline,exclusive"),  # baseline, exclusive, selective, exclusive+selective
        # --data notes/*.txt: your own text; without it, Python's own source
        *("--tokens", "2048", "--seq-len", "64", "--batch-size", "4"),  # --tokens 500k says something
        *("--seeds", "0,1"),  # one seed tells nothing
        *("--evaluations", "4", "--evaluation-blocks", "8"),
        *("--no-compile", "--out", str(folder)),  # compiling pays from some hundred steps on
    ],
    check=True,
)
# --8<-- [end:train]

# --8<-- [start:read]
results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
for row in results["variants"]:
    loss = row["loss"]  # over the seeds, with its 95% interval
    print(f"{row['variant']:12} loss {loss['mean']:.4f} ({loss['low']:.4f} to {loss['high']:.4f})")
# --8<-- [end:read]
assert (folder / "report.html").is_file()
