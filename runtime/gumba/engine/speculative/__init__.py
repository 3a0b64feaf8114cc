"""Speculative decoding: proposals of the next tokens, verified by the model in one step."""
