"""What one transformer block and a whole training step cost; see ``evidence/benchmarks/attention.py``.

python -m evidence.benchmarks.block [--part NAME] [--device cpu|cuda] [other flags of exsel bench]
"""

from __future__ import annotations

import sys

from evidence.benchmarks.attention import measure_and_keep

if __name__ == "__main__":
    sys.exit(measure_and_keep("block", ["block"], sys.argv[1:]))
