"""docs/architecture.md and the other pages that name source files: the files exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [DOCS / "architecture.md", DOCS / "glossary.md", *sorted((DOCS / "contributing").glob("*.md"))]
#: Paths in the pages are relative to one of these.
ROOTS = [ROOT, ROOT / "runtime" / "gumba", ROOT / "convert" / "gumba_convert"]


def source(path: str) -> Path | None:
    return next((root / path for root in ROOTS if (root / path).is_file()), None)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_source_files_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    outside_code = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    paths = re.findall(r"`([\w/.-]+\.py)`", outside_code)
    missing = [path for path in paths if "NAME" not in path and source(path) is None]
    assert missing == []
