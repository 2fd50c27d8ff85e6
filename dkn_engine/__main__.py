"""``python -m dkn_engine``."""

from __future__ import annotations

import sys

from dkn_engine.cli import main

if __name__ == "__main__":
    sys.exit(main())
