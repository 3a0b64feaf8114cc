"""Compile the kernels that the tests' models need, into the user's cache (GUMBA_CACHE_DIR): what runs beside lint in CI."""

from __future__ import annotations

from pathlib import Path

from gumba.runner.aot import compile_all

DATA = Path(__file__).resolve().parent.parent / "tests" / "data"


def main() -> None:
    for path in sorted(DATA.glob("arch_*.gguf")):
        compile_all(path)


if __name__ == "__main__":
    main()
