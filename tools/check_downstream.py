"""Run packages written for llama-cpp-python with gumba.compat.llama_cpp as their module ``llama_cpp``.

    python tools/check_downstream.py MODEL.gguf [--only NAME] [--environments FOLDER] [--write docs/compat.md]

Each package gets a virtual environment of its own with all that it depends on, except llama-cpp-python, and with gumba from
this repository; tools/downstream_jobs.py then does a small job there. Environments in FOLDER are kept and used again.
``--write`` replaces the table in a page of docs/, between its two marker lines. Exit code 1 when a job fails.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
#: Distribution -> requirements besides its own dependencies.
PACKAGES: dict[str, tuple[str, ...]] = {
    "langchain-community": (),
    "llama-index-llms-llama-cpp": (),
    "llama-cpp-haystack": (),
    "instructor": (),
    "outlines": ("numpy",),
    "guidance": (),
}
PEER = "llama-cpp-python"
BEGIN, END = "<!-- downstream: begin -->", "<!-- downstream: end -->"


def environment(folder: Path, package: str) -> Path:
    """The Python of the package's environment, which is created if it does not exist."""
    home = folder / package
    python = home / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    done = home / "installed"
    if done.exists():
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
    report = home / "report.json"
    pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    subprocess.run([*pip, "--dry-run", "--report", report, package, *PACKAGES[package]], check=True)
    found = [each["metadata"] for each in json.loads(report.read_text(encoding="utf-8"))["install"]]
    wanted = [f"{each['name']}=={each['version']}" for each in found if each["name"].replace("_", "-") != PEER]
    # Before gumba: guidance pins a version of llguidance, which gumba's extra then replaces by one that it takes.
    subprocess.run([*pip, "--no-deps", *wanted], check=True)
    subprocess.run([*pip, f"{ROOT}[structured]"], check=True)
    subprocess.run([python, "-m", "pip", "--quiet", "uninstall", "--yes", "gumba"], check=True)
    sources = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    Path(sources, "gumba_checkout.pth").write_text(f"{ROOT / 'runtime'}\n{ROOT / 'convert'}\n", encoding="utf-8")
    done.write_text("", encoding="utf-8")
    return python


def run(python: Path, package: str, model: str) -> dict[str, Any]:
    """The report of tools/downstream_jobs.py: versions, and each job's result or error."""
    command = [str(python), str(ROOT / "tools" / "downstream_jobs.py"), package, model]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        return {"versions": {}, "jobs": {"start": f"failed: {done.stderr.strip().splitlines()[-1:]}"}}
    report: dict[str, Any] = json.loads(lines[-1])
    return report


def table(reports: dict[str, dict[str, Any]]) -> str:
    """The reports in Markdown."""
    lines = ["| package | version | what was run | result |", "| --- | --- | --- | --- |"]
    for package, report in reports.items():
        version = report["versions"].get(package, "?")
        lines += [f"| {package} | {version} | {job} | {result} |" for job, result in report["jobs"].items()]
    return "\n".join(lines)


def write(page: Path, text: str) -> None:
    """Put ``text`` between the marker lines of ``page``."""
    old = page.read_text(encoding="utf-8")
    before, rest = old.split(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--only", help="one package")
    parser.add_argument("--environments", type=Path, help="folder of environments to keep")
    parser.add_argument("--write", type=Path, help="page of docs/ whose table to replace")
    args = parser.parse_args()
    reports = {}
    with tempfile.TemporaryDirectory() as temporary:
        for package in [args.only] if args.only else PACKAGES:
            python = environment(args.environments or Path(temporary), package)
            reports[package] = run(python, package, str(Path(args.model).resolve()))
            print(package, json.dumps(reports[package], indent=2, ensure_ascii=False), flush=True)
    text = table(reports)
    print(text)
    if args.write:
        write(args.write, text)
    return int(any(result.startswith("failed") for report in reports.values() for result in report["jobs"].values()))


if __name__ == "__main__":
    sys.exit(main())
