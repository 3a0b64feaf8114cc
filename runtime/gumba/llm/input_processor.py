"""From what was asked to the sequences that the engine runs: all of it is checked here, before anything is computed."""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from gumba.chat.formats import answer_format
from gumba.chat.rerank_template import PairTemplate
from gumba.chat.template import ChatTemplate, encode_chat
from gumba.chat.tool_parsers.base import checked_tools
from gumba.engine.search.beam import BeamSearch
from gumba.engine.search.contrastive import ContrastiveSearch
from gumba.engine.sequence import Embedding, Generation, Judging, Scoring
from gumba.engine.sequence import Sequence as EngineSequence
from gumba.engine.speculative.draft_model import DraftRunner, ModelDrafter
from gumba.engine.speculative.prompt_lookup import PromptLookup
from gumba.errors import RequestError, ResourceError
from gumba.llm.embedding_settings import EmbeddingSettings, encode_after, prompt_tokens
from gumba.llm.output_processor import PendingBeamSearch, PendingContrastiveSearch, PendingRequest
from gumba.sampling.sampler_state import SamplerState
from gumba.sampling.token_healing import HealedDecoder, Healing, healable
from gumba.sampling.token_sequences import bad_word_sequences, breaker_sequences
from gumba.sampling_params import BeamSearchParams, ContrastiveSearchParams, SamplingParams, show
from gumba.tokenizer.detokenizer import StreamDecoder
from gumba.tokenizer.tokenizer import Tokenizer
from gumba.validation import is_iterable, require_boolean

if TYPE_CHECKING:
    from gumba.sampling.structured.constraints import Constraint

#: A prompt: text, token ids, or vLLM's dictionaries of one, {"prompt": text} and {"prompt_token_ids": ids}.
Prompt = str | Sequence[int] | np.ndarray[Any, Any] | Mapping[str, Any]
Messages = Sequence[Mapping[str, Any]]
#: What a classifier judges: a prompt, or two texts that it reads together.
ClassifyInput = Prompt | tuple[str, str]
#: One for all requests, or one for each of them.
ParamsOf = SamplingParams | Sequence[SamplingParams | None] | None
#: Told how many tokens of prompts have been read, and how many there are.
PromptProgress = Callable[[int, int], object]
Pooled = Literal["mean", "cls", "first", "last"]
Pooling = Literal["mean", "cls", "first", "last", "none"]

#: From the seed of one answer to that of the next: the golden ratio's fraction of 2**64.
_SEED_STEP = 0x9E3779B97F4A7C15

S = TypeVar("S", bound=EngineSequence)


@dataclass(frozen=True)
class ChatOptions:
    """What is said of a conversation besides its messages, as of ``LLM.chat``."""

    template_args: Mapping[str, Any] | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    reasoning: str = "auto"


def report(generations: Sequence[Generation], progress: PromptProgress | None) -> None:
    """Have ``progress`` told of the prompts of ``generations``, each of which counts once."""
    if progress is None:
        return
    first = [each for each in generations if each.leader is None]
    total, read = sum(each.n_prompt for each in first), [0] * len(first)

    def told(index: int) -> Callable[[int, int], object]:
        def tell(done: int, _: int) -> object:
            read[index] = max(read[index], done)
            return progress(sum(read), total)

        return tell

    for index, each in enumerate(first):
        each.on_prompt = told(index)


def _n_sequences(params: SamplingParams) -> int:
    """Answers to compute, of which ``n`` are returned."""
    return params.n if params.best_of is None else params.best_of


