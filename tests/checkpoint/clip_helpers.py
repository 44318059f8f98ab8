"""Tiny CLIPs of transformers, and inputs that take every way through them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

TEXT = {
    "vocab_size": 31, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 40,
    "max_position_embeddings": 12, "projection_dim": 10, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 20,
    "patch_size": 5, "projection_dim": 10,
}  # fmt: skip
CLASSES = (
    "CLIPModel", "CLIPTextModel", "CLIPTextModelWithProjection", "CLIPVisionModel", "CLIPVisionModelWithProjection",
)  # fmt: skip
TOKENS = 9


def save(cls: str, folder: Path, redraw: Callable[..., Any], **fields: Any) -> Any:
    """A model of transformers in float64, redrawn, that has saved itself into the folder.

    Fields of a tower within a whole model are named `text.hidden_size` and so on.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    kind = getattr(transformers, cls)
    values: dict[str, Any]
    if cls == "CLIPModel":
        inner = {"text": dict(TEXT), "vision": dict(VISION)}
        values = {"projection_dim": 10}
        for name, value in fields.items():
            tower, _, field = name.rpartition(".")
            (inner[tower] if tower else values)[field] = value
        values |= {f"{tower}_config": each for tower, each in inner.items()}
    else:
        values = {**(TEXT if "Text" in cls else VISION), **fields}
    config = kind.config_class(**values)
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    model = redraw(kind(config).double()).eval()
    model.save_pretrained(folder)
    return model


def texts(config: Any) -> Iterator[dict[str, Any]]:
    """Texts that end where they should, in the middle, again and again or nowhere, padded with anything."""
    generator = torch.Generator().manual_seed(3)
    words, tokens = config.vocab_size, min(TOKENS, config.max_position_embeddings)
    end = words - 1 if config.eos_token_id == 2 else config.eos_token_id
    plain = torch.randint(3, words - 1, (4, tokens), generator=generator)
    plain = torch.where(plain == end, 3, plain)
    place, at = torch.arange(tokens), torch.tensor([tokens - 1, tokens // 2, 1, 0])[:, None]
    padded = {
        "end": torch.where(place < at, plain, end),
        "anything": torch.where(place == at, end, plain),
        "zeros": torch.where(place < at, plain, torch.where(place == at, end, 0)),
    }
    real = (place <= at).long()
    yield {"input_ids": plain}
    for ids in padded.values():
        yield {"input_ids": ids}
        yield {"input_ids": ids, "attention_mask": real}
    yield {"input_ids": torch.where(place % 3 == 1, end, plain)}
    holes = torch.rand(plain.shape, generator=generator) > 0.4
    holes[:, 0] = True
    yield {"input_ids": padded["anything"], "attention_mask": holes.long()}
    positions = torch.randint(0, config.max_position_embeddings, plain.shape, generator=generator)
    yield {"input_ids": padded["end"], "position_ids": positions}


def images(config: Any) -> Iterator[dict[str, Any]]:
    """Images of the trained size and of others, some of whose grids are as large as the trained one."""
    generator, side, patch = torch.Generator().manual_seed(4), config.image_size, config.patch_size

    def pixels(height: int, width: int) -> torch.Tensor:
        return torch.randn(3, config.num_channels, height, width, generator=generator, dtype=torch.float64)

    yield {"pixel_values": pixels(side, side)}
    for size in ((side, side), (side + patch, side - patch), (side, side + 1), (2 * side, side // 2), (side + 3, side + 3)):
        yield {"pixel_values": pixels(*size), "interpolate_pos_encoding": True}


def inputs(theirs: Any) -> Iterator[dict[str, Any]]:
    """Inputs for a model of theirs."""
    config = theirs.config
    if config.model_type == "clip_text_model":
        yield from texts(config)
    elif config.model_type == "clip_vision_model":
        yield from images(config)
    else:
        words, pictures = list(texts(config.text_config)), list(images(config.vision_config))
        for number in range(max(len(words), len(pictures))):
            yield {**words[number % len(words)], **pictures[number % len(pictures)]}


@torch.no_grad()
def agree(ours: Any, theirs: Any, bound: float = 1e-12) -> None:
    """Every output of theirs, those of towers included, is ours within `bound` of the largest, for all inputs."""
    for batch in inputs(theirs):
        same(ours(**batch, output_hidden_states=True), theirs(**batch, output_hidden_states=True), bound)


def same(own: Any, other: Any, bound: float = 1e-12) -> None:
    """Every output of theirs is ours."""
    assert other.keys()
    for name in other.keys():  # noqa: SIM118 (not a mapping)
        mine, value = getattr(own, name), other[name]
        if hasattr(value, "keys"):
            same(mine, value, bound)
            continue
        for left, right in zip(mine, value, strict=True) if isinstance(value, tuple) else [(mine, value)]:
            assert left.shape == right.shape, name
            assert (left - right).abs().max() <= bound * max(1.0, float(right.abs().max())), name
