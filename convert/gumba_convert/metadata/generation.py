"""End-of-generation tokens and sampler settings of a checkpoint, from generation_config.json and config.json.

GGUF has keys for the end of a text and for some sampler settings, `general.sampling.*`: `general` writes those that gguf reads,
this module the repetition penalty. A warning names settings without a key.
"""

from __future__ import annotations

from collections.abc import Collection

from gumba.tokenizer.vocabulary import EOG_KEY, KINDS, end_ids
from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.checkpoint.json_object import JsonObject
from gumba_convert.gguf_writer import I32, Value, f32, i32_array
from gumba_convert.vocabulary.tokens import Vocabulary

FILE = "generation_config.json"
#: Settings that affect the text but have no GGUF key -> their neutral values (besides null).
UNSTORED: dict[str, tuple[object, ...]] = {
    "do_sample": (True,),
    "max_new_tokens": (),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "max_time": (),
    "stop_strings": ([],),
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0,),
    "penalty_alpha": (0,),
    "dola_layers": (),
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "top_h": (),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "bad_words_ids": ([],),
    "force_words_ids": ([],),
    "constraints": ([],),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "sequence_bias": ([], {}),
    "exponential_decay_length_penalty": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "forced_decoder_ids": ([],),
    "guidance_scale": (1,),
    "token_healing": (False,),
    "watermarking_config": (),
    "num_return_sequences": (1,),
}
#: Settings of beam search.
BEAM_SEARCH: dict[str, tuple[object, ...]] = {"length_penalty": (1,), "early_stopping": (False,)}


def generation_metadata(
    checkpoint: Checkpoint, vocabulary: Vocabulary, stored: Collection[str] = ()
) -> tuple[dict[str, Value], list[str]]:
    """Metadata of end-of-generation tokens and the repetition penalty, and warnings.

    Args:
        stored: keys of the model's other metadata; Gemma 4's includes the suppressed tokens.

    Raises:
        ConvertError: generation_config.json is not a JSON object.
    """
    given = checkpoint.json(FILE) or {}
    values, warnings = _ends(checkpoint, given, vocabulary)
    unstored = UNSTORED | (BEAM_SEARCH if given.get("num_beams") not in (None, 1) else {})
    named = [
        key
        for key, neutral in unstored.items()
        if given.get(key) is not None and given[key] not in neutral and f"tokenizer.ggml.{key}" not in stored
    ]
    penalty = _number(given.get("repetition_penalty"))
    if penalty is not None and 0 < penalty < 1e6 and penalty != 1:
        values["general.sampling.penalty_repeat"] = f32(penalty)
        values["general.sampling.penalty_last_n"] = Value(I32, -1)  # transformers penalizes the whole text
    elif given.get("repetition_penalty") not in (None, 1):
        named.append("repetition_penalty")
    length, n_ctx = _number(given.get("max_length")), _number(checkpoint.config.get("max_position_embeddings"))
    if length is not None and length != 20 and (n_ctx is None or length < n_ctx):  # 20 is transformers' default
        named.append("max_length")
    if named:
        settings = ", ".join(f"{key} {given[key]!r:.40}" for key in named)
        warnings.append(f"{FILE} sets {settings}; GGUF has no key for it: pass it when you generate text")
    return values, warnings


def _ends(checkpoint: Checkpoint, given: JsonObject, vocabulary: Vocabulary) -> tuple[dict[str, Value], list[str]]:
    """The ids at which transformers stops, but readers of the file would not stop without them."""
    text_config = checkpoint.config.get("text_config")
    sources = {
        FILE: given,
        "config.json": checkpoint.config,
        "text_config of config.json": text_config if isinstance(text_config, dict) else {},
    }
    end_tokens: dict[int, None] = {}
    warnings = []
    for where, source in sources.items():
        listed = source.get("eos_token_id")
        for i in listed if isinstance(listed, list) else [listed]:
            if type(i) is int and 0 <= i < len(vocabulary.tokens):
                end_tokens[i] = None
            elif i is not None and i != -1:
                warnings.append(f"eos_token_id {i!r:.40} in {where} is not a token and is omitted")
    special = {**KINDS[vocabulary.model].special, **vocabulary.special.ids}
    ids = {text.encode("utf-8", "surrogatepass"): i for i, text in enumerate(vocabulary.tokens)}
    missing = sorted(end_tokens.keys() - end_ids(ids, special, vocabulary.types.copy()))
    if not missing:
        return {}, warnings
    texts = ", ".join(f"{vocabulary.tokens[i]!r:.60} ({i})" for i in missing[:8])
    warnings.append(
        f"gumba stops at {texts}, which eos_token_id lists; llama.cpp does not, because GGUF has no key for it"
    )
    return {EOG_KEY: i32_array(missing)}, warnings


def _number(value: object) -> float | None:
    """The value as a float; None if it is not a finite number."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300:
        return float(value)
    return None
