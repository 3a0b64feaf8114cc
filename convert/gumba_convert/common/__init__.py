"""What families share: sizes, tensors, metadata."""
