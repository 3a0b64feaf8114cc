"""Converts Hugging Face checkpoints to GGUF files, and back."""

from __future__ import annotations

from gumba.hub.fetch import fetch
from gumba_convert.to_gguf import ConvertReport, convert
from gumba_convert.to_hf import ExportReport, export

__all__ = ["ConvertReport", "ExportReport", "convert", "export", "fetch"]
