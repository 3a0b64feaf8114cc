"""A model, and its draft model, which may be unloaded and loaded again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gumba.errors import ModelError
from gumba.gguf import GGUFFile
from gumba.llm.engine_config import EngineConfig
from gumba.runner.load import LoadConfig, load_model
from gumba.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gumba.runner.load import Model


class ReloadableModel:
    """The model of an open file, and its draft model.

    Args:
        gguf: The model file.
        tokenizer: Its tokenizer.
        config: The settings.
        progress: Called with the loaded fraction, 0 to 1.

    Attributes:
        model: The loaded model; another object after each ``load``.
        draft: The loaded draft model; None if the settings have none.

    Raises the errors of ``load_model``, and ModelError if the vocabulary does not fit the model, or the draft model's differs.
    """

    model: Model
    draft: Model | None

    def __init__(
        self, gguf: GGUFFile, tokenizer: Tokenizer, config: EngineConfig, progress: Callable[[float], None] | None
    ) -> None:
        self._gguf, self._tokenizer, self._config = gguf, tokenizer, config
        # Absolute, since it may be loaded again after a change of the working directory.
        self._draft_path = None if config.draft_model is None else Path(config.draft_model).absolute()
        self.load(progress)
        self._config = _same_sizes(config, self.model)

    def load(self, progress: Callable[[float], None] | None = None) -> list[Model]:
        """Load the model, then its draft model; returns both in this order."""
        model = load_model(self._gguf, self._config.load, progress=progress)
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
                raise ModelError(f"{path}: a draft model must have the same vocabulary as the model that it drafts for")
            n_ctx_train = gguf.get(f"{gguf.require('general.architecture', str)}.context_length", int, 1)
            settings = LoadConfig(n_ctx=min(model.n_ctx, n_ctx_train), portable=self._config.load.portable)
            draft = load_model(gguf, settings, team=model.team)
            if not draft.config.causal or draft.config.n_labels or draft.config.start_token is not None:
                draft.close()
                raise ModelError(f"{path}: a draft model must have logits; this one is an encoder or a classifier")
            return draft


def _same_sizes(config: EngineConfig, model: Model) -> EngineConfig:
    """``config`` with the sizes of ``model``: it is loaded again with these, whatever memory is available then."""
    kv, states = model.kv, model.states
    load = replace(
        config.load,
        n_ctx=model.n_ctx,
        n_threads=model.n_threads,
        kv_tokens=kv.n_pages * kv.page_tokens,
        kv_memory=None,
        n_states=config.load.n_states if states is None else states.n_slots,
    )
    return replace(config, load=load)
