"""Vocabularies and tokenizer settings of a checkpoint, as GGUF stores them."""
