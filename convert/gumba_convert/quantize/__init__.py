"""Chooses the block format of each tensor."""
