"""Prompts and parameters to engine sequences: every argument of a request is checked here, before anything is computed."""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from gumba.chat.formats import answer_format
from gumba.chat.template import encode_chat
from gumba.chat.tool_parsers.base import checked_tools
from gumba.engine.generation import Generation
from gumba.engine.search.beam import BeamSearch
from gumba.engine.search.contrastive import ContrastiveSearch
from gumba.engine.sequence import Sequence as EngineSequence
from gumba.engine.speculative.draft_model import DraftRunner, ModelDrafter
from gumba.engine.speculative.prompt_lookup import PromptLookup
from gumba.errors import RequestError
from gumba.llm.chat_templates import ChatTemplates
from gumba.llm.engine_config import EngineConfig
from gumba.llm.output_processor import PendingBeamSearch, PendingContrastiveSearch, PendingRequest, RequestBatch
from gumba.llm.prompts import Prompt, plain_prompt, prompt_list, prompt_text, with_token_ids
from gumba.outputs import BeamSearchOutput, RequestOutput
from gumba.sampling.sampler_state import SamplerState
from gumba.sampling.token_healing import HealedDecoder, Healing, healable
from gumba.sampling.token_sequences import bad_word_sequences, breaker_sequences
from gumba.sampling_params import BeamSearchParams, ContrastiveSearchParams, SamplingParams
from gumba.tokenizer.detokenizer import StreamDecoder
from gumba.tokenizer.tokenizer import Tokenizer
from gumba.validation import show

if TYPE_CHECKING:
    from gumba.chat.template import ChatTemplate
    from gumba.engine.engine import Engine
    from gumba.loading.config import Config
    from gumba.sampling.structured.constraints import Constraint

Messages = Sequence[Mapping[str, object]]
#: One for all requests, or one for each of them.
ParamsOf = SamplingParams | Sequence[SamplingParams | None] | None
#: Called with the number of prompt tokens computed so far, and the number of all prompt tokens.
PromptProgress = Callable[[int, int], object]

#: Difference between the seeds of two answers to one prompt: the golden ratio's fraction of 2**64.
_SEED_STEP = 0x9E3779B97F4A7C15

S = TypeVar("S", bound=EngineSequence)


class DraftSource(Protocol):
    """The loaded draft model, which may be unloaded and loaded again between requests."""

    @property
    def draft(self) -> DraftRunner | None: ...


@dataclass(frozen=True)
class ChatOptions:
    """The arguments of ``LLM.chat`` that apply to all its conversations."""

    template_args: Mapping[str, object] | None = None
    tools: Sequence[Mapping[str, object]] | None = None
    reasoning: str = "auto"


