"""The inputs that ours and the reference are compared on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

CHUNKS = "chunks"
"""Beside the inputs of a case: how many tokens are given in each of several calls, which go on over a cache."""


def calls(inputs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The inputs of each call of a case: all of them in one, or so many tokens after another as `chunks` says.

    A mask says of all tokens so far which are real; everything else is of the new ones. Of an encoder and a decoder these are
    the decoder's; the encoder reads once, and its mask is given each time.
    """
    given = {name: value for name, value in inputs.items() if name != CHUNKS}
    if CHUNKS not in inputs:
        return [given]
    decoder = "decoder_" if "decoder_input_ids" in inputs else ""
    once = {name: value for name, value in given.items() if not name.startswith(decoder)}
    ends = torch.tensor(inputs[CHUNKS]).cumsum(0).tolist()
    found = [
        {
            name: value[:, (0 if name == f"{decoder}attention_mask" else start) : end]
            for name, value in given.items()
            if name not in once
        }
        for start, end in zip([0, *ends], ends)
    ]
    still = {name: value for name, value in once.items() if name == "attention_mask"}
    return [{**(once if number == 0 else still), **each} for number, each in enumerate(found)]


def cases(config: Any, library: str, seed: int, examples: int = 2) -> dict[str, dict[str, Any]]:
    """Inputs by name, in float64: plain ones, and those that take another way through the model."""
    generator = torch.Generator().manual_seed(seed + 100)
    if hasattr(config, "encoder"):
        return _sequences(config, generator, examples)
    if config.stack is None:
        return _pairs(config, library, seed, examples)
    if config.embedding.type == "tokens":
        return _texts(config, generator, examples)
    if config.stack.type == "stages":
        return _stages(config, library, generator, examples)
    return _images(config.embedding, library, generator, examples)


def _pairs(config: Any, library: str, seed: int, examples: int) -> dict[str, dict[str, Any]]:
    """Texts and images of two towers; the cases of one go with the plain ones of the other."""
    texts, images = cases(config.text, library, seed, examples + 1), cases(config.vision, library, seed, examples)
    if library == "open_clip":  # which takes whole texts alone, and neither masks nor positions
        generator = torch.Generator().manual_seed(seed + 101)
        texts = _texts(config.text, generator, examples + 1, config.text.embedding.position.length)
        texts = {kind: batch for kind, batch in texts.items() if set(batch) == {"input_ids"}}
    named = {f"{kind} and images": {**batch, **images["images"]} for kind, batch in texts.items()}
    return named | {kind: {**texts["texts"], **batch} for kind, batch in images.items() if kind != "images"}


def _sequences(config: Any, generator: torch.Generator, examples: int) -> dict[str, dict[str, Any]]:
    """Texts that are read, each way, and texts that are written: each way, made of labels, and over a cache."""
    read, written = (_texts(each, generator, examples, tokens) for each, tokens in ((config.encoder, 24), (config.decoder, 19)))
    plain = written["texts"]["input_ids"]
    batches = {
        kind: {**batch, "decoder_input_ids": plain}
        for kind, batch in read.items()
        if not {"position_ids", CHUNKS} & batch.keys()
    }
    nothing = torch.zeros_like(read["texts"]["input_ids"])
    nothing[1:] = 1
    batches["a source of padding alone"] = {**batches["texts"], "attention_mask": nothing}
    for kind, batch in written.items():
        if kind != "texts" and "position_ids" not in batch and CHUNKS not in batch:
            batches[f"decoder {kind}"] = {
                **batches["padded on the right"],
                "decoder_input_ids": batch["input_ids"],
                "decoder_attention_mask": batch["attention_mask"],
            }
    if config.decoder.head is not None:
        labels = plain.masked_fill(torch.rand(plain.shape, generator=generator) < 0.2, -100)
        batches["labels"] = {**read["holes"], "labels": labels}
    if config.decoder_input == "shifted":
        batches["nothing to write"] = read["padded on the right"]
    over = {CHUNKS: (plain.shape[1] - 6, 3, 1, 1, 1) if plain.shape[1] > 6 else (1,) * plain.shape[1]}
    batches["over a cache"] = {**batches["padded on the right"], **over}
    batches["over a cache, decoder holes"] = {**batches["decoder holes"], **over}
    return batches


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
        if embedding.output_norm is None:  # CLIP's images take none
            batches["masked tokens"] = {"pixel_values": pixels(height, width), "attention_mask": mask.long()}
        if square:
            batches["another image size"] = {"pixel_values": other, "interpolate_pos_encoding": True}
    elif embedding.flexible:
        batches["another image size"] = {"pixel_values": other}
    return batches


