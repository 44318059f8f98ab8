"""Where a decoder looks in the text that it writes from: cross-attention, token by token and letter by letter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from zoo.errors import InputError
from zoo.inspect.attention import Heads, attend
from zoo.inspect.hooks import inner


class Alignment(NamedTuple):
    """What `alignment` saw."""

    layers: tuple[int, ...]
    """Which layers of the decoder the maps are of, from 0."""
    heads: tuple[int, ...] | None
    """Which heads; None if the maps are means over all of them."""
    maps: tuple[Tensor, ...]
    """For each layer (batch, heads, tokens, others): at the step that writes a token, how much of each token of the encoder
    the decoder takes, which sums to 1; a mean counts as one head."""
    output: Any
    """What the model gave."""


def alignment(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    written: Tensor,
    *,
    layers: Sequence[int] | None = None,
    heads: Heads = None,
) -> Alignment:
    """Looks at a model of type `encoder-decoder` while it writes; in eval mode, without gradients.

    Args:
        inputs: of the encoder, by name.
        written: (batch, tokens), what is written, without the `start` in front: the model's own answer or any other.
        layers: which, from 0; negative numbers count from the last (default: all).
        heads: which, or "mean" for the mean over all of them (default: all).

    Raises:
        InputError: the model is none of this type, or there is no such layer or head.
    """
    plain: Any = inner(model)
    if getattr(plain.config, "type", None) != "encoder-decoder":
        raise InputError(f"alignment: this needs a model of type 'encoder-decoder', and this is {plain.config.type!r}")
    asked = {**inputs, "decoder_input_ids": plain.shifted(written)}
    seen = attend(plain, asked, at="decoder.stack.**.cross_attention", layers=layers, heads=heads)
    return Alignment(seen.layers, seen.heads, seen.maps, seen.output)


def letters(tokenizer: Any, ids: Sequence[int]) -> list[tuple[str, list[int]]]:
    """What tokens are called, and the places of those that are one letter together, as bytes of UTF-8 may be.

    Args:
        tokenizer: anything with `decode` and `token`, such as a `zoo.data.tokenizer.Tokenizer`.
    """
    found: list[tuple[str, list[int]]] = []
    open_places: list[int] = []
    for place, number in enumerate(ids):
        open_places.append(place)
        text = tokenizer.decode([ids[each] for each in open_places])
        if "\ufffd" in text and len(open_places) < 4 and place + 1 < len(ids):
            continue  # the letter goes on
        name = tokenizer.token(number) if len(open_places) == 1 else text
        found.append((name, open_places))
        open_places = []
    return found


def by_letter(weights: Tensor, written: Sequence[Sequence[int]], read: Sequence[Sequence[int]]) -> Tensor:
    """A map (tokens, others) with a row for each letter that is written, the mean of its tokens, and a column for each that is
    read, the sum of its tokens."""
    rows = torch.stack([weights[list(places)].mean(0) for places in written])
    return torch.stack([rows[:, list(places)].sum(1) for places in read], dim=1)


def letter_maps(
    seen: Alignment, written: Sequence[Sequence[int]], read: Sequence[Sequence[int]], example: int = 0
) -> list[tuple[str, Tensor]]:
    """The maps of an alignment, with titles, for `zoo.inspect.picture.over_tokens`."""
    return [
        (
            f"layer {layer}, {'mean of heads' if seen.heads is None else f'head {seen.heads[head]}'}",
            by_letter(weights, written, read),
        )
        for layer, maps in zip(seen.layers, seen.maps)
        for head, weights in enumerate(maps[example])
    ]


__all__ = ["Alignment", "alignment", "by_letter", "letter_maps", "letters"]
