"""``pipeline`` and its classes at their documented import path."""

from gumba.compat.transformers.pipelines import TextGenerationPipeline, TextIteratorStreamer, TextStreamer, pipeline

__all__ = ["TextGenerationPipeline", "TextIteratorStreamer", "TextStreamer", "pipeline"]
