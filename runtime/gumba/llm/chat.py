"""The part of an ``LLM`` that answers conversations."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict, overload

from gumba.llm.base import LLMBase, run_in_thread
from gumba.llm.chat_stream import parsed
from gumba.llm.input_processor import ChatOptions, Messages, ParamsOf, PromptProgress, report
from gumba.llm.output_processor import PendingRequest
from gumba.outputs import RequestOutput, StreamOutput
from gumba.sampling_params import SamplingParams
from gumba.validation import template_variables

if TYPE_CHECKING:
    from typing_extensions import Unpack  # the standard library's from Python 3.11 on

#: Functions that a model may call, as OpenAI's API has them.
Tools = Sequence[Mapping[str, Any]] | None


class ChatKeywords(TypedDict, total=False):
    """What ``achat`` takes by name."""

    tools: Tools
    reasoning: str
    template_args: Mapping[str, Any] | None
    chat_template_kwargs: Mapping[str, Any] | None
    progress: PromptProgress | None


class BarredChatKeywords(ChatKeywords, total=False):
    """What ``chat`` takes by name."""

    use_tqdm: bool


class ChatMixin(LLMBase):
    """Answers to conversations."""

    @overload
    def chat(
        self, messages: Messages, sampling_params: SamplingParams | None = None, **options: Unpack[BarredChatKeywords]
    ) -> RequestOutput: ...
    @overload
    def chat(
        self, messages: Sequence[Messages], sampling_params: ParamsOf = None, **options: Unpack[BarredChatKeywords]
    ) -> list[RequestOutput]: ...
    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: ParamsOf = None,
        *,
        tools: Tools = None,
        reasoning: str = "auto",
        template_args: Mapping[str, Any] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        progress: PromptProgress | None = None,
        use_tqdm: bool = False,
    ) -> RequestOutput | list[RequestOutput]:
        """Answer a conversation, a list of ``{"role": ..., "content": ...}``, by the file's chat template.

        Of a list of conversations all are answered, as a list. ``tools``: functions that the model may call, as OpenAI's
        schemas; what it calls is in ``tool_calls`` of the answer. ``reasoning``: "auto" tells it from the answer as the
        template says, "off" leaves it in the text, or the name of a form: "harmony", or one of ``gumba.chat.formats.REASONING``.
        ``template_args`` are further variables for the template (``enable_thinking`` of some models), ``chat_template_kwargs``
        is vLLM's name of the same; the rest as of ``generate``. Raises as ``stream`` does, and TemplateError.
        """
        several = _several(messages)
        requests = self._chats(
            several, messages, sampling_params, _options(template_args, chat_template_kwargs, tools, reasoning)
        )
        outputs = self._run(requests, progress, use_tqdm)
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
        template_args: Mapping[str, Any] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        progress: PromptProgress | None = None,
    ) -> RequestOutput | list[RequestOutput]:
        """As ``chat``, for an event loop."""
        several = _several(messages)
        options = _options(template_args, chat_template_kwargs, tools, reasoning)
        requests = await run_in_thread(
            lambda: self._chats(several, messages, sampling_params, options), sampling_params
        )
        outputs = await self._arun(requests, progress)
        return outputs if several else outputs[0]

    def chat_stream(
        self,
        messages: Messages,
        sampling_params: SamplingParams | None = None,
        *,
        tools: Tools = None,
        reasoning: str = "auto",
        template_args: Mapping[str, Any] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        progress: PromptProgress | None = None,
    ) -> Iterator[StreamOutput]:
        """As ``chat`` of one conversation, one StreamOutput per token, as ``stream`` gives them."""
        options = _options(template_args, chat_template_kwargs, tools, reasoning)
        request = self._chat_streamed(messages, sampling_params, options, progress)
        return parsed(request, self._engine.stream(request.generations))

    def achat_stream(
        self,
        messages: Messages,
        sampling_params: SamplingParams | None = None,
        *,
        tools: Tools = None,
        reasoning: str = "auto",
        template_args: Mapping[str, Any] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        progress: PromptProgress | None = None,
    ) -> AsyncIterator[StreamOutput]:
        """As ``chat_stream``, for an event loop. With ``structured_outputs`` the checks come with the first item, too."""
        options = _options(template_args, chat_template_kwargs, tools, reasoning)
        return self._astream(lambda: self._chat_streamed(messages, sampling_params, options, progress), sampling_params)

    def _chat_streamed(
        self, messages: Messages, params: SamplingParams | None, options: ChatOptions, progress: PromptProgress | None
    ) -> PendingRequest:
        request = self._inputs.chat_streamed(messages, params, options)
        report(request.generations, progress)
        return request

    def _chats(
        self, several: bool, messages: Messages | Sequence[Messages], params: ParamsOf, options: ChatOptions
    ) -> list[PendingRequest]:
        chats: Any = messages if several else [messages]
        each: Any = params if several else [params]
        return self._inputs.chats(chats, each, options)


def _options(
    template_args: Mapping[str, Any] | None,
    chat_template_kwargs: Mapping[str, Any] | None,
    tools: Tools,
    reasoning: str,
) -> ChatOptions:
    given = {"template_args": template_args, "chat_template_kwargs": chat_template_kwargs}
    return ChatOptions(template_variables(given), tools, reasoning)


def _several(messages: Any) -> bool:
    """Whether these are several conversations, not the messages of one."""
    return isinstance(messages, Sequence) and bool(messages) and isinstance(messages[0], list | tuple)