def _stages(config: Any, library: str, generator: torch.Generator, examples: int) -> dict[str, dict[str, Any]]:
    """Images of the trained size, and of others where the reference takes them: odd ones, whose grids need filling."""
    embedding, stack = config.embedding, config.stack

    def pixels(*size: int) -> dict[str, Any]:
        shape = (examples, embedding.channels, *size)
        return {"pixel_values": torch.randn(shape, generator=generator, dtype=torch.float64)}

    (height, width), (high, wide) = embedding.image_size, embedding.patch_size
    batches = {"images": pixels(height, width)}
    if library == "transformers" and embedding.position is not None:
        if embedding.position.square:
            other = pixels(height + high, max(width - 2 * wide, wide))
            batches["another image size"] = {**other, "interpolate_pos_encoding": True}
        return batches
    if not embedding.flexible or (library == "timm") != (embedding.edges == "refuse"):
        return batches
    # where a grid is smaller than a window, Hugging Face's classifier fails
    attentions, last = [block.attention for block in stack.blocks()], 2 ** (len(stack.stages) - 1)
    sides = [max(each.window) for each in attentions if getattr(each, "small", "") == "still"]
    low, side = (max((side - 1) * last for side in sides) * max(high, wide) if sides else 0) + 1, max(height, width)
    sizes = [(height + 1, width + 37), (low, side + 11), (low, low), (2 * side - 7, low + 2), (height, low + 5)]
    sizes += [(low + 30, low + 9), (side + 5, side + 50), (low + 17, 2 * side - 1)]
    unit = (high, wide) if embedding.edges == "refuse" else (1, 1)
    for size in sizes if side <= 128 else sizes[:2]:
        rows, columns = (-(-length // step) * step for length, step in zip(size, unit))
        batches[f"{rows} x {columns} pixels"] = pixels(rows, columns)
    return batches


def _texts(config: Any, generator: torch.Generator, examples: int, tokens: int = 24) -> dict[str, dict[str, Any]]:
    embedding, blocks = config.embedding, config.stack.blocks()
    windows = [getattr(block.attention, "window", 0) for block in blocks]
    tokens = max([tokens, *(2 * window + 3 for window in windows if isinstance(window, int) and window <= 50)])
    inside = [position for block in blocks if (position := getattr(block.attention, "position", None)) is not None]
    rotary, looked_up = bool(inside), any(getattr(position, "order", "") == "interleaved" for position in inside)
    if any(getattr(position, "rounding", "") == "bfloat16" for position in inside):
        tokens = max(tokens, 264)  # the first places that are rounded
    far = 5000 if rotary and embedding.position is None else tokens + 2  # there the rounding of angles is seen
    if looked_up:  # GPT-J's angles stand in a table, which ends
        far = next(position.length for position in inside) or far
    length = getattr(embedding.position, "length", None) or far
    most = length - (embedding.padding + 1 if embedding.count == "unpadded" else 0)
    own_globals = any(getattr(block.attention, "global_projections", False) for block in blocks)
    # Longformer fills texts up to a multiple of its window, and its modules would show that
    unit = 2 * max(windows) if own_globals else 1
    tokens = min(math.ceil(tokens / unit) * unit, most // unit * unit or most)
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
    batches: dict[str, dict[str, Any]] = {}
    if own_globals:
        some = (place + torch.arange(shape[0])[:, None]) % 7 == 2
        some[-1] &= place < 0  # texts have different numbers of them, and some none
        batches["global tokens"] = {**padded(holes), "global_attention_mask": some.long()}
    batches |= {"texts": texts(), "padded on the right": padded(place < end[..., None]), "holes": padded(holes)}
    if not causal:
        batches["padded on the left"] = padded(left)
    elif embedding.count == "all" and (embedding.position is not None or rotary):
        counted = {"position_ids": (left.cumsum(-1) - 1).clamp(min=0)}  # as where texts are continued
        batches["padded on the left"] = {**padded(left), **counted}
    positions = torch.randperm(tokens, generator=generator) + (length - tokens)
    if not choices and (embedding.position is not None or rotary):
        batches["given positions"] = {**texts(), "position_ids": positions.expand(shape[0], -1)}
    if pool is not None and pool.type == "end-of-text":
        batches |= _ends(texts()["input_ids"], embedding.vocabulary - 1 if pool.id is None else pool.id)
    if embedding.segment_vectors == "tokens":
        batches["segments"] = {**texts(), "token_type_ids": texts()["input_ids"]}
    if causal and _decodes(config):
        chunks = (tokens - 6, 3, 1, 1, 1) if tokens > 6 else (1,) * tokens
        batches["over a cache"] = {**texts(), CHUNKS: chunks}
        if "padded on the left" in batches:
            batches["over a cache, padded on the left"] = {**batches["padded on the left"], CHUNKS: chunks}
    if any(block.feedforward.type == "mixture-of-experts" for block in blocks):
        for batch in (each for each in batches.values() if CHUNKS not in each):
            batch["output_router_logits"] = True
    return batches


def _ends(ids: torch.Tensor, end: int) -> dict[str, dict[str, Any]]:
    """Texts of the tokens `ids` (batch, tokens), which end where `end` stands, or nowhere."""
    place, last = torch.arange(ids.shape[1]), ids.shape[1] - 1
    at = (torch.arange(len(ids))[:, None] * 5 + last // 2) % last  # another place in each text, never the last
    words = torch.where(ids == end, ids // 2, ids)
    once, filled = torch.where(place == at, end, words), torch.where(place >= at, end, words)
    again = torch.where((place == at) | (place == last) | (place == at + 2), end, words)
    return {
        "padded with what ends texts": {"input_ids": filled, "attention_mask": (place <= at).long()},
        "padded with that, no mask": {"input_ids": filled},
        "ends in the middle": {"input_ids": once},
        "ends again and again": {"input_ids": again},
        "no end": {"input_ids": words},
    }


def _decodes(config: Any) -> bool:
    """Whether the reference goes on from a cache as it should, where attention is causal."""
    # its cache for tokens that see nothing but themselves keeps all of them, and then fails
    alone = any(getattr(block.attention, "window", None) == 0 for block in config.stack.blocks())
    counts = config.embedding.count == "all"  # else the numbers of new tokens depend on padding before them
    return counts and not alone and (config.head is None or config.head.type == "language-model")
