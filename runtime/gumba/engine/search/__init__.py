"""Search over several continuations of a prompt: beam search and contrastive search."""
