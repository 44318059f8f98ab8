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
    embedding, blocks = config.embedding, config.stack.blocks()
    windows = [getattr(block.attention, "window", 0) for block in blocks]
    tokens = max(tokens, *(2 * window + 3 for window in windows if isinstance(window, int) and window <= 50))
    rotary = any(getattr(block.attention, "position", None) is not None for block in blocks)
    far = 5000 if rotary and embedding.position is None else tokens + 2  # there the rounding of angles is seen
    length = getattr(embedding.position, "length", None) or far
    tokens = min(tokens, length - (embedding.padding + 1 if embedding.count == "unpadded" else 0))
    choices = (3,) if getattr(config.head, "type", None) == "multiple-choice" else ()
    pool = getattr(config.head, "pool", None)
    # the last token of a text is known by what follows it; where that is nothing, the reference takes one text at a time
    single = pool is not None and pool.type == "last-token" and pool.padding is None
    shape = (1 if single else max(examples, 2), *choices, tokens)
    padding = embedding.padding if embedding.padding is not None else getattr(pool, "padding", None)
    causal = all(block.attention.causal for block in blocks)

    def texts() -> dict[str, Any]:
        words = embedding.vocabulary - (0 if padding is None else 1)
        ids = torch.randint(0, max(words, 1), shape, generator=generator)
        if padding is not None:
            ids += ids >= padding  # every token but padding
        segments = torch.randint(0, max(embedding.segments, 1), shape, generator=generator)
        return {"input_ids": ids, **({"token_type_ids": segments} if embedding.segments > 1 else {})}

    def padded(real: torch.Tensor) -> dict[str, Any]:
        inputs = texts()
        if padding is not None:
            inputs["input_ids"] = inputs["input_ids"].masked_fill(~real, padding)
        return {**inputs, "attention_mask": real.long()}

    place, end = torch.arange(tokens), torch.full(shape[:-1], max(tokens // 3, 1))
    end[0] = tokens
    holes = torch.rand(shape, generator=generator) > 0.3
    holes[..., 0] = True  # what a row of nothing but padding gives is nobody's definition
    holes[..., -1] |= single
    left = place >= tokens - end[..., None]
    batches = {"texts": texts(), "padded on the right": padded(place < end[..., None]), "holes": padded(holes)}
    if not causal:
        batches["padded on the left"] = padded(left)
    elif embedding.count == "all" and (embedding.position is not None or rotary):
        counted = {"position_ids": (left.cumsum(-1) - 1).clamp(min=0)}  # as where texts are continued
        batches["padded on the left"] = {**padded(left), **counted}
    positions = torch.randperm(tokens, generator=generator) + (length - tokens)
    if not choices and (embedding.position is not None or rotary):
        batches["given positions"] = {**texts(), "position_ids": positions.expand(shape[0], -1)}
    if embedding.segment_vectors == "tokens":
        batches["segments"] = {**texts(), "token_type_ids": texts()["input_ids"]}
    return batches
