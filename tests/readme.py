"""The Python examples of the README."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def python_examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