class InputProcessor:
    """Builds the engine sequences of requests to one model.

    Args:
        tokenizer: The model's tokenizer.
        model_config: The model's configuration.
        engine: Runs the sequences.
        n_ctx: Context length in tokens; of an encoder, no more than fit one step.
        settings: The settings of the LLM.
        templates: The chat templates.
        drafts: The draft model, if ``settings`` has one.

    Methods raise RequestError for an argument that is wrong, too long or out of range, TokenizerError for text that cannot be
    encoded, TemplateError for messages that the template refuses, and EngineError if the engine is closed.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        model_config: Config,
        engine: Engine,
        n_ctx: int,
        settings: EngineConfig,
        templates: ChatTemplates,
        drafts: DraftSource,
    ) -> None:
        self.tokenizer, self.model_config, self.n_ctx = tokenizer, model_config, n_ctx
        self._engine, self._settings, self._templates, self._drafts = engine, settings, templates, drafts
        self._seeds = secrets.SystemRandom() if settings.seed is None else random.Random(settings.seed)
        self._control_ids: dict[tuple[str, ...], frozenset[int]] = {}

    def completions(
        self,
        prompts: str | Iterable[Prompt] | None,
        params: ParamsOf,
        token_ids: Sequence[object] | None = None,
        progress: PromptProgress | None = None,
    ) -> RequestBatch[RequestOutput]:
        """Requests that continue prompts; arguments as of ``LLM.generate``."""
        if token_ids is not None or prompts is None:
            prompts = with_token_ids(prompts, token_ids)
        listed = prompt_list(prompts)
        requests = [
            PendingRequest(prompt_text(prompt), self.generations(self.prompt_ids(prompt), one))
            for prompt, one in zip(listed, _per_prompt(params, len(listed)))
        ]
        _report_prefill(requests, progress)
        return RequestBatch(requests)

    def completion_stream(
        self, prompt: Prompt, params: SamplingParams | None, progress: PromptProgress | None
    ) -> PendingRequest:
        """A request that continues a prompt, for streaming."""
        ids = self.prompt_ids(prompt)
        _check_streamable(params)
        request = PendingRequest(None, self.generations(ids, params))
        _report_prefill([request], progress)
        return request

    def chats(
        self, chats: Sequence[Messages], params: ParamsOf, options: ChatOptions, progress: PromptProgress | None
    ) -> RequestBatch[RequestOutput]:
        """Requests that answer conversations."""
        requests = [self._chat(messages, one, options) for messages, one in zip(chats, _per_prompt(params, len(chats)))]
        _report_prefill(requests, progress)
        return RequestBatch(requests)

    def chat_stream(
        self,
        messages: Messages,
        params: SamplingParams | None,
        options: ChatOptions,
        progress: PromptProgress | None,
    ) -> PendingRequest:
        """A request that answers a conversation, for streaming."""
        _check_streamable(params)
        request = self._chat(messages, params, options)
        _report_prefill([request], progress)
        return request

    def _chat(self, messages: Messages, params: SamplingParams | None, options: ChatOptions) -> PendingRequest:
        tools = None if options.tools is None else checked_tools(options.tools) or None
        args = dict(options.template_args or {})
        self.check_usable()
        self.check_generates()
        template = self._templates.default if tools is None else self._templates.tool_use
        if tools is not None:
            if "tools" in args:
                raise RequestError("tools: given both as an argument and in template_args")
            if "tools" not in template.source:
                raise RequestError("tools: the chat template has no place for them (chat_template='hermes' has)")
            args["tools"] = tools
        ids = self._chat_ids(messages, template, args)
        constrained = isinstance(params, SamplingParams) and params.structured_outputs is not None
        form = answer_format(
            self.tokenizer,
            template.source,
            ids,
            reasoning=options.reasoning,
            tools=tools,
            constrained=constrained,
        )
        visible = frozenset[int]() if form is None else self._visible_ids(form.texts)
        return PendingRequest(None, self.generations(ids, params, "messages", visible), form)

    def _chat_ids(self, messages: Messages, template: ChatTemplate, template_args: Mapping[str, object]) -> list[int]:
        """Token ids of a conversation, rendered by ``template`` with ``template_args``."""
        args: dict[str, Any] = {"add_generation_prompt": True, **template_args}
        for name in args:
            if not isinstance(name, str) or name in ("tokenizer", "template", "messages"):
                raise RequestError(f"template_args: {show(name)} is not the name of a template variable")
        return self.checked_ids(encode_chat(self.tokenizer, template, messages, **args), "messages")

    def _visible_ids(self, texts: tuple[str, ...]) -> frozenset[int]:
        """The control tokens that occur in ``texts``, markers that the output parser needs."""
        if texts not in self._control_ids:
            controls = [text for text in self.tokenizer.control_texts if any(text in marker for marker in texts)]
            ids = (self.tokenizer.token_id(text) for text in controls)
            self._control_ids[texts] = frozenset(token for token in ids if token is not None)
        return self._control_ids[texts]

    def beam_searches(
        self, prompts: str | Iterable[Prompt], params: BeamSearchParams
    ) -> RequestBatch[BeamSearchOutput]:
        """Beam searches for prompts."""
        if not isinstance(params, BeamSearchParams):
            raise RequestError(f"params: expected BeamSearchParams, found {show(params)}")
        searches = []
        for prompt in prompt_list(prompts):
            ids, n_source = self._with_start_token(self.prompt_ids(prompt))
            end_ids = self._end_ids(ids, params, "prompt")
            search = BeamSearch(ids, params, end_ids=end_ids, n_ctx=self.n_ctx)
            search.n_source = n_source
            searches.append(PendingBeamSearch(prompt_text(prompt), self.with_caching(search), self.tokenizer))
        return RequestBatch(searches)

    def contrastive_searches(
        self, prompts: str | Iterable[Prompt], params: ContrastiveSearchParams | None
    ) -> RequestBatch[RequestOutput]:
        """Contrastive searches for prompts."""
        if params is None:
            params = ContrastiveSearchParams()
        if not isinstance(params, ContrastiveSearchParams):
            raise RequestError(f"params: expected ContrastiveSearchParams, found {show(params)}")
        self.refuse_encoder_decoder("contrastive search needs a model that continues its prompt")
        n_embd, searches = self.model_config.n_embd, []
        for prompt in prompt_list(prompts):
            ids = self.prompt_ids(prompt)
            end_ids = self._end_ids(ids, params, "prompt")
            search = ContrastiveSearch(ids, params, end_ids=end_ids, n_ctx=self.n_ctx, n_embd=n_embd)
            searches.append(PendingContrastiveSearch(prompt_text(prompt), self.with_caching(search), self.tokenizer))
        return RequestBatch(searches)

    def generations(
        self,
        ids: list[int],
        params: SamplingParams | None,
        field: str = "prompt",
        visible: frozenset[int] = frozenset(),
    ) -> list[Generation]:
        """One sequence for each answer to a checked prompt.

        Args:
            ids: The prompt.
            params: None: the defaults.
            field: The name of the prompt in error messages.
            visible: Control tokens that are part of the text.
        """
        self.check_usable()
        if params is None:
            params = SamplingParams()
        if not isinstance(params, SamplingParams):
            raise RequestError(f"params: expected SamplingParams, found {show(params)}")
        if params.prompt_logprobs is not None:
            self.refuse_encoder_decoder("it has no log-probabilities of a prompt")
        ids, n_source = self._with_start_token(ids)
        end_ids = self._end_ids(ids, params, field)
        seed = self._seeds.getrandbits(64) if params.seed is None else params.seed
        seeds = [(seed + choice * _SEED_STEP) % 2**64 for choice in range(_n_sequences(params))]
        healed = ""
        if params.token_healing and field == "prompt" and not n_source:
            healed = healable(self.tokenizer, ids, end_ids)
        constraint: Constraint | Healing | None = None
        if healed:
            constraint = Healing(self.tokenizer, self.tokenizer.token_bytes(ids[-1]))
            ids = ids[:-1]
        if params.structured_outputs is not None:
            from gumba.sampling.structured.constraints import compile_constraint

            constraint = compile_constraint(params.structured_outputs, self.tokenizer)
        sampling = self._sampler_state(params, ids[n_source:], end_ids)
        sequences = [
            Generation(
                ids,
                params,
                seed=one,
                sampling=sampling.fork(one),
                decoder=self._decoder(params, len(healed), visible),
                end_ids=end_ids,
                n_ctx=self.n_ctx,
                choice=choice,
                constraint=None if constraint is None else constraint.fork(),
            )
            for choice, one in enumerate(seeds)
        ]
        for follower in sequences[1:]:
            follower.leader = sequences[0]
        for sequence in sequences:
            sequence.n_source = n_source
            self._add_drafter(self.with_caching(sequence), params)
        return sequences

    def _add_drafter(self, sequence: Generation, params: SamplingParams) -> None:
        if params.prompt_lookup_tokens:
            sequence.drafter = PromptLookup(params.prompt_lookup_tokens)
        elif self._settings.draft_model is not None:
            drafts = self._drafts
            sequence.drafter = ModelDrafter(lambda: drafts.draft, self.tokenizer.n_vocab, self._settings.draft_tokens)

    def _decoder(self, params: SamplingParams, n_healed: int, visible: frozenset[int]) -> StreamDecoder | HealedDecoder:
        """The detokenizer of an answer whose first ``n_healed`` characters are the prompt's."""
        decoder = StreamDecoder(self.tokenizer, skip_special=params.skip_special_tokens, shown=visible)
        return HealedDecoder(decoder, n_healed) if n_healed else decoder

    def _end_ids(
        self, ids: list[int], params: SamplingParams | BeamSearchParams | ContrastiveSearchParams, field: str
    ) -> frozenset[int]:
        """Tokens that end an answer to the prompt ``ids``. Raises RequestError if the prompt fills the context."""
        self.check_generates()
        if len(ids) >= self.n_ctx:
            longest = self.model_config.max_ctx
            advice = (
                "shorten the prompt or load the model with a larger n_ctx"
                if self.n_ctx < longest
                else f"shorten the prompt: the model supports at most {longest} tokens"
            )
            raise RequestError(f"{field}: {len(ids)} tokens leave no room in the context of {self.n_ctx}; {advice}")
        for token in params.stop_token_ids:
            if token >= self.tokenizer.n_vocab:
                raise RequestError(
                    f"stop_token_ids: expected ids below n_vocab {self.tokenizer.n_vocab}, found {token}"
                )
        # A constrained text ends where it is complete: no more can come.
        constrained = isinstance(params, SamplingParams) and params.structured_outputs is not None
        end_ids = frozenset() if params.ignore_eos and not constrained else self.tokenizer.eog_ids
        return end_ids | frozenset(params.stop_token_ids)

    def _sampler_state(self, params: SamplingParams, ids: list[int], end_ids: frozenset[int]) -> SamplerState:
        """The sampler's state after the prompt ``ids``."""
        tokenizer, breakers = self.tokenizer, tuple(params.dry_sequence_breakers)
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

    def with_caching(self, sequence: S) -> S:
        """``sequence``, without prefix caching if the settings turn it off."""
        sequence.uses_prefix_cache = sequence.uses_prefix_cache and self._settings.prefix_caching
        return sequence

    def check_usable(self) -> None:
        """Raise EngineError if the engine is closed, or belongs to another process."""
        self._engine.check_usable()

    def check_generates(self) -> None:
        """Raise RequestError for a model that generates no text."""
        config = self.model_config
        if config.n_labels:
            use = "rerank" if config.n_labels == 1 or self.yes_no_labels else "classify"
            raise RequestError(
                f"this {config.architecture} model generates no text: it has a classification head instead of logits; use {use}"
            )
        if not config.causal:
            raise RequestError(
                f"{config.architecture} models are encoders, without logits, and generate no text: use embed"
            )

    @property
    def yes_no_labels(self) -> bool:
        """Whether the head's two outputs are the logits of the words yes and no, as of Qwen3-Reranker."""
        return self.model_config.labels == ("yes", "no")

    def _with_start_token(self, ids: list[int]) -> tuple[list[int], int]:
        """The first tokens of a sequence for the prompt ``ids``, and how many of them are an encoder's source."""
        start = self.model_config.start_token
        return (ids, 0) if start is None else ([*ids, start], len(ids))

    def refuse_encoder_decoder(self, reason: str) -> None:
        """Raise RequestError, with ``reason``, if the model is an encoder-decoder."""
        if self.model_config.start_token is not None:
            raise RequestError(f"this {self.model_config.architecture} model is an encoder-decoder: {reason}")

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt."""
        self.check_usable()
        plain = plain_prompt(prompt) if isinstance(prompt, Mapping) else prompt
        if isinstance(plain, str):
            plain = self.tokenizer.encode(plain, add_special=True, parse_special=False)
        return self.checked_ids(plain, "prompt")

    def checked_ids(self, tokens: object, field: str) -> list[int]:
        """``tokens`` as a list of ids that are all in the vocabulary: kernels index with them."""
        n_vocab = self.tokenizer.n_vocab
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

    def fitting(self, ids: list[int], field: str, *, can_truncate: bool = False) -> list[int]:
        """``ids``. Raises RequestError if they exceed the context; ``can_truncate``: the message suggests truncation."""
        if len(ids) > self.n_ctx:
            advice = "; truncate=True cuts texts to that" if can_truncate else ""
            raise RequestError(f"{field}: {len(ids)} tokens do not fit the context of {self.n_ctx}{advice}")
        return ids


def _report_prefill(requests: Sequence[PendingRequest], progress: PromptProgress | None) -> None:
    """Have ``progress`` called as the engine computes the prompts of ``requests``; each prompt counts once."""
    if progress is None:
        return
    leaders = [sequence for request in requests for sequence in request.sequences if sequence.leader is None]
    total, computed = sum(leader.n_prompt for leader in leaders), [0] * len(leaders)

    def reporter(index: int) -> Callable[[int, int], object]:
        def report(done: int, _: int) -> object:
            computed[index] = max(computed[index], done)
            return progress(sum(computed), total)

        return report

    for index, leader in enumerate(leaders):
        leader.on_prompt = reporter(index)


def _n_sequences(params: SamplingParams) -> int:
    """Number of answers to compute, of which the best ``n`` are returned."""
    return params.n if params.best_of is None else params.best_of


def _check_streamable(params: SamplingParams | None) -> None:
    if isinstance(params, SamplingParams) and _n_sequences(params) > params.n:
        raise RequestError("best_of: which answers are best is only known at the end, so they cannot be streamed")


def _per_prompt(params: ParamsOf, count: int) -> Sequence[SamplingParams | None]:
    """The parameters of each of ``count`` requests."""
    if not isinstance(params, Sequence):
        return [params] * count
    if len(params) != count:
        raise RequestError(f"params: expected one SamplingParams per prompt ({count}), found {len(params)}")
    return params
