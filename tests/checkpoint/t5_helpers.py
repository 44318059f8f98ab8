"""Tiny T5s of transformers, and texts that take every way through them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

SIZES = {
    "vocab_size": 31, "d_model": 24, "d_kv": 5, "d_ff": 40, "num_layers": 2, "num_heads": 3,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12, "decoder_start_token_id": 0,
}  # fmt: skip
CLASSES = ("T5ForConditionalGeneration", "T5Model", "T5EncoderModel", "MT5ForConditionalGeneration", "MT5EncoderModel")
OUTPUTS = ("logits", "last_hidden_state", "encoder_last_hidden_state")
TOKENS = 17


def save(cls: str, folder: Path, redraw: Callable[..., Any], own_scores: bool = False, **fields: Any) -> Any:
    """A model of transformers in float64, redrawn, that has saved itself into the folder.

    Args:
        own_scores: whether tokens are scored by vectors of their own.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    kind = getattr(transformers, cls)
    config = kind.config_class(**{**SIZES, **fields})
    config._attn_implementation = "sdpa" if kind._supports_sdpa else "eager"
    torch.manual_seed(0)
    model = kind(config).double()
    if own_scores:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    redraw(model).eval().save_pretrained(folder)
    return model


def inputs(theirs: Any, tokens: int = TOKENS) -> Iterator[dict[str, Any]]:
    """Texts for a model of theirs, padded in every way, and what a decoder has written so far."""
    generator = torch.Generator().manual_seed(3)
    words, decodes = theirs.config.vocab_size, "Encoder" not in type(theirs).__name__

    def ids(number: int) -> torch.Tensor:
        return torch.randint(0, words, (3, number), generator=generator)

    def both(read: dict[str, Any], written: int = tokens - 4, **others: Any) -> dict[str, Any]:
        return {**read, "decoder_input_ids": ids(written), **others} if decodes else read

    yield both({"input_ids": ids(tokens)})
    yield both({"input_ids": ids(tokens)}, tokens + 9)
    place, end = torch.arange(tokens), torch.tensor([tokens, tokens // 2, 1])[:, None]
    holes = torch.rand(3, tokens, generator=generator) > 0.4
    holes[:, 2] = True
    for real in (place < end, place >= tokens - end, holes):
        yield both({"input_ids": ids(tokens), "attention_mask": real.long()})
    if decodes:
        seen = torch.rand(3, tokens, generator=generator) > 0.4
        seen[:, 0] = True
        yield both({"input_ids": ids(tokens), "attention_mask": holes.long()}, tokens, decoder_attention_mask=seen.long())


@torch.no_grad()
def agree(ours: Any, theirs: Any, bound: float = 1e-12, tokens: int = TOKENS) -> None:
    """Every output that both have is equal within `bound` of the largest, on every kind of text."""
    for batch in inputs(theirs, tokens):
        same(ours(**batch), theirs(**batch, return_dict=True), bound)


def same(own: Any, other: Any, bound: float = 1e-12) -> None:
    """Every output that theirs has is ours."""
    answers = [name for name in OUTPUTS if torch.is_tensor(other.get(name))]
    assert answers
    for name in answers:
        mine, value = getattr(own, name), other[name]
        assert mine.shape == value.shape
        assert (mine - value).abs().max() <= bound * max(1.0, float(value.detach().abs().max())), name
