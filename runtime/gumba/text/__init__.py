"""Text to tokens and back: tokenizers, stream decoding, chat templates."""

from gumba.text.chat import ChatTemplate, encode_chat
from gumba.text.stream import StreamDecoder
from gumba.text.tokenizer import Tokenizer

__all__ = ["ChatTemplate", "StreamDecoder", "Tokenizer", "encode_chat"]
