"""Write docs/models.md: the architectures that run, and the checkpoints that are converted, as the registries have them.

    python tools/write_models_page.py

Run it when an architecture or a family of checkpoints is added; a test compares the page with the registries.
"""

from __future__ import annotations

from pathlib import Path

from gumba.models import ARCHITECTURES
from gumba_convert import families

PAGE = Path(__file__).parent.parent / "docs" / "models.md"
HEAD = """# Models

Written by `tools/write_models_page.py`; `gumba models` prints the first table.

## Architectures that run

By the name that GGUF files have (`general.architecture`). "Same numbers as": whose logits, hidden states or scores this
project's are equal to, on tiny random models whose prompts pass a page of the KV cache and the windows that a model has.

LongRoPE (`phi3`): which of the two sets of factors is used depends on the context that is asked for (`n_ctx`, `-c`), as in
llama.cpp; transformers chooses by the length of the text. In a context longer than the model's original one, shorter texts
therefore give other numbers than there.

| architecture | models | same numbers as |
| --- | --- | --- |
"""
CHECKPOINTS = """
## Checkpoints that are converted

By the class that `config.json` names in `architectures`; folders, ids on the Hugging Face hub (`owner/name`) and on ModelScope
(`modelscope:owner/name`), with weights in safetensors.

| family | classes |
| --- | --- |
"""


def page() -> str:
    """The whole page."""
    rows = [f"| `{name}` | {each.FAMILIES} | {', '.join(each.VERIFIED)} |\n" for name, each in ARCHITECTURES.items()]
    read = [
        f"| {each.__name__.rpartition('.')[2]} | {', '.join(f'`{name}`' for name in each.HF_ARCHITECTURES)} |\n"
        for each in families.MODULES
    ]
    return HEAD + "".join(rows) + CHECKPOINTS + "".join(read)


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
