"""``AutoTokenizer`` and ``AutoModelForCausalLM``: load a tokenizer or a model by name."""

from __future__ import annotations

from os import PathLike

from gumba.chat.template import ChatTemplate
from gumba.compat.transformers.loading import found_file, split_keywords
from gumba.compat.transformers.model import PretrainedConfig, PreTrainedModel, opened
from gumba.compat.transformers.tokenizer import ROLES, PreTrainedTokenizer
from gumba.errors import EngineError, UnsupportedError
from gumba.gguf import GGUFFile
from gumba.llm.llm import LLM
from gumba.tokenizer.tokenizer import Tokenizer
from gumba.validation import show

_TOKENIZER_KEYWORDS = frozenset({
    "padding_side", "truncation_side", "model_max_length", "chat_template", "add_bos_token", "add_eos_token",
    *(f"{role}_token" for role in ROLES),
})  # fmt: skip


class _Auto:
    """Base of the classes that only load."""

    def __init__(self) -> None:
        raise EngineError(f"{type(self).__name__} is loaded with from_pretrained(name), not called")


class AutoTokenizer(_Auto):
    """Loads tokenizers."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | PathLike[str], *_: object, **options: object
    ) -> PreTrainedTokenizer:
        """The tokenizer of a GGUF file, a folder, a hub id or a known name.

        Args:
            pretrained_model_name_or_path: The model. A checkpoint is converted once and kept, with its weights.
            options: ``gguf_file``, ``revision``, ``token``, ``padding_side``, ``truncation_side``, ``model_max_length``,
                ``chat_template``, and ``pad_token`` and so on, texts of the vocabulary.

        Raises:
            RequestError: There is no such model, or a keyword is unknown or wrong.
            UnsupportedError: A keyword would change results and is not supported.
            TokenizerError: The vocabulary is inconsistent.
        """
        naming, rest = split_keywords(options, _TOKENIZER_KEYWORDS)
        with GGUFFile(found_file(pretrained_model_name_or_path, naming)) as file:
            backend = Tokenizer.from_gguf(file)
            trained = file.metadata.get(f"{file.metadata.get('general.architecture')}.context_length")
            metadata = _Metadata(file)
        for name, same in (("add_bos_token", backend.add_bos), ("add_eos_token", backend.add_eos)):
            if rest.get(name) not in (None, same):
                raise UnsupportedError(f"{name}: the model file has {same}, found {show(rest[name])}")
        chosen = {name: rest[name] for name in ("padding_side", "truncation_side", "model_max_length") if name in rest}
        if isinstance(trained, int) and trained > 0:
            chosen.setdefault("model_max_length", trained)
        tokenizer = PreTrainedTokenizer(
            backend,
            lambda: ChatTemplate.from_gguf(metadata, backend),  # type: ignore[arg-type]
            tool_template=lambda: ChatTemplate.from_gguf(metadata, backend, "tool_use"),  # type: ignore[arg-type]
            name_or_path=str(pretrained_model_name_or_path),
            **chosen,
        )
        if rest.get("chat_template") is not None:
            tokenizer.chat_template = rest["chat_template"]
        for role in ROLES:
            if rest.get(f"{role}_token") is not None:
                setattr(tokenizer, f"{role}_token", rest[f"{role}_token"])
        return tokenizer


class _Metadata:
    """The metadata of a closed file, which a chat template is read from."""

    def __init__(self, file: GGUFFile) -> None:
        names = ("general.", "tokenizer.chat_template")
        self.path = file.path
        self.metadata = {key: value for key, value in file.metadata.items() if key.startswith(names)}


class AutoConfig(_Auto):
    """Loads sizes and special tokens."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | PathLike[str], *_: object, **options: object
    ) -> PretrainedConfig:
        """The configuration of a GGUF file, folder, hub id or known name; ``options`` as of ``AutoTokenizer.from_pretrained``.

        Raises RequestError when there is no such model, UnsupportedError for values of the configuration's own.
        """
        naming, _ignored = split_keywords(options, frozenset())
        with GGUFFile(found_file(pretrained_model_name_or_path, naming)) as file:
            return PretrainedConfig(file.metadata, Tokenizer.from_gguf(file), str(pretrained_model_name_or_path))


class AutoModelForCausalLM(_Auto):
    """Loads models that continue a text."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | PathLike[str], *_: object, **options: object
    ) -> PreTrainedModel:
        """The model of a GGUF file, a folder, a hub id or a known name.

        Args:
            pretrained_model_name_or_path: The model. A checkpoint is converted once and kept.
            options: ``gguf_file``, ``revision``, ``token``, and keywords of ``LLM`` (``n_ctx``, ``kv_memory`` ...).
                ``torch_dtype``, ``device_map``, ``attn_implementation`` and the like have no effect.

        Raises:
            RequestError: There is no such model, or a keyword is unknown or wrong.
            UnsupportedError: The model is of another kind, or a keyword would change results and is not supported.
        """
        return _checked(opened(pretrained_model_name_or_path, options), False)


class AutoModelForSeq2SeqLM(_Auto):
    """Loads encoder-decoders."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | PathLike[str], *_: object, **options: object
    ) -> PreTrainedModel:
        """As ``AutoModelForCausalLM.from_pretrained``, for encoder-decoders: ``generate`` returns answers alone."""
        return _checked(opened(pretrained_model_name_or_path, options), True)


def _checked(model: PreTrainedModel, encoder_decoder: bool) -> PreTrainedModel:
    config = model.llm.model.config
    if not config.causal or config.n_labels or model.config.is_encoder_decoder != encoder_decoder:
        model.close()
        if not config.causal or config.n_labels:
            raise UnsupportedError(
                f"this {config.architecture} model does not generate text: use gumba.LLM's embed, classify or rerank"
            )
        right = "AutoModelForSeq2SeqLM" if not encoder_decoder else "AutoModelForCausalLM"
        raise UnsupportedError(f"this {config.architecture} model is loaded with {right}")
    return model


def tokenizer_of(llm: LLM, name_or_path: str = "") -> PreTrainedTokenizer:
    """The tokenizer of a loaded model, with the template that it was loaded with."""
    return PreTrainedTokenizer(
        llm.tokenizer,
        lambda: llm.chat_template,
        tool_template=lambda: llm.tool_template,
        name_or_path=name_or_path,
        model_max_length=llm.model.config.n_ctx_train,
    )
