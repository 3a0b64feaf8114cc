"""Compare the vectors of an embedding model with sentence-transformers': minimum and mean cosine over varied texts.

    python tools/check_embedding.py FOLDER --torch PYTHON [--types f16 q8_0] [--prompts query document] [--least 0.999]

`FOLDER` is a sentence-transformers model; `--torch` an interpreter with torch and sentence-transformers; this one has gumba. The
texts are short and longer than 512 tokens, prose and code, in a dozen languages; each goes in without a prompt, with the model's
default one, and with those that are named. Texts are cut where sentence-transformers cuts them. A cosine below `--least` ends
with exit code 1.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

#: Instead of a prompt's name.
DEFAULT = "(default)"
CODE = '''def merge(left: list[int], right: list[int]) -> list[int]:
    """Merge two sorted lists."""
    merged, i, j = [], 0, 0
    while i < len(left) and j < len(right):
        if left[i] <= right[j]:
            merged.append(left[i]); i += 1
        else:
            merged.append(right[j]); j += 1
    return merged + left[i:] + right[j:]
'''
PROSE = (
    "The river rose in the night, and by morning the lower fields lay under a brown sheet of water. No one in the village had "
    "seen it so high since the year the old bridge was carried away, and the miller, who kept a row of notches on his door, cut "
    "a new one a hand's breadth above the rest. "
)
TEXTS = [
    "Which planet is known as the Red Planet?",
    "Mars, known for its reddish appearance, is often referred to as the Red Planet.",
    "a",
    "Hello, world!",
    "WHAT?! 3.14159 -- isn't it?   (see   p. 42)\n\n\tindented",
    "Der Fluss stieg in der Nacht, und am Morgen standen die unteren Wiesen unter Wasser.",
    "Le chat était assis près de la fenêtre et regardait tomber la neige ; il n'avait pas faim.",
    "¿Dónde está la biblioteca más cercana a la estación?",
    "Быстрая коричневая лиса прыгает через ленивую собаку.",
    "今日はとても良い天気ですね。散歩に行きましょう。",
    "机器学习是人工智能的一个分支,研究如何让计算机从数据中学习。",
    "오늘 저녁에는 무엇을 먹을까요?",
    "अब रात हो गई है और बारिश हो रही है।",
    "الطقس جميل اليوم في المدينة القديمة",
    "Πού είναι το τεμπέλικο σκυλί;",
    "วันนี้อากาศดีมาก",
    "Giỏi lắm! Tiếng Việt có dấu.",
    "🙂 emoji 👩‍👩‍👧‍👦 and ﬁligature, ½ and № 5",
    CODE,
    "SELECT name, COUNT(*) FROM orders WHERE total > 100 GROUP BY name ORDER BY 2 DESC;",
    PROSE,
    PROSE * 4,
    PROSE * 12,
    PROSE * 40,
    CODE * 8,
]


def reference(folder: str, prompts: list[str], out: Path) -> None:
    """The vectors of sentence-transformers, float32, one array per prompt."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, device="cpu", model_kwargs={"dtype": "float32"})
    lengths = [len(model.tokenizer(text, truncation=False)["input_ids"]) for text in TEXTS]
    print(
        f"{len(TEXTS)} texts of {min(lengths)} to {max(lengths)} tokens; the longest that counts: {model.max_seq_length}"
    )
    ways: dict[str, dict[str, str]] = {"": {"prompt": ""}} | {name: {"prompt_name": name} for name in prompts}
    if model.default_prompt_name is not None:
        ways[DEFAULT] = {}
    found = {name: model.encode(TEXTS, normalize_embeddings=True, batch_size=1, **way) for name, way in ways.items()}
    np.savez(out, **{f"prompt {name}": values for name, values in found.items()})


def main() -> int:
    """Convert, compute both, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--torch", default=sys.executable, help="interpreter with torch and sentence-transformers")
    parser.add_argument("--types", nargs="+", default=["f16", "q8_0"])
    parser.add_argument("--prompts", nargs="*", default=[], help="names of the model's prompts")
    parser.add_argument("--least", type=float, default=0.0, help="fail below this cosine")
    parser.add_argument("--reference", type=Path, help="file of sentence-transformers' vectors, created if missing")
    parser.add_argument("--stage", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        reference(arguments.folder, arguments.prompts, arguments.reference)
        return 0
    from gumba import LLM
    from gumba_convert import convert

    worst = 1.0
    with tempfile.TemporaryDirectory() as temporary:
        path = arguments.reference or Path(temporary) / "reference.npz"
        if not path.exists():
            stage = ["--stage", "--reference", str(path), "--prompts", *arguments.prompts]
            subprocess.run([arguments.torch, __file__, arguments.folder, *stage], check=True)
        with np.load(path) as stored:
            wanted = {name.removeprefix("prompt "): stored[name] for name in stored.files}
        for kind in arguments.types:
            file = Path(temporary) / f"{kind}.gguf"
            report = convert(arguments.folder, file, type=kind)
            for warning in report.warnings:
                print(f"{kind}: {warning}")
            with LLM(file) as llm:
                for name, vectors in wanted.items():
                    began = time.perf_counter()
                    prompt = None if name == DEFAULT else name
                    found = llm.embed(TEXTS, prompt=prompt, truncate=True).astype(np.float64)
                    cosines = (
                        (found * vectors).sum(axis=1) / np.linalg.norm(found, axis=1) / np.linalg.norm(vectors, axis=1)
                    )
                    print(
                        f"{kind} {report.n_bytes / 1e6:.0f} MB, prompt {name!r}: cosine at least {cosines.min():.6f} "
                        f"(text {int(cosines.argmin())}), mean {cosines.mean():.6f}; {time.perf_counter() - began:.1f} s"
                    )
                    worst = min(worst, float(cosines.min()))
            file.unlink()
    return int(worst < arguments.least)


if __name__ == "__main__":
    sys.exit(main())
