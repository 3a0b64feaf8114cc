"""Chat API of ``LLM``: answers to conversations, by the model's chat template."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict, cast, overload

from gumba.llm.base import LLMBase, answer_bar, build_async
from gumba.llm.input_processor import ChatOptions, Messages, ParamsOf, PromptProgress
from gumba.llm.output_processor import RequestBatch
from gumba.outputs import RequestOutput, StreamOutput
from gumba.sampling_params import SamplingParams
from gumba.validation import template_variables

if TYPE_CHECKING:
    from typing_extensions import Unpack  # the standard library's from Python 3.11 on

#: Functions that a model may call, as OpenAI's API has them.
Tools = Sequence[Mapping[str, object]] | None


class ChatKeywords(TypedDict, total=False):
    """Keywords of ``achat``."""

    tools: Tools
    reasoning: str
    template_args: Mapping[str, object] | None
    chat_template_kwargs: Mapping[str, object] | None
    progress: PromptProgress | None


class BlockingChatKeywords(ChatKeywords, total=False):
    """Keywords of ``chat``."""

    use_tqdm: bool


class ChatMixin(LLMBase):
    """Chat API of ``LLM``: chat, chat_stream and their versions for an event loop."""

    @overload
    def chat(
        self, messages: Messages, sampling_params: SamplingParams | None = None, **options: Unpack[BlockingChatKeywords]
    ) -> RequestOutput: ...
    @overload
    def chat(
        self, messages: Sequence[Messages], sampling_params: ParamsOf = None, **options: Unpack[BlockingChatKeywords]
    ) -> list[RequestOutput]: ...
    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: ParamsOf = None,
        *,
        tools: Tools = None,
        reasoning: str = "auto",
        template_args: Mapping[str, object] | None = None,
        chat_template_kwargs: Mapping[str, object] | None = None,
        progress: PromptProgress | None = None,
        use_tqdm: bool = False,
    ) -> RequestOutput | list[RequestOutput]:
        """Answer a conversation, a list of ``{"role": ..., "content": ...}``, by the file's chat template.

        Args:
            messages: A conversation, which returns one output, or a list of conversations, which returns a list.
            sampling_params: As for ``generate``.
            tools: Functions that the model may call, as OpenAI's schemas; the calls are in ``tool_calls`` of the answer.
            reasoning: "auto" separates the model's reasoning from its answer by the tags in the template, "off" leaves it in
                the text; or the name of a format: "harmony", or one of ``gumba.chat.formats.REASONING``.
            template_args: Further variables of the template (``enable_thinking`` of some models).
            chat_template_kwargs: vLLM's name of ``template_args``.
            progress: As for ``generate``.
            use_tqdm: As for ``generate``.

        Raises as ``stream`` does, and TemplateError.
        """
        several = _several(messages)
        options = _options(template_args, chat_template_kwargs, tools, reasoning)
        batch = self._chat_batch(several, messages, sampling_params, options, progress)
        sequences = batch.sequences
        with answer_bar(len(sequences), use_tqdm) as count:
            self._engine.finish(sequences, count)
        outputs = batch.outputs()
        return outputs if several else outputs[0]

    @overload
    async def achat(
        self, messages: Messages, sampling_params: SamplingParams | None = None, **options: Unpack[ChatKeywords]
    ) -> RequestOutput: ...
    @overload
    async def achat(
        self, messages: Sequence[Messages], sampling_params: ParamsOf = None, **options: Unpack[ChatKeywords]
    ) -> list[RequestOutput]: ...
    async def achat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: ParamsOf = None,
        *,
        tools: Tools = None,
        reasoning: str = "auto",
        template_args: Mapping[str, object] | None = None,
        chat_template_kwargs: Mapping[str, object] | None = None,
        progress: PromptProgress | None = None,
    ) -> RequestOutput | list[RequestOutput]:
        """As ``chat``, for an event loop."""
        several = _several(messages)
        options = _options(template_args, chat_template_kwargs, tools, reasoning)
        batch = await build_async(
            lambda: self._chat_batch(several, messages, sampling_params, options, progress), sampling_params
        )
        outputs = await self._afinish(batch)
        return outputs if several else outputs[0]

    def chat_stream(
        self,
        messages: Messages,
        sampling_params: SamplingParams | None = None,
        *,
        tools: Tools = None,
        reasoning: str = "auto",
        template_args: Mapping[str, object] | None = None,
        chat_template_kwargs: Mapping[str, object] | None = None,
        progress: PromptProgress | None = None,
    ) -> Iterator[StreamOutput]:
        """As ``chat`` of one conversation, one StreamOutput per token, as ``stream`` gives them."""
        options = _options(template_args, chat_template_kwargs, tools, reasoning)
        request = self._inputs.chat_stream(messages, sampling_params, options, progress)
        return request.parsed(self._engine.stream(request.sequences))

    def achat_stream(
        self,
        messages: Messages,
        sampling_params: SamplingParams | None = None,
        *,
        tools: Tools = None,
        reasoning: str = "auto",
        template_args: Mapping[str, object] | None = None,
        chat_template_kwargs: Mapping[str, object] | None = None,
        progress: PromptProgress | None = None,
    ) -> AsyncIterator[StreamOutput]:
        """As ``chat_stream``, for an event loop. With ``structured_outputs`` arguments are checked with the first item, too."""
        options = _options(template_args, chat_template_kwargs, tools, reasoning)
        return self._astream(
            lambda: self._inputs.chat_stream(messages, sampling_params, options, progress), sampling_params
        )

    def _chat_batch(
        self,
        several: bool,
        messages: Messages | Sequence[Messages],
        params: ParamsOf,
        options: ChatOptions,
        progress: PromptProgress | None,
    ) -> RequestBatch[RequestOutput]:
        chats = cast("Sequence[Messages]", messages if several else [messages])
        per_chat = cast("ParamsOf", params if several else [params])
        return self._inputs.chats(chats, per_chat, options, progress)


def _options(
    template_args: Mapping[str, object] | None,
    chat_template_kwargs: Mapping[str, object] | None,
    tools: Tools,
    reasoning: str,
) -> ChatOptions:
    given = {"template_args": template_args, "chat_template_kwargs": chat_template_kwargs}
    return ChatOptions(template_variables(given), tools, reasoning)


def _several(messages: object) -> bool:
    """Whether these are several conversations, not the messages of one."""
    return isinstance(messages, Sequence) and bool(messages) and isinstance(messages[0], list | tuple)
