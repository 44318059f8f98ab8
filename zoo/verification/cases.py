"""The inputs that ours and the reference are compared on."""

from __future__ import annotations

from typing import Any

import torch


def cases(config: Any, library: str, seed: int, examples: int = 2) -> dict[str, dict[str, Any]]:
    """Inputs by name, in float64: plain ones, and those that take another way through the model."""
    return _images(config.embedding, library, torch.Generator().manual_seed(seed + 100), examples)


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
