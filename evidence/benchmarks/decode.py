"""What attention of one token on a cache costs; see ``evidence/benchmarks/attention.py``.

python -m evidence.benchmarks.decode [--part NAME] [--device cpu|cuda] [other flags of exsel bench]
"""

from __future__ import annotations

import sys

from evidence.benchmarks.attention import measure_and_keep

if __name__ == "__main__":
    sys.exit(measure_and_keep("decode", ["decode"], sys.argv[1:]))
