"""GGUF architectures as Hugging Face checkpoints."""
