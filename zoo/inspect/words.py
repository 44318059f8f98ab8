"""Which patches of an image answer which word of a text, in a dual encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from zoo.errors import InputError
from zoo.inspect.attention import _evaluating, attend, attention_layers, numbered
from zoo.inspect.hooks import capture, inner


class Answered(NamedTuple):
    """What `answers` saw; the whole text comes first, then each word."""

    words: tuple[str, ...]
    """The words of the text, in its order."""
    maps: Tensor
    """(1 + words, rows, columns): how relevant each patch is, from 0; all in one measure, so that they can be compared."""
    cosines: Tensor
    """(1 + words,): the cosine of the image with the whole text; then, for each word, how much of it is lost without the
    word (below 0: the image fits the text better without it)."""


def answers(
    model: nn.Module,
    pixel_values: Tensor,
    text: str,
    encode: Callable[[Sequence[str]], Tensor],
    *,
    layers: Sequence[int] | None = None,
) -> Answered:
    """Which patches of an image answer which word of a text.

    A dual encoder has no attention between images and texts: it compares two vectors. What a word contributes is therefore
    what changes when it is left out (erasure, Li et al. 2016, https://arxiv.org/abs/1612.08220): the vector of the text
    less the vector of the text without the word, a direction which the image's vector is scored by. Which patches raise
    that score, `relevance` says; so a word that changes nothing has a dark map, also where the text as a whole fits.

    Args:
        model: a dual encoder.
        pixel_values: one image (1, channels, height, width), as the model reads it.
        text: words between blanks.
        encode: gives texts as vectors of length one (texts, size), such as `zoo.training.zero_shot.Comparer.texts`.
        layers: see `relevance`.

    Raises:
        InputError: no text, not one image, or a model in which this cannot be seen.
    """
    words = tuple(text.split())
    if not words:
        raise InputError("text: expected at least one word, and this is empty")
    texts = encode([text, *(" ".join((*words[:place], *words[place + 1 :])) for place in range(len(words)))])
    directions = torch.cat([texts[:1], texts[:1] - texts[1:]])
    maps, scores = relevance(model, pixel_values, directions, layers=layers)
    return Answered(words, maps, scores)


def relevance(
    model: nn.Module, pixel_values: Tensor, directions: Tensor, *, layers: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Which patches of an image speak for vectors that its own vector is scored by.

    Attention maps are weighted by how much the score grows with them, what lowers it is set to zero, heads are averaged,
    and layers added up from the first to the last, each with what it passes on (R + A R). It is not seen what the layers
    make of a token's values in between. Paper: Chefer, Gur and Wolf 2021, https://arxiv.org/abs/2103.15679, section 3.1,
    equations 5 and 6.

    Args:
        model: a dual encoder.
        pixel_values: one image (1, channels, height, width), as the model reads it.
        directions: (number, size), compared with the image's vector of length one.
        layers: of the image tower, whose attention counts; what stands between passes everything on (default: all).

    Returns:
        How relevant each patch is to each direction (number, rows, columns), and the scores (number,).

    Raises:
        InputError: no dual encoder, not one image, or layers that do not lead from all tokens to all tokens.
    """
    plain: Any = inner(model)
    if getattr(getattr(plain, "config", None), "type", None) != "dual-encoder":
        raise InputError(f"expected a model of type 'dual-encoder', got {type(plain).__name__}")
    if pixel_values.ndim != 4 or len(pixel_values) != 1:
        raise InputError(f"pixel_values: expected one image (1, channels, height, width), got {tuple(pixel_values.shape)}")
    tower = plain.vision
    names = [f"{name}.pattern" for name in attention_layers(tower)]
    chosen = range(len(names)) if layers is None else sorted(set(numbered("layers", layers, len(names))))
    inputs = {"pixel_values": pixel_values.detach()}
    if tuple(pixel_values.shape[2:]) != tuple(getattr(tower.config.embedding, "image_size", ())):
        inputs["interpolate_pos_encoding"] = True  # type: ignore[assignment]
    place = attend(tower, inputs, layers=[0], heads="mean")
    if place.grid is None:
        raise InputError("the tokens of this model form no grid that could be laid over an image")
    tokens = place.prefix + place.grid[0] * place.grid[1]
    with torch.inference_mode(False), torch.enable_grad(), _evaluating(plain), capture(tower, names) as seen:
        # the graph begins at the image, so that it is there for frozen weights too
        inputs["pixel_values"] = inputs["pixel_values"].clone().requires_grad_()
        image = nn.functional.normalize(tower(**inputs).image_embeds[0].float(), dim=-1)
        scores = directions.detach().clone().to(image) @ image  # a copy, since vectors made for inference know no gradients
        maps = [seen[names[number]] for number in chosen if names[number] in seen]
        if len(maps) < len(chosen) or any(each.shape[-2:] != (tokens, tokens) for each in maps):
            raise InputError("relevance is traced through attention of all tokens to all tokens, and this model's is local")
        found = []
        for number, score in enumerate(scores):
            last = number + 1 == len(scores)
            gradients = torch.autograd.grad(score, maps, retain_graph=not last, allow_unused=True)
            found.append(_traced(maps, gradients, tower.config.head.pool, place.prefix))
    return torch.stack(found).unflatten(1, place.grid), scores.detach()


def _traced(maps: Sequence[Tensor], gradients: Sequence[Tensor | None], pool: Any, prefix: int) -> Tensor:
    """(patches,): how much of each is in what the pool takes."""
    whole = torch.eye(maps[0].shape[-1], device=maps[0].device)
    start = whole.clone()
    for weights, gradient in zip(maps, gradients):
        if gradient is not None:
            whole = whole + (weights * gradient)[0].detach().float().clamp(min=0).mean(0) @ whole
    traced = whole - start  # what a token is from the beginning was not attended to
    of_class = prefix > 0 and pool.type == "class-token"
    taken = traced[0] if of_class else traced[0 if getattr(pool, "prefix", False) else prefix :].mean(0)
    return taken[prefix:]


__all__ = ["Answered", "answers", "relevance"]
