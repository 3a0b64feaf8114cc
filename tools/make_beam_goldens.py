"""Make tests/data/beam_goldens.json: what transformers' beam search finds on the tiny models of tests/data.

    python tools/make_beam_goldens.py             # needs torch, transformers, gguf

The models are built as ``make_model_goldens.py`` builds them, and run in float64, so that no answer hangs on a rounding;
a case is refused when float32 finds other sequences. Each case holds the prompt, the parameters in gumba's names, and the
sequences found with their scores (``sequences_scores``), best first.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np

from make_model_goldens import DATA, GOLDENS, build

#: gumba's parameters, and in transformers' words.
NAMES = {
    "beam_width": "num_beams",
    "n": "num_return_sequences",
    "max_tokens": "max_new_tokens",
    "min_tokens": "min_new_tokens",
}

#: Model, tokens of the prompt, parameters.
CASES: list[tuple[str, int, dict[str, Any]]] = [
    ("plain", 5, {"beam_width": 4, "n": 4, "max_tokens": 12}),
    ("plain", 70, {"beam_width": 3, "n": 2, "max_tokens": 20, "length_penalty": 0.0}),
    ("gqa_tied", 9, {"beam_width": 5, "n": 5, "max_tokens": 24, "ends": 40}),
    ("gqa_tied", 9, {"beam_width": 5, "n": 5, "max_tokens": 24, "ends": 40, "early_stopping": True}),
    ("gqa_tied", 9, {"beam_width": 5, "n": 5, "max_tokens": 24, "ends": 40, "early_stopping": "never"}),
    ("gqa_tied", 9, {"beam_width": 5, "n": 5, "max_tokens": 24, "ends": 40, "early_stopping": True, "min_tokens": 4}),
    ("llama3", 3, {"beam_width": 4, "n": 3, "max_tokens": 16, "ends": 6, "length_penalty": -1.5}),
    ("llama3", 3, {"beam_width": 4, "n": 3, "max_tokens": 16, "ends": 6, "length_penalty": 2.5, "early_stopping": "never"}),
    ("llama3", 66, {"beam_width": 4, "n": 4, "max_tokens": 16, "ends": 6, "length_penalty": 2.5}),
    ("linear", 20, {"beam_width": 6, "n": 6, "max_tokens": 18, "ends": 3, "repetition_penalty": 1.7}),
    ("linear", 20, {"beam_width": 6, "n": 6, "max_tokens": 18, "no_repeat_ngram_size": 2}),
    ("bias", 7, {"beam_width": 3, "n": 3, "max_tokens": 15, "ends": 50}),
    ("wide_head", 62, {"beam_width": 8, "n": 8, "max_tokens": 10, "ends": 4, "early_stopping": True}),
    ("wide_head", 1, {"beam_width": 2, "n": 1, "max_tokens": 40}),
    ("yarn", 30, {"beam_width": 16, "n": 16, "max_tokens": 8, "ends": 8, "no_repeat_ngram_size": 1, "repetition_penalty": 0.8}),
]  # fmt: skip


def search(
    model: Any, prompt: list[int], params: dict[str, Any], ends: list[int]
) -> tuple[list[list[int]], list[float]]:
    """The tokens of the best answers, and their scores."""
    import torch

    options = {NAMES.get(name, name): value for name, value in params.items()}
    ids = torch.tensor([prompt])
    with torch.no_grad():
        found = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            eos_token_id=ends,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
            output_logits=True,
            **options,
        )
    lengths = (found.beam_indices >= 0).sum(dim=1).tolist()
    rows = found.sequences[:, len(prompt) :].tolist()
    return [row[:length] for row, length in zip(rows, lengths)], found.sequences_scores.tolist()


def main() -> None:
    """Write the file."""
    cases = []
    for name, n_prompt, params in CASES:
        golden = next(golden for golden in GOLDENS if golden.name == name)
        with np.load(DATA / f"model_{name}.npz") as stored:
            prompt = stored["tokens"][:n_prompt].tolist()
        params = dict(params)
        n_ends = params.pop("ends", 0)
        # The file's own end-of-generation token is 2.
        rng = np.random.default_rng(n_ends)
        more = sorted(rng.choice(np.arange(3, golden.vocab), n_ends, replace=False).tolist())
        model = build(golden, {})
        single = search(model, prompt, params, [2, *more])
        sequences, scores = search(model.double(), prompt, params, [2, *more])
        if single[0] != sequences:
            sys.exit(f"{name} {params}: float32 finds other sequences")
        reasons = [sum(row[-1] in (2, *more) for row in sequences), len(sequences)]
        print(
            f"{name} {params}: {reasons[0]} of {reasons[1]} ended, lengths {[len(row) for row in sequences]}, {scores[0]:.4f}"
        )
        params["stop_token_ids"] = more
        cases.append({"model": name, "prompt": prompt, "params": params, "sequences": sequences, "scores": scores})
    lines = ",\n".join(json.dumps(case) for case in cases)
    (DATA / "beam_goldens.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
