"""Every architecture that runs, by its name in files."""

from __future__ import annotations

from types import ModuleType

from gumba.errors import UnsupportedError
from gumba.gguf import GGUFFile
from gumba.models import (
    baichuan,
    bert,
    chatglm,
    cohere2,
    command_r,
    deepseek2,
    exaone4,
    falcon,
    gemma,
    gemma2,
    gemma3,
    gemma3n,
    gemma4,
    gemma_embedding,
    glm4,
    gpt2,
    gpt_oss,
    gptneox,
    granite,
    granitemoe,
    internlm2,
    jina_bert_v2,
    jina_bert_v3,
    lfm2,
    llama,
    llama4,
    modern_bert,
    mpnet,
    nomic_bert,
    olmo2,
    phi2,
    phi3,
    qwen,
    qwen2,
    qwen2moe,
    qwen2vl,
    qwen3,
    qwen3moe,
    qwen3vl,
    qwen3vlmoe,
    qwen35,
    qwen35moe,
    seed_oss,
    smollm3,
    stablelm,
    starcoder2,
    t5,
    t5encoder,
)

ARCHITECTURES: dict[str, ModuleType] = {
    module.NAME: module
    for module in (
        llama, llama4, qwen, qwen2, qwen2moe, qwen2vl, qwen3, qwen3moe, qwen3vl, qwen3vlmoe,
        chatglm, glm4, gemma, gemma2, gemma3, gemma3n, gemma4, phi2, phi3, gpt2,
        gptneox, starcoder2, stablelm, falcon, internlm2, olmo2, baichuan, granite, granitemoe, smollm3, exaone4,
        command_r, cohere2, deepseek2, gpt_oss, lfm2, qwen35, qwen35moe, seed_oss,
        bert, mpnet, nomic_bert, jina_bert_v2, jina_bert_v3, modern_bert, gemma_embedding,
        t5, t5encoder,
    )
}  # fmt: skip


def architecture(gguf: GGUFFile) -> ModuleType:
    """The module of a file's architecture. Raises UnsupportedError listing the known ones."""
    name = gguf.require("general.architecture", str)
    if name not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise UnsupportedError(f"{gguf.path}: architecture {name!r} is not known; this version runs: {known}")
    return ARCHITECTURES[name]
