"""A tokenizer with the methods of transformers' fast tokenizers, for the vocabulary and chat template of a GGUF file."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from gumba.chat.template import ChatTemplate, encode_chat, until_final_message
from gumba.compat.transformers.arrays import BatchEncoding, id_columns, listed, tensor_kind, tensors
from gumba.compat.transformers.tools import schemas
from gumba.errors import RequestError, TemplateError, UnsupportedError
from gumba.tokenizer.tokenizer import Tokenizer
from gumba.validation import KeywordError, require_count, show, suggestion

log = logging.getLogger("gumba.compat.transformers")

#: Roles of special tokens.
ROLES = ("bos", "eos", "unk", "pad", "sep", "cls", "mask")
#: Keywords of encoding, and the values besides None that change nothing.
_SAME = {
    "stride": (0,),
    "is_split_into_words": (False,),
    "return_overflowing_tokens": (False,),
    "return_offsets_mapping": (False,),
    "verbose": (True, False),
    "text_target": (),
    "text_pair_target": (),
}
_ENCODING = (
    "text_pair", "add_special_tokens", "padding", "truncation", "max_length", "pad_to_multiple_of", "padding_side",
    "truncation_side", "return_tensors", "return_token_type_ids", "return_attention_mask", "return_special_tokens_mask",
    "return_length", "split_special_tokens", *_SAME,
)  # fmt: skip
_NO_LIMIT = 1 << 62


def _role_text(role: str) -> property:
    def get(self: PreTrainedTokenizer) -> str | None:
        token = self._special[role]
        return None if token is None else self.backend.token_bytes(token).decode("utf-8", "replace")

    def set_(self: PreTrainedTokenizer, text: str | None) -> None:
        self._special[role] = None if text is None else self._known(f"{role}_token", text)

    return property(get, set_, doc=f"The text of the {role} token; None without one.")


def _role_id(role: str) -> property:
    def get(self: PreTrainedTokenizer) -> int | None:
        return self._special[role]

    def set_(self: PreTrainedTokenizer, token: int | None) -> None:
        self._special[role] = None if token is None else self.backend.check_id(token)

    return property(get, set_, doc=f"The id of the {role} token; None without one.")


class PreTrainedTokenizer:
    """Text to token ids and back, with transformers' methods, keywords and results.

    The names of control tokens in a text are read as these tokens, as transformers does (``split_special_tokens=True``: as
    text). An unsupported method or keyword raises an error that names it.

    Args:
        backend: gumba's tokenizer of the file.
        template: Returns the chat template of the file, or raises TemplateError.
        name_or_path: What the tokenizer was loaded from.
        model_max_length: Tokens that the model was trained for; ``truncation=True`` cuts to it.
        padding_side, truncation_side: "right" or "left".
    """

    bos_token, bos_token_id = _role_text("bos"), _role_id("bos")
    eos_token, eos_token_id = _role_text("eos"), _role_id("eos")
    unk_token, unk_token_id = _role_text("unk"), _role_id("unk")
    pad_token, pad_token_id = _role_text("pad"), _role_id("pad")
    sep_token, sep_token_id = _role_text("sep"), _role_id("sep")
    cls_token, cls_token_id = _role_text("cls"), _role_id("cls")
    mask_token, mask_token_id = _role_text("mask"), _role_id("mask")
    is_fast = True

    def __init__(
        self,
        backend: Tokenizer,
        template: Callable[[], ChatTemplate],
        *,
        tool_template: Callable[[], ChatTemplate] | None = None,
        name_or_path: str = "",
        model_max_length: int = _NO_LIMIT,
        padding_side: str = "right",
        truncation_side: str = "right",
    ) -> None:
        self.backend = backend
        self.name_or_path = name_or_path
        self.model_max_length = require_count("model_max_length", model_max_length, 1, _NO_LIMIT)
        self.padding_side = _side("padding_side", padding_side)
        self.truncation_side = _side("truncation_side", truncation_side)
        self._template = template
        self._tool_template = tool_template or template
        self._chosen: ChatTemplate | None = None
        self._special: dict[str, int | None] = {role: getattr(backend, f"{role}_id") for role in ROLES}

    def __repr__(self) -> str:
        return f"PreTrainedTokenizer(name_or_path={self.name_or_path!r}, vocab_size={self.vocab_size})"

    def __len__(self) -> int:
        return self.backend.n_vocab

    @property
    def vocab_size(self) -> int:
        """Tokens of the vocabulary, added ones included: GGUF files do not tell them apart."""
        return self.backend.n_vocab

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """Role -> text of the existing special tokens."""
        return {f"{role}_token": text for role in ROLES if (text := getattr(self, f"{role}_token")) is not None}

    @property
    def all_special_tokens(self) -> list[str]:
        """The texts of all control tokens."""
        return [self._text(token) for token in self.all_special_ids]

    @cached_property
    def all_special_ids(self) -> list[int]:
        """The ids of all control tokens."""
        ids = (self.backend.token_id(text) for text in self.backend.control_texts)
        return sorted(token for token in ids if token is not None)

    @property
    def chat_template(self) -> str | None:
        """The source of the chat template; None without one. May be set to the text or name of another one."""
        try:
            return (self._chosen or self._template()).source
        except TemplateError:
            return None

    @chat_template.setter
    def chat_template(self, template: str | None) -> None:
        self._chosen = None if template is None else ChatTemplate.given(template, self.backend)

    def get_vocab(self) -> dict[str, int]:
        """Text of each token, as the file spells it -> its id."""
        return {self._text(token): token for token in range(self.backend.n_vocab)}

    # ------------------------------------------------------------------------------------------------------ encoding

    def __call__(self, text: Any = None, text_pair: object = None, **options: object) -> BatchEncoding:
        """Token ids and attention mask of a text, or of a list of texts.

        Args:
            text, text_pair: A text, or a list of texts; of a list, ``text_pair`` is one, too.
            options: ``add_special_tokens`` (True), ``padding`` (False, True or "longest", "max_length"), ``truncation``,
                ``max_length``, ``pad_to_multiple_of``, ``padding_side``, ``truncation_side``, ``return_tensors`` ("np", or
                "pt" with PyTorch), ``return_attention_mask``, ``return_token_type_ids``, ``return_special_tokens_mask``,
                ``return_length``, ``split_special_tokens``.

        Raises:
            RequestError: A text is no string, or a keyword is unknown or has a wrong value.
            UnsupportedError: A keyword would change results and is not supported.
        """
        _check_options(options)
        several = isinstance(text, list | tuple)
        texts, pairs = (text, text_pair) if several else ([text], None if text_pair is None else [text_pair])
        if several and pairs is None and texts and all(isinstance(item, tuple) and len(item) == 2 for item in texts):
            texts, pairs = [item[0] for item in texts], [item[1] for item in texts]
        if pairs is not None and (not isinstance(pairs, list | tuple) or len(pairs) != len(texts)):
            raise RequestError(f"text_pair: expected as many texts as in text ({len(texts)}), found {show(text_pair)}")
        rows = [
            self._encoded(one, None if pairs is None else pairs[i], options, several) for i, one in enumerate(texts)
        ]
        return self._batch(rows, several, options)

    def encode(self, text: object, text_pair: object = None, **options: object) -> Any:
        """Only the ``input_ids`` of calling the tokenizer; same keywords and errors."""
        return self(text, text_pair, **options)["input_ids"]

    encode_plus = batch_encode_plus = __call__

    def tokenize(self, text: str, add_special_tokens: bool = False) -> list[str]:
        """The tokens of a text, as the file spells them."""
        return [self._text(token) for token in self.backend.encode(text, add_special_tokens, parse_special=True)]

    def _encoded(self, text: Any, pair: Any, options: Mapping[str, Any], several: bool) -> tuple[list[int], list[int]]:
        """Token ids of a text (or a pair), truncated to the requested length, and their token types."""
        for item in (text,) if pair is None else (text, pair):
            if not isinstance(item, str):
                raise RequestError(
                    f"text: expected a string{' or a list of strings' if not several else 's'}, found {show(item)}"
                )
        special, parse = bool(options.get("add_special_tokens", True)), not options.get("split_special_tokens")
        most = self._most(options)
        if pair is not None:
            if not special:
                raise UnsupportedError(
                    "text_pair: gumba joins two texts with special tokens only, found add_special_tokens=False"
                )
            ids, types = self.backend.encode_pair(text, pair)
            if most is not None and len(ids) > most:
                raise UnsupportedError(
                    f"truncation: gumba does not truncate pairs: expected at most {most} tokens, found {len(ids)}"
                )
            return ids, types
        ids = self.backend.encode(text, special, parse_special=parse)
        if most is not None and len(ids) > most:
            ids = self._cut(ids, special, most, options.get("truncation_side"))
        return ids, [0] * len(ids)

    def _most(self, options: Mapping[str, object]) -> int | None:
        """The length to truncate to; None: no truncation."""
        truncation, most = options.get("truncation"), options.get("max_length")
        truncation = getattr(truncation, "value", truncation)
        if truncation not in (None, True, False, "longest_first", "only_first", "do_not_truncate"):
            raise RequestError(
                f"truncation: expected True, False, 'longest_first' or 'only_first', found {show(truncation)}"
            )
        if most is not None:
            most = require_count("max_length", most, 0)
        if truncation is None and most is not None and options.get("padding") in (None, False, "do_not_pad"):
            return most  # as transformers, with a length alone
        if truncation in (None, False, "do_not_truncate"):
            return None
        return most if most is not None else self.model_max_length

    def _cut(self, ids: list[int], special: bool, most: int, side: str | None) -> list[int]:
        """``ids`` truncated to ``most`` tokens, with the special tokens at both ends kept."""
        around = self.backend.encode("", special)
        before = 1 if special and self.backend.add_bos and self.backend.bos_id is not None else 0
        after = len(around) - before
        if most < len(around):
            raise RequestError(
                f"max_length: expected at least {len(around)}, the number of special tokens, found {most}"
            )
        body, room = ids[before : len(ids) - after], most - len(around)
        left = _side("truncation_side", side or self.truncation_side) == "left"
        return [*ids[:before], *(body[len(body) - room :] if left else body[:room]), *ids[len(ids) - after :]]

    def _batch(
        self, rows: list[tuple[list[int], list[int]]], several: bool, options: Mapping[str, object]
    ) -> BatchEncoding:
        columns: dict[str, list[Any]] = {"input_ids": [ids for ids, _ in rows]}
        wants_types = options.get("return_token_type_ids")
        if wants_types or (wants_types is None and self.backend.token_type_count > 1):
            columns["token_type_ids"] = [types for _, types in rows]
        columns["attention_mask"] = [[1] * len(ids) for ids, _ in rows]
        if options.get("return_special_tokens_mask"):
            columns["special_tokens_mask"] = [[int(self.backend.is_special(token)) for token in ids] for ids, _ in rows]
        kind = tensor_kind(options.get("return_tensors"))
        columns = self._padded(columns, options)
        if options.get("return_length"):
            columns["length"] = [len(ids) for ids in columns["input_ids"]]
        if options.get("return_attention_mask") is False:
            del columns["attention_mask"]
        if kind is None and not several:
            return BatchEncoding({name: rows if name == "length" else rows[0] for name, rows in columns.items()})
        return tensors(columns, kind)

    def pad(
        self,
        encoded_inputs: object,
        padding: object = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: object = None,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Rows of the same length from encoded inputs: a dictionary of columns, or a list of dictionaries.

        Raises RequestError without a padding token, or for inputs that hold no ``input_ids``.
        """
        columns = id_columns(encoded_inputs)
        columns.setdefault("attention_mask", [[1] * len(row) for row in columns["input_ids"]])
        options = {"padding": padding, "max_length": max_length, "pad_to_multiple_of": pad_to_multiple_of}
        columns = self._padded(columns, {**options, "padding_side": padding_side})
        if return_attention_mask is False:
            del columns["attention_mask"]
        return tensors(columns, tensor_kind(return_tensors))

    def _padded(self, columns: dict[str, list[Any]], options: Mapping[str, object]) -> dict[str, list[Any]]:
        """The columns with rows of the length that ``padding`` says."""
        padding = options.get("padding")
        padding = getattr(padding, "value", padding)
        if padding in (None, False, "do_not_pad"):
            return columns
        lengths = [len(row) for row in columns["input_ids"]]
        if padding in (True, "longest"):
            length = max(lengths, default=0)
        elif padding == "max_length":
            most = options.get("max_length")
            length = self.model_max_length if most is None else require_count("max_length", most, 0)
            if length >= 1 << 24:
                raise RequestError(
                    "padding='max_length': expected max_length=N, because the model has no maximum length"
                )
        else:
            raise RequestError(f"padding: expected True, False, 'longest' or 'max_length', found {show(padding)}")
        multiple = options.get("pad_to_multiple_of")
        if multiple is not None:
            multiple = require_count("pad_to_multiple_of", multiple, 1)
            length = -(-length // multiple) * multiple
        if self.pad_token_id is None and any(n < length for n in lengths):
            raise RequestError(
                "padding: the tokenizer has no padding token; set tokenizer.pad_token = tokenizer.eos_token"
            )
        left = _side("padding_side", options.get("padding_side") or self.padding_side) == "left"
        fill = {"input_ids": self.pad_token_id, "special_tokens_mask": 1}
        padded: dict[str, list[object]] = {}
        for name, rows in columns.items():
            padded[name] = []
            for row in rows:
                more = [fill.get(name, 0)] * (length - len(row))
                padded[name].append([*more, *row] if left else [*row, *more])
        return padded

    # ------------------------------------------------------------------------------------------------------ decoding

    def decode(
        self,
        token_ids: object,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        spaces_between_special_tokens: bool | None = None,
    ) -> Any:
        """The text of token ids, or the texts of several rows of them, as a list.

        ``skip_special_tokens``: leave control tokens out; ``clean_up_tokenization_spaces``: no space before punctuation.
        Raises RequestError for what is no token id.
        """
        ids = listed(token_ids)
        if isinstance(ids, Mapping):
            raise RequestError(f"token_ids: expected token ids, found {show(token_ids)}")
        if isinstance(ids, list) and ids and isinstance(ids[0], list):
            return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in ids]
        text = self.backend.decode(ids if isinstance(ids, list) else [ids], skip_special_tokens)
        return without_spaces(text) if clean_up_tokenization_spaces else text

    def batch_decode(self, sequences: object, skip_special_tokens: bool = False, **options: Any) -> list[str]:
        """The texts of rows of token ids; keywords as of ``decode``."""
        rows = listed(sequences)
        if not isinstance(rows, list):
            raise RequestError(f"sequences: expected rows of token ids, found {show(sequences)}")
        rows = rows if all(isinstance(row, list) for row in rows) else [rows]
        return [self.decode(row, skip_special_tokens, **options) for row in rows]

    def convert_tokens_to_ids(self, tokens: object) -> Any:
        """The id of a token's text, or a list of ids; the id of ``unk_token`` or None for an unknown token."""
        if isinstance(tokens, str):
            token = self.backend.token_id(tokens)
            return self.unk_token_id if token is None else token
        if not isinstance(tokens, list | tuple):
            raise RequestError(f"tokens: expected a token's text or a list of them, found {show(tokens)}")
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """The text of a token as the file spells it, or a list of such texts."""
        ids = listed(ids)
        if not isinstance(ids, list):
            return self._text(ids)
        return [self._text(token) for token in ids if not (skip_special_tokens and self.backend.is_special(token))]

    def convert_tokens_to_string(self, tokens: Iterable[str]) -> str:
        """The text of a list of tokens. Raises RequestError for a token that is not in the vocabulary."""
        if not isinstance(tokens, list | tuple):
            raise RequestError(f"tokens: expected a list of tokens' texts, found {show(tokens)}")
        return self.backend.decode([self._known("tokens", token) for token in tokens])

    # --------------------------------------------------------------------------------------------------------- chats

    def apply_chat_template(
        self,
        conversation: Any,
        tools: Sequence[object] | None = None,
        documents: object = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = True,
        sanitize_control_tokens: bool = True,
        padding: object = False,
        truncation: object = False,
        max_length: int | None = None,
        return_tensors: object = None,
        return_dict: bool = True,
        return_assistant_tokens_mask: bool = False,
        tokenizer_kwargs: Mapping[str, object] | None = None,
        **variables: object,
    ) -> Any:
        """The prompt of a conversation (or of several): token ids, or its text (``tokenize=False``).

        Control tokens come from the template only: the text of one in a message is tokenized as text, which transformers
        does with ``sanitize_control_tokens=True``. ``tools`` may be functions with type hints and docstrings in Google's
        style, or their JSON schemas. ``return_dict=False``: the ids without a ``BatchEncoding``. ``variables``: further
        variables of the template (``enable_thinking``).

        Raises:
            RequestError: The messages, or a keyword, are wrong.
            TemplateError: There is no template, or it refuses the messages.
            UnsupportedError: ``return_assistant_tokens_mask``.
        """
        if return_assistant_tokens_mask:
            raise UnsupportedError("return_assistant_tokens_mask: gumba does not support it, found True")
        if continue_final_message and add_generation_prompt:
            raise RequestError("continue_final_message: expected False with add_generation_prompt")
        if "messages" in variables:
            raise RequestError("messages: expected the conversation as the first argument only")
        template = self._chat_template(chat_template, tools)
        if tools is not None:
            variables["tools"] = schemas(tools)
            if "tools" not in template.source:
                log.warning("tools: ignored, because the chat template does not use tools")
        if documents is not None:
            variables["documents"] = documents
        several = (
            isinstance(conversation, list | tuple) and bool(conversation) and isinstance(conversation[0], list | tuple)
        )
        chats = conversation if several else [conversation]
        if not tokenize:
            texts = [
                self._rendered(template, c, add_generation_prompt, continue_final_message, variables) for c in chats
            ]
            return texts if several else texts[0]
        options = {
            "padding": padding,
            "truncation": truncation,
            "max_length": max_length,
            "return_tensors": return_tensors,
        }
        options |= {**(tokenizer_kwargs or {}), "add_special_tokens": False}
        _check_options(options)
        rows = []
        for chat in chats:
            ids = encode_chat(
                self.backend,
                template,
                chat,
                add_generation_prompt,
                add_bos=False,
                continue_final_message=continue_final_message,
                **variables,
            )
            most = self._most(options)
            ids = ids if most is None or len(ids) <= most else self._cut(ids, False, most, None)
            rows.append((ids, [0] * len(ids)))
        encoding = self._batch(rows, several, options)
        return encoding if return_dict else encoding["input_ids"]

    def get_chat_template(self, chat_template: str | None = None, tools: object = None) -> str:
        """The source of the template that ``apply_chat_template`` would use. Raises TemplateError without one."""
        return self._chat_template(chat_template, tools).source

    def _chat_template(self, chosen: str | None, tools: object) -> ChatTemplate:
        if chosen is not None:
            return ChatTemplate.given(chosen, self.backend)
        return self._chosen or (self._tool_template() if tools else self._template())

    def _rendered(
        self,
        template: ChatTemplate,
        chat: Any,
        generation_prompt: bool,
        continued: bool,
        variables: Mapping[str, object],
    ) -> str:
        text = template.render(chat, generation_prompt, **variables)
        return until_final_message(text, chat) if continued else text

    def _text(self, token: int) -> str:
        return self.backend.token_text(token)

    def _known(self, name: str, text: str) -> int:
        token = self.backend.token_id(text) if isinstance(text, str) else None
        if token is None:
            raise RequestError(f"{name}: expected a token of the vocabulary, found {show(text)}")
        return token


def _check_options(options: Mapping[str, object]) -> None:
    for name, value in options.items():
        if name not in _ENCODING:
            raise KeywordError(f"unexpected keyword argument {name!r}{suggestion(name, _ENCODING)}")
        if name in _SAME and value is not None and value not in _SAME[name]:
            raise UnsupportedError(f"{name}: gumba does not support it, found {show(value)}")


def _side(name: str, value: object) -> str:
    if value not in ("left", "right"):
        raise RequestError(f"{name}: expected 'left' or 'right', found {show(value)}")
    return str(value)


def without_spaces(text: str) -> str:
    """``text`` without the spaces that tokenization puts before punctuation and English contractions."""
    for mark in (".", "?", "!", ",", "'", "n't", "'m", "'s", "'ve", "'re"):
        text = text.replace(f" {mark} " if mark == "'" else f" {mark}", mark)
    return text
