"""The inputs that ours and the reference are compared on."""

from __future__ import annotations

from typing import Any

import torch


def cases(config: Any, library: str, seed: int, examples: int = 2) -> dict[str, dict[str, Any]]:
    """Inputs by name, in float64: plain ones, and those that take another way through the model."""
    generator = torch.Generator().manual_seed(seed + 100)
    if config.embedding.type == "tokens":
        return _texts(config, generator, examples)
    return _images(config.embedding, library, generator, examples)


def _images(embedding: Any, library: str, generator: torch.Generator, examples: int) -> dict[str, dict[str, Any]]:
    def pixels(height: int, width: int) -> torch.Tensor:
        return torch.randn(examples, embedding.channels, height, width, generator=generator, dtype=torch.float64)

    (height, width), (rows, columns) = embedding.image_size, embedding.patch_size
    batches: dict[str, dict[str, Any]] = {"images": {"pixel_values": pixels(height, width)}}
    other = pixels(height + rows, max(width - 2 * columns, columns))
    square = embedding.patch_size[0] == embedding.patch_size[1] and embedding.grid[0] == embedding.grid[1]
    if library == "transformers":
        tokens = embedding.grid[0] * embedding.grid[1] + embedding.prefix
        mask = torch.rand(examples, tokens, generator=generator) > 0.3
        mask[:, 0] = True  # what a row of nothing but masked tokens gives is nobody's definition
        batches["masked tokens"] = {"pixel_values": pixels(height, width), "attention_mask": mask.long()}
        if square:
            batches["another image size"] = {"pixel_values": other, "interpolate_pos_encoding": True}
    elif embedding.flexible:
        batches["another image size"] = {"pixel_values": other}
    return batches


def _texts(config: Any, generator: torch.Generator, examples: int, tokens: int = 24) -> dict[str, dict[str, Any]]:
    embedding = config.embedding
    length = getattr(embedding.position, "length", None) or tokens + 2
    tokens = min(tokens, length - (embedding.padding + 1 if embedding.count == "unpadded" else 0))
    choices = (3,) if getattr(config.head, "type", None) == "multiple-choice" else ()
    shape = (max(examples, 2), *choices, tokens)

    def texts() -> dict[str, Any]:
        words = embedding.vocabulary - (0 if embedding.padding is None else 1)
        ids = torch.randint(0, max(words, 1), shape, generator=generator)
        if embedding.padding is not None:
            ids += ids >= embedding.padding  # every token but padding
        segments = torch.randint(0, max(embedding.segments, 1), shape, generator=generator)
        return {"input_ids": ids, **({"token_type_ids": segments} if embedding.segments > 1 else {})}

    def padded(real: torch.Tensor) -> dict[str, Any]:
        inputs = texts()
        if embedding.padding is not None:
            inputs["input_ids"] = inputs["input_ids"].masked_fill(~real, embedding.padding)
        return {**inputs, "attention_mask": real.long()}

    place, end = torch.arange(tokens), torch.full(shape[:-1], max(tokens // 3, 1))
    end[0] = tokens
    holes = torch.rand(shape, generator=generator) > 0.3
    holes[..., 0] = True  # what a row of nothing but padding gives is nobody's definition
    batches = {"texts": texts(), "padded on the right": padded(place < end[..., None]), "holes": padded(holes)}
    if not config.stack.block.attention.causal:  # there the first tokens would be without any key
        batches["padded on the left"] = padded(place >= tokens - end[..., None])
    positions = torch.randperm(tokens, generator=generator) + (length - tokens)
    batches["given positions"] = {**texts(), "position_ids": positions.expand(max(examples, 2), -1)}
    if choices or embedding.position is None:
        del batches["given positions"]
    return batches