class InputProcessor:
    """Makes sequences of what is asked of one model.

    ``check_usable``: raises when nothing can be asked any more. ``capacity``: tokens that fit the context, or, of an encoder, a
    step. ``config``: the model's. ``template``: the chat template, with tools or without. ``draft_model``: the model that drafts,
    None where there is none; ``draft_tokens``: how many at a time; ``pair_template``: how a decoder is shown two texts; ``seed``:
    of the requests without one of their own, each of which draws from it; ``prefix_caching``: whether requests share pages;
    ``embedding``: how the file wants texts embedded.

    What its methods raise: RequestError for what is wrong, too long or out of range, TokenizerError for text that cannot be
    encoded, TemplateError for messages that the template refuses, and what ``check_usable`` raises.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        check_usable: Callable[[], None],
        capacity: int,
        config: Any,
        template: Callable[[bool], ChatTemplate],
        draft_model: Callable[[], DraftRunner | None] | None,
        draft_tokens: int,
        pair_template: PairTemplate | None = None,
        seed: int | None = None,
        prefix_caching: bool = True,
        embedding: EmbeddingSettings | None = None,
    ) -> None:
        self._draw_seed = secrets.SystemRandom() if seed is None else random.Random(seed)
        self._prefix_caching = prefix_caching
        self._tokenizer, self._check_usable = tokenizer, check_usable
        self._capacity, self._config, self._template = capacity, config, template
        self._draft_model, self._draft_tokens = draft_model, draft_tokens
        self._pair_template = pair_template
        self.embedding = embedding or EmbeddingSettings()
        self._controls: dict[tuple[str, ...], frozenset[int]] = {}

    def completions(self, prompts: str | Iterable[Prompt], params: ParamsOf) -> list[PendingRequest]:
        """Answers to prompts."""
        asked = _listed(prompts)
        return [
            PendingRequest(prompt_text(prompt), self.generations(self.prompt_ids(prompt), one))
            for prompt, one in zip(asked, _per_prompt(params, len(asked)))
        ]

    def chats(self, chats: Sequence[Messages], params: ParamsOf, options: ChatOptions) -> list[PendingRequest]:
        """Answers to conversations."""
        return [self.chat(messages, one, options) for messages, one in zip(chats, _per_prompt(params, len(chats)))]

    def chat(self, messages: Messages, params: SamplingParams | None, options: ChatOptions) -> PendingRequest:
        """Answers to a conversation."""
        tools = None if options.tools is None else checked_tools(options.tools) or None
        args = dict(options.template_args or {})
        self._check_usable()
        self.check_generates()
        template = self._template(tools is not None)
        if tools is not None:
            if "tools" in args:
                raise RequestError("tools: are given, and among template_args too")
            if "tools" not in template.source:
                raise RequestError("tools: the chat template does not take any (chat_template='hermes' does)")
            args["tools"] = tools
        ids = self._chat_ids(messages, template, args)
        constrained = isinstance(params, SamplingParams) and params.structured_outputs is not None
        form = answer_format(
            self._tokenizer,
            template.source,
            ids,
            reasoning=options.reasoning,
            tools=tools,
            constrained=constrained,
        )
        shown = frozenset[int]() if form is None else self._control_ids(form.texts)
        return PendingRequest(None, self.generations(ids, params, "messages", shown), form)

    def _control_ids(self, texts: tuple[str, ...]) -> frozenset[int]:
        """The control tokens that ``texts`` are, or are made of."""
        if texts not in self._controls:
            found = [text for text in self._tokenizer.control_texts if any(text in whole for whole in texts)]
            ids = (self._tokenizer.token_id(text) for text in found)
            self._controls[texts] = frozenset(token for token in ids if token is not None)
        return self._controls[texts]

    def streamed(self, ids: list[int], params: SamplingParams | None) -> list[Generation]:
        """As ``generations``, for answers that are handed over as they come."""
        _check_streamed(params)
        return self.generations(ids, params)

    def chat_streamed(self, messages: Messages, params: SamplingParams | None, options: ChatOptions) -> PendingRequest:
        """As ``chat``, for answers that are handed over as they come."""
        _check_streamed(params)
        return self.chat(messages, params, options)

    def beam_searches(self, prompts: str | Iterable[Prompt], params: BeamSearchParams) -> list[PendingBeamSearch]:
        """Beam searches."""
        if not isinstance(params, BeamSearchParams):
            raise RequestError(f"params: expected BeamSearchParams, found {show(params)}")
        searches = []
        for prompt in _listed(prompts):
            ids, n_source = self._with_start_token(self.prompt_ids(prompt))
            ends = self._end_ids(ids, params, "prompt")
            search = BeamSearch(ids, params, end_ids=ends, capacity=self._capacity)
            search.n_source = n_source
            searches.append(PendingBeamSearch(prompt_text(prompt), self._share(search), self._tokenizer))
        return searches

    def contrastive_searches(
        self, prompts: str | Iterable[Prompt], params: ContrastiveSearchParams | None
    ) -> list[PendingContrastiveSearch]:
        """Contrastive searches."""
        if params is None:
            params = ContrastiveSearchParams()
        if not isinstance(params, ContrastiveSearchParams):
            raise RequestError(f"params: expected ContrastiveSearchParams, found {show(params)}")
        self._refuse_encoder_decoder("contrastive search is for models that continue their prompt")
        searches = []
        for prompt in _listed(prompts):
            ids = self.prompt_ids(prompt)
            ends = self._end_ids(ids, params, "prompt")
            search = ContrastiveSearch(ids, params, end_ids=ends, capacity=self._capacity, n_embd=self._config.n_embd)
            searches.append(PendingContrastiveSearch(prompt_text(prompt), self._share(search), self._tokenizer))
        return searches

    def embeddings(
        self,
        prompts: Prompt | Iterable[Prompt],
        pooling: Pooling | None,
        prompt: str | None = None,
        truncate: bool = False,
    ) -> list[Embedding]:
        """Pooled hidden states of prompts; ``pooling`` None: as the model was trained, or the mean.

        ``prompt``: the name of the prompt to prepend to texts (see ``EmbeddingSettings.prompt``); ``truncate``: truncate long
        texts.
        """
        if pooling is None:
            trained = getattr(self._config, "pooling", "")
            pooling = "first" if trained == "first" else "last" if trained == "last" else "mean"
        if not isinstance(pooling, str) or pooling not in ("mean", "cls", "first", "last", "none"):
            raise RequestError(f'pooling: expected "mean", "cls", "first", "last" or "none", found {show(pooling)}')
        require_boolean("truncate", truncate)
        kind: Literal["mean", "first", "last", "none"] = "first" if pooling == "cls" else pooling
        self._check_usable()
        self._refuse_encoder_decoder("embeddings are those of a file that has its encoder alone")
        before = self.embedding.prompt(prompt)
        skip = prompt_tokens(self._tokenizer, before) if before and not self.embedding.include_prompt else 0
        whole, sequences = not self._config.causal, []
        for i, each in enumerate(_listed(prompts)):  # type: ignore[arg-type]
            try:
                given = _unwrapped(each) if isinstance(each, Mapping) else each
                text = isinstance(given, str)
                if prompt and not text:
                    raise RequestError(f"prompt: {show(prompt)} needs a text to precede, found {show(given)}")
                ids = self.prompt_ids(encode_after(self._tokenizer, before, str(given)) if text else given)
                ids = self._embeddable(ids, truncate, text=text)
            except RequestError as error:
                if isinstance(prompts, str | Mapping):
                    raise
                numbered = RequestError(f"prompts[{i}]: {str(error).removeprefix('prompt: ')}")
                numbered.index = i
                raise numbered from None
            n_skipped = skip if text else 0
            sequences.append(self._share(Embedding(ids, self._config.n_embd, kind, whole=whole, skip=n_skipped)))
        return sequences

    def _embeddable(self, ids: list[int], truncate: bool, *, text: bool) -> list[int]:
        """``ids``, truncated to the maximum text length with ``truncate``; only the context limits token ids of the caller."""
        longest = self.embedding.max_seq_length
        limit = self._capacity if longest is None else min(longest, self._capacity)
        if truncate:
            return self._tokenizer.truncated(ids, limit, self.embedding.truncation_side)
        if text and len(ids) > limit and limit == longest:
            raise RequestError(
                f"prompt: {len(ids)} tokens are more than the model's maximum of {limit} (max_seq_length); "
                "truncate=True cuts texts to that"
            )
        return self._fits(ids, "prompt", cuts=True)

    def ranks(self, query: str, documents: Iterable[str], truncate: bool = False) -> list[Judging]:
        """Scores of ``documents`` for ``query`` by a cross-encoder; ``truncate``: truncate long pairs."""
        require_boolean("truncate", truncate)
        if not isinstance(query, str):
            raise RequestError(f"query: expected a text, found {show(query)}")
        if isinstance(documents, str) or not is_iterable(documents):
            raise RequestError(f"documents: expected a list of texts, found {show(documents)}")
        n_labels = self._check_head()
        if n_labels != 1 and not self.yes_no_labels:
            raise RequestError(f"the model is a classifier of {n_labels} labels, not a reranker: use classify")
        sequences = []
        for i, document in enumerate(documents):
            if not isinstance(document, str):
                raise RequestError(f"documents[{i}]: expected a text, found {show(document)}")
            sequences.append(self._classify_sequence(self._pair_ids(query, document, truncate)))
        return sequences

    def classifications(self, texts: str | Iterable[ClassifyInput], truncate: bool = False) -> list[Judging]:
        """The logits of a classifier for each of ``texts``; ``truncate``: truncate long texts."""
        require_boolean("truncate", truncate)
        self._check_head()
        found = []
        for text in _listed(texts):  # type: ignore[arg-type]
            if isinstance(text, tuple) and len(text) == 2 and all(isinstance(part, str) for part in text):
                first, second = text
                found.append(self._classify_sequence(self._pair_ids(str(first), str(second), truncate)))
            elif isinstance(text, list | tuple) and any(isinstance(part, str) for part in text):
                raise RequestError(
                    f"texts: expected texts, token ids, or pairs of texts, (first, second), found {show(text)}"
                )
            else:
                ids = self.prompt_ids(text)
                ids = (
                    self._tokenizer.truncated(ids, self._capacity) if truncate else self._fits(ids, "prompt", cuts=True)
                )
                found.append(self._classify_sequence(ids))
        return found

    @property
    def yes_no_labels(self) -> bool:
        """Whether the head's two numbers are the logits of the words yes and no, as of Qwen3-Reranker."""
        return tuple(getattr(self._config, "labels", ())) == ("yes", "no")

    def _classify_sequence(self, ids: list[int]) -> Judging:
        return self._share(Judging(ids, whole=not self._config.causal))

    def _pair_ids(self, first: str, second: str, truncate: bool) -> list[int]:
        """Token ids of two texts; of a model that tells types of tokens apart they say the type, too."""
        self._check_usable()
        if self._pair_template is not None:
            if truncate:
                raise RequestError("truncate: this model renders both texts in a template and cannot truncate them")
            return self._fits(self._pair_template.encode(self._tokenizer, first, second), "the two texts")
        ids, types = self._tokenizer.encode_pair(first, second, self._capacity if truncate else None)
        if self._config.n_types > 1:
            ids = [token + self._config.n_vocab * kind for token, kind in zip(ids, types)]
        return self._fits(ids, "the two texts", cuts=True)

    def _check_head(self) -> int:
        n_labels: int = getattr(self._config, "n_labels", 0)
        if not n_labels:
            raise RequestError(f"this {self._config.architecture} model has no head that judges texts")
        return n_labels

    def check_generates(self) -> None:
        """Raise RequestError for a model that writes no text."""
        n_labels = getattr(self._config, "n_labels", 0)
        if n_labels:
            use = "rerank" if n_labels == 1 or self.yes_no_labels else "classify"
            raise RequestError(
                f"this {self._config.architecture} model writes no text: it has a head that judges texts instead of logits; "
                f"use {use}"
            )
        if not self._config.causal:
            raise RequestError(
                f"{self._config.architecture} models are encoders, without logits, and write no text: use embed"
            )

    def _with_start_token(self, ids: list[int]) -> tuple[list[int], int]:
        """What a sequence begins with that answers ``ids``; of an encoder-decoder, also how many of these are its source."""
        start = getattr(self._config, "start_token", None)
        return (ids, 0) if start is None else ([*ids, start], len(ids))

    def _refuse_encoder_decoder(self, reason: str) -> None:
        if getattr(self._config, "start_token", None) is not None:
            raise RequestError(f"this {self._config.architecture} model is an encoder-decoder: {reason}")

    def scoring(self, tokens: Sequence[int] | np.ndarray[Any, Any], width: int) -> Scoring:
        """Logits (``width`` of them) after each of ``tokens``."""
        self._check_usable()
        self.check_generates()
        self._refuse_encoder_decoder("it has no logits of a prompt")
        ids = self._fits(self.checked_ids(tokens, "tokens"), "tokens")
        try:
            return self._share(Scoring(ids, width))
        except MemoryError:
            raise ResourceError(
                f"logits of {len(ids)} tokens need {len(ids) * width * 4 / 1e6:.0f} MB, more than there is"
            ) from None

    def generations(
        self, ids: list[int], params: SamplingParams | None, field: str = "prompt", shown: frozenset[int] = frozenset()
    ) -> list[Generation]:
        """The answers to a checked prompt, not submitted yet. ``shown``: special tokens that are part of the text."""
        self._check_usable()
        if params is None:
            params = SamplingParams()
        if not isinstance(params, SamplingParams):
            raise RequestError(f"params: expected SamplingParams, found {show(params)}")
        if params.prompt_logprobs is not None:
            self._refuse_encoder_decoder("it has no log-probabilities of a prompt")
        ids, n_source = self._with_start_token(ids)
        ends = self._end_ids(ids, params, field)
        seed = self._draw_seed.getrandbits(64) if params.seed is None else params.seed
        seeds = [(seed + choice * _SEED_STEP) % 2**64 for choice in range(_n_sequences(params))]
        constraint: Constraint | Healing | None = None
        healed = (
            healable(self._tokenizer, ids, ends) if params.token_healing and field == "prompt" and not n_source else ""
        )
        if healed:
            constraint = Healing(self._tokenizer, self._tokenizer.token_bytes(ids[-1]))
            ids = ids[:-1]
        if params.structured_outputs is not None:
            from gumba.sampling.structured.constraints import compile_constraint

            constraint = compile_constraint(params.structured_outputs, self._tokenizer)
        sampling = self._sampler_state(params, ids[n_source:], ends)
        made = [
            Generation(
                ids,
                params,
                seed=seeds[choice],
                sampling=sampling.fork(seeds[choice]),
                decoder=self._decoder(params, len(healed), shown),
                end_ids=ends,
                capacity=self._capacity,
                choice=choice,
                constraint=None if constraint is None else constraint.fork(),
            )
            for choice in range(_n_sequences(params))
        ]
        for other in made[1:]:
            other.leader = made[0]
        for each in made:
            each.n_source = n_source
            self._share(each)
            if params.prompt_lookup_tokens:
                each.drafter = PromptLookup(params.prompt_lookup_tokens)
            elif self._draft_model is not None:
                each.drafter = ModelDrafter(self._draft_model, self._tokenizer.n_vocab, self._draft_tokens)
        return made

    def _decoder(self, params: SamplingParams, healed: int, shown: frozenset[int]) -> StreamDecoder | HealedDecoder:
        """Of an answer whose first ``healed`` characters are the prompt's."""
        decoder = StreamDecoder(self._tokenizer, skip_special=params.skip_special_tokens, shown=shown)
        return HealedDecoder(decoder, healed) if healed else decoder

    def _end_ids(
        self, ids: list[int], params: SamplingParams | BeamSearchParams | ContrastiveSearchParams, field: str
    ) -> frozenset[int]:
        """Tokens that end an answer to the prompt ``ids``, which is checked to leave room for one."""
        self.check_generates()
        capacity = self._capacity
        if len(ids) >= capacity:
            most = self._config.n_ctx_most
            advice = (
                "shorten the prompt or load the model with a larger n_ctx"
                if capacity < most
                else f"shorten the prompt: the model was made for {most} tokens at most"
            )
            raise RequestError(f"{field}: {len(ids)} tokens leave no room in the context of {capacity}; {advice}")
        for token in params.stop_token_ids:
            if token >= self._tokenizer.n_vocab:
                raise RequestError(
                    f"stop_token_ids: expected ids below n_vocab {self._tokenizer.n_vocab}, found {token}"
                )
        # A constrained text ends where it is complete: no more can come.
        constrained = isinstance(params, SamplingParams) and params.structured_outputs is not None
        ends = frozenset() if params.ignore_eos and not constrained else self._tokenizer.eog_ids
        return ends | frozenset(params.stop_token_ids)

    def _sampler_state(self, params: SamplingParams, ids: list[int], end_ids: frozenset[int]) -> SamplerState:
        """What the sampler of a generation from the prompt ``ids`` carries."""
        tokenizer, breakers = self._tokenizer, tuple(params.dry_sequence_breakers)
        if _n_sequences(params) > params.n and params.logprobs is None:
            params = replace(params, logprobs=0)
        return SamplerState(
            params,
            tokenizer.n_vocab,
            ids,
            end_ids=end_ids,
            bad_words=bad_word_sequences(tokenizer, params.bad_words) if params.bad_words else (),
            breakers=breaker_sequences(tokenizer, breakers) if params.dry_multiplier > 0 else (),
        )

    def _chat_ids(self, messages: Messages, template: ChatTemplate, template_args: Mapping[str, Any]) -> list[int]:
        """Token ids of a conversation, rendered by ``template`` with ``template_args``."""
        args = {"add_generation_prompt": True, **template_args}
        for name in args:
            if not isinstance(name, str) or name in ("tokenizer", "template", "messages"):
                raise RequestError(f"template_args: {show(name)} is not the name of a further variable")
        return self.checked_ids(encode_chat(self._tokenizer, template, messages, **args), "messages")

    def _share(self, sequence: S) -> S:
        """``sequence``, with prefix caching off if this model has it off."""
        sequence.shares = sequence.shares and self._prefix_caching
        return sequence

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt."""
        self._check_usable()
        if isinstance(prompt, Mapping):
            prompt = _unwrapped(prompt)
        if isinstance(prompt, str):
            prompt = self._tokenizer.encode(prompt, add_special=True, parse_special=False)
        return self.checked_ids(prompt, "prompt")

    def checked_ids(self, tokens: Any, field: str) -> list[int]:
        """``tokens`` as a list of ids that are all in the vocabulary: kernels index with them."""
        n_vocab = self._tokenizer.n_vocab
        if isinstance(tokens, np.ndarray) and tokens.ndim == 1 and tokens.dtype.kind in "iu":
            tokens = tokens.tolist()
        if not isinstance(tokens, (list, tuple, range)):
            if isinstance(tokens, (str, bytes)) or not isinstance(tokens, Sequence):
                raise RequestError(f"{field}: expected text or a list of token ids, found {show(tokens)}")
            tokens = list(tokens)
        if not tokens:
            raise RequestError(f"{field}: expected at least one token, found none")
        ids: list[int] = []
        for index, token in enumerate(tokens):
            if type(token) is not int and (isinstance(token, bool) or not isinstance(token, Integral)):
                one = "; one prompt at a time" if isinstance(token, str) and field == "prompt" else ""
                raise RequestError(f"{field}: expected integer token ids, found {show(token)} at index {index}{one}")
            value = int(token)
            if not 0 <= value < n_vocab:
                raise RequestError(
                    f"{field}: expected token ids from 0 to {n_vocab - 1}, found {show(value)} at index {index}"
                )
            ids.append(value)
        return ids

    def _fits(self, ids: list[int], field: str, *, cuts: bool = False) -> list[int]:
        """Check that ``ids`` fit the context; ``cuts``: the message suggests truncation."""
        if len(ids) > self._capacity:
            advice = "; truncate=True cuts texts to that" if cuts else ""
            raise RequestError(f"{field}: {len(ids)} tokens do not fit the context of {self._capacity}{advice}")
        return ids


def _check_streamed(params: SamplingParams | None) -> None:
    if isinstance(params, SamplingParams) and _n_sequences(params) > params.n:
        raise RequestError("best_of: which answers are best is only known at the end, so they cannot be streamed")


def _per_prompt(params: ParamsOf, count: int) -> Sequence[SamplingParams | None]:
    """What each of ``count`` requests is to be answered with."""
    if not isinstance(params, Sequence):
        return [params] * count
    if len(params) != count:
        raise RequestError(f"params: expected one SamplingParams per prompt ({count}), found {len(params)}")
    return params


def prompt_text(prompt: Prompt) -> str | None:
    """The text of a prompt; None if it consists of token ids."""
    text = prompt.get("prompt") if isinstance(prompt, Mapping) else prompt
    return text if isinstance(text, str) else None


def with_token_ids(
    prompts: str | Iterable[Prompt] | None, token_ids: Sequence[Any] | np.ndarray[Any, Any] | None
) -> str | Iterable[Prompt]:
    """``prompts`` with their token ids (vLLM's ``prompt_token_ids``), which take precedence over texts.

    Raises RequestError if neither is given, or if their numbers differ.
    """
    if token_ids is None:
        if prompts is None:
            raise RequestError("prompts: expected a text or a list of prompts, found None")
        return prompts
    if (
        isinstance(token_ids, str | bytes)
        or not isinstance(token_ids, Sequence | np.ndarray)
        or not is_iterable(token_ids)
    ):
        raise RequestError(f"prompt_token_ids: expected a list of token ids, or several, found {show(token_ids)}")
    listed: list[Any] = [token_ids] if len(token_ids) and isinstance(token_ids[0], Integral) else list(token_ids)
    for each in listed:
        if isinstance(each, str | bytes | Mapping):
            raise RequestError(f"prompt_token_ids: expected lists of token ids, found {show(each)}")
    if prompts is None:
        return listed
    texts = _listed(prompts)
    if len(texts) != len(listed):
        raise RequestError(f"prompt_token_ids: expected one list per prompt ({len(texts)}), found {len(listed)}")
    return [{"prompt": prompt_text(text), "prompt_token_ids": ids} for text, ids in zip(texts, listed)]


def _unwrapped(prompt: Mapping[str, Any]) -> Any:
    """The text or token ids of vLLM's prompt dictionary. Raises RequestError for other keys."""
    for name, value in prompt.items():
        if name not in ("prompt", "prompt_token_ids") and value not in (None, {}):
            raise RequestError(f"prompt: expected 'prompt' or 'prompt_token_ids', found {show(name)}: {show(value)}")
    ids, text = prompt.get("prompt_token_ids"), prompt.get("prompt")
    if ids is None and not isinstance(text, str):
        raise RequestError(
            f"prompt: expected a text in 'prompt' or token ids in 'prompt_token_ids', found {show(prompt)}"
        )
    return text if ids is None else ids


def _listed(prompts: str | Iterable[Prompt] | Mapping[str, Any]) -> list[Prompt]:
    """A text, or several prompts, as a list of prompts."""
    if not is_iterable(prompts):
        raise RequestError(f"prompts: expected a text or a list of prompts, found {show(prompts)}")
    asked: list[Prompt] = [prompts] if isinstance(prompts, str | Mapping) else list(prompts)
    for prompt in asked:
        if isinstance(prompt, Integral):
            raise RequestError("prompts: expected a list of prompts; give token ids as a list in that list, [[1, 2]]")
    return asked
