"""``python -m gumba``: the same as the command ``gumba``."""

from __future__ import annotations

import sys

from gumba.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
