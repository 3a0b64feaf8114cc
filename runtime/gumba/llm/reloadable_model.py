"""A model, and the smaller one that drafts for it, which may be unloaded and loaded again."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gumba.errors import ModelError
from gumba.gguf import GGUFFile
from gumba.runner.load import load_model
from gumba.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gumba.runner.load import Model


class ReloadableModel:
    """``model`` of an open file, with ``options`` as of ``load_model``; ``draft``, None without a ``draft_path``.

    Raises what ``load_model`` does, and ModelError when vocabulary and model do not fit, or the two vocabularies.
    """

    model: Model
    draft: Model | None

    def __init__(
        self,
        gguf: GGUFFile,
        tokenizer: Tokenizer,
        draft_path: str | PathLike[str] | None,
        progress: Callable[[float], None] | None,
        **options: Any,
    ) -> None:
        self._gguf, self._tokenizer, self._options = gguf, tokenizer, options
        # Absolute, since it may be loaded again after a change of folder.
        self._draft_path = None if draft_path is None else Path(draft_path).absolute()
        self.load(progress)
        # The second time the same memory, whatever the machine then has to spare.
        for name in ("n_ctx", "n_threads"):
            self._options[name] = getattr(self.model, name)
        kv = self.model.kv
        self._options |= {"kv_tokens": kv.n_pages * kv.page_tokens, "kv_memory": None}
        if self.model.states is not None:
            self._options["n_states"] = self.model.states.n_slots

    def load(self, progress: Callable[[float], None] | None = None) -> list[Model]:
        """Load both; the model first, then what drafts for it."""
        model = load_model(self._gguf, progress=progress, **self._options)
        try:
            if self._tokenizer.n_vocab > model.config.n_vocab:
                raise ModelError(
                    f"{self._gguf.path}: the vocabulary has {self._tokenizer.n_vocab} tokens, "
                    f"the model has logits for {model.config.n_vocab}"
                )
            draft = None if self._draft_path is None else self._load_draft(model, self._draft_path)
        except BaseException:
            model.close()
            raise
        self.model, self.draft = model, draft
        return [model] if draft is None else [model, draft]

    def _load_draft(self, model: Model, path: Path) -> Model:
        with GGUFFile(path) as gguf:
            if not self._tokenizer.same_vocabulary(Tokenizer.from_gguf(gguf)):
                raise ModelError(f"{path}: a draft model must have the same vocabulary as the model it drafts for")
            trained = gguf.get(f"{gguf.require('general.architecture', str)}.context_length", int, 1)
            draft = load_model(gguf, n_ctx=min(model.n_ctx, trained), team=model.team)
            if not draft.config.causal or draft.config.n_labels or draft.config.start_token is not None:
                draft.close()
                raise ModelError(f"{path}: a draft model must have logits; this one is an encoder or judges texts")
            return draft
