"""``python -m gumba``: the same as the command ``gumba``."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    try:
        from gumba.cli.main import main

        code = main()
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)
