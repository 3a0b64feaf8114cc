"""Make the same calls to gumba.compat.llama_cpp and to llama-cpp-python, and compare the results case by case.

    python tools/compat_check.py MODEL.gguf --peer PYTHON

PYTHON is an interpreter with llama-cpp-python 0.3 (and numpy); gumba runs in the interpreter that runs this. Each side is a
process of its own that prints one JSON object per case: a result, or the built-in kinds of the exception. Identifiers,
times and addresses are left out. Exit code 1 when a case differs without being listed in EXPECTED.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from typing import Any

import compat_cases_more  # noqa: F401 (its cases register themselves)
import compat_cases_surface  # noqa: F401
from compat_cases import CASES

#: Cases that differ, and why.
EXPECTED = {
    "detokenize": "there tokens of more than 32 bytes are lost",
    "completion_empty_prompt": "begins with BOS here; there an assertion fails",
    "completion_suffix": "appended here, as documented; there token 0 is put around it",
    "grammar_malformed": "an error here; there the process crashes",
    "logprobs_echo": "there shifted by one for models without BOS, and the last token is missing",
    "generate_send": "there the process crashes",
    "pickling": "refused here",
    "embeddings_of_bytes": "a TypeError here, an AttributeError from inside there",
}
#: How far log-probabilities may lie apart: arithmetic differs.
TOLERANCE = 0.3


def kinds(error: BaseException) -> list[str]:
    """The built-in classes of an exception, without those that all have."""
    found = [each.__name__ for each in type(error).__mro__ if each.__module__ == "builtins"]
    return [name for name in found if name not in ("Exception", "BaseException", "object")]


def run_all(module: str, path: str, names: list[str]) -> None:
    """One line of JSON per case."""
    lib = importlib.import_module(module)
    for name in names:
        try:
            found = {"value": CASES[name](lib, path)}
        except Exception as error:
            found = {"error": kinds(error), "text": f"{type(error).__name__}: {error}"[:160]}
        print(
            json.dumps([name, found], default=lambda value: float(value) if hasattr(value, "dtype") else repr(value)),
            flush=True,
        )


def results(python: str, module: str, path: str, only: str) -> dict[str, Any]:
    """Results by case of a child process; of several, where a case kills it."""
    environment = {
        name: value for name, value in os.environ.items() if name != "PYTHONPATH" or module.startswith("gumba")
    }
    found: dict[str, Any] = {}
    names = [name for name in CASES if only in name]
    while left := [name for name in names if name not in found]:
        command = [python, __file__, path, "--run", module, "--cases", *left]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        found |= dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith('["'))
        if done.returncode:
            killer = next(name for name in names if name not in found)
            found[killer] = {"error": ["crash"], "text": f"the process ended with exit code {done.returncode}"}
    return found


def agree(ours: Any, theirs: Any) -> bool:
    """Equal values; for errors, ours is also of each kind that theirs is."""
    if ours is None or theirs is None or ("error" in ours) != ("error" in theirs):
        return False
    if "error" in theirs:
        return set(theirs["error"]) <= set(ours["error"])
    return equal(ours["value"], theirs["value"])


def equal(ours: Any, theirs: Any) -> bool:
    """The same value, to any depth; fractions within TOLERANCE."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(equal(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(equal, ours, theirs))
    if isinstance(ours, float) and isinstance(theirs, float):
        return ours == theirs or abs(ours - theirs) <= TOLERANCE
    return bool(ours == theirs)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--peer", help="Python interpreter with llama-cpp-python")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--cases", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("-v", action="store_true", help="show what differs")
    args = parser.parse_args()
    if args.run:
        run_all(args.run, args.model, args.cases)
        return 0
    if not args.peer:
        parser.error("--peer is needed")
    theirs = results(args.peer, "llama_cpp", args.model, args.only)
    ours = results(sys.executable, "gumba.compat.llama_cpp", args.model, args.only)
    surprises = 0
    names = [name for name in CASES if args.only in name]
    for name in names:
        same = agree(ours.get(name), theirs.get(name))
        reason = "" if same else EXPECTED.get(name, "")
        surprises += not same and not reason
        print(f"{name:40} {'same' if same else 'different'}{f' ({reason})' if reason else ''}")
        if args.v and not same:
            print(f"    theirs: {json.dumps(theirs.get(name))[:1200]}\n    ours:   {json.dumps(ours.get(name))[:1200]}")
    n_same = sum(agree(ours.get(name), theirs.get(name)) for name in names)
    print(
        f"{len(names)} cases: {n_same} same, {len(names) - n_same - surprises} different as expected, {surprises} otherwise"
    )
    return 1 if surprises else 0


if __name__ == "__main__":
    sys.exit(main())
