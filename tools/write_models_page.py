"""Update docs/models.md: the tables of supported architectures and of convertible checkpoints, as the registries list them.

    python tools/write_models_page.py

Run it after adding an architecture or a family of checkpoints; a test compares the tables with the registries.
"""

from __future__ import annotations

import re
from pathlib import Path

from gumba.models.registry import ARCHITECTURES
from gumba_convert import families

PAGE = Path(__file__).parent.parent / "docs" / "models.md"
ARCHITECTURE_HEADER = "| architecture | models | same numbers as |\n| --- | --- | --- |\n"
FAMILY_HEADER = "| family | classes |\n| --- | --- |\n"


def page(text: str) -> str:
    """``text``, the page, with the rows of both tables replaced by those of the registries."""
    architectures = [
        f"| `{name}` | {module.FAMILIES} | {', '.join(module.VERIFIED)} |\n" for name, module in ARCHITECTURES.items()
    ]
    classes = [
        f"| {module.__name__.rpartition('.')[2]} | {', '.join(f'`{name}`' for name in module.HF_ARCHITECTURES)} |\n"
        for module in families.MODULES
    ]
    return _replace_rows(_replace_rows(text, ARCHITECTURE_HEADER, architectures), FAMILY_HEADER, classes)


def _replace_rows(text: str, header: str, rows: list[str]) -> str:
    new, count = re.subn(rf"({re.escape(header)})(?:\|.*\n)*", lambda match: match[1] + "".join(rows), text)
    if count != 1:
        raise SystemExit(f"{PAGE}: {count} tables with the header {header.splitlines()[0]!r}, expected 1")
    return new


def main() -> None:
    """Rewrite the page."""
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
