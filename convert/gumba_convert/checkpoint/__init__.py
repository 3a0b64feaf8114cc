"""Hugging Face checkpoints: folders, safetensors files, and downloads from hubs."""
