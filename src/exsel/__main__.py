"""``python -m exsel``: the command line."""

from __future__ import annotations

import sys

from exsel.cli import main

sys.exit(main())
