"""Formats of KV cache pages, one file each."""
