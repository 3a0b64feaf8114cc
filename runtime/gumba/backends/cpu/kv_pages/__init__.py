"""Formats of KV cache pages, one file each, and their registry."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from gumba.backends.cpu.kernels.page_format import PAGE_TOKENS, PageFormat
from gumba.backends.cpu.kv_pages.bf16 import BF16_PAGES
from gumba.backends.cpu.kv_pages.float import F16_PAGES, F32_PAGES
from gumba.backends.cpu.kv_pages.q8_0 import Q8_0_PAGES

#: Every page format by its name, which is the value of ``kv_type``.
PAGE_FORMATS: Mapping[str, PageFormat] = MappingProxyType(
    {pages.name: pages for pages in (BF16_PAGES, F16_PAGES, F32_PAGES, Q8_0_PAGES)}
)

__all__ = ["PAGE_FORMATS", "PAGE_TOKENS", "PageFormat"]
