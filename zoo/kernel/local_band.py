"""What local attention lets each query attend to, piece by piece."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoo.kernel.switch import readable

BLOCK = 96  # queries that are one attention

Bias = Callable[[Tensor, Tensor], Tensor]
"""Of places (1, queries) and (1, keys), what is added to the scaled scores: (1, heads, queries, keys)."""


class GlobalTokens(NamedTuple):
    """Tokens to which all others attend, wherever they stand."""

    which: Tensor
    """(batch or 1, keys), true for these."""
    at: Tensor
    """(batch or 1, number), where they stand; rows that have fewer of them are filled up."""
    real: Tensor | None
    """(batch or 1, number), false where filled up; None where nothing is."""


def picked(x: Tensor, at: Tensor) -> Tensor:
    """(batch, heads, tokens, size) at (batch or 1, number) -> (batch, heads, number, size)"""
    return x.gather(2, at[:, None, :, None].expand(x.shape[0], x.shape[1], -1, x.shape[3]))


def first_tokens(number: int, tokens: int, device: Any = None) -> GlobalTokens:
    """The first `number` of a row's tokens as global ones."""
    places = torch.arange(tokens, device=device)[None]
    return GlobalTokens(places < number, places[:, :number], None)


def chosen_tokens(which: Tensor) -> GlobalTokens | None:
    """Those where (batch or 1, tokens) is true; None where nobody can count them, as while something traces."""
    if not readable(which, wait=True):
        return None
    number = int(which.sum(1).max()) if which.numel() else 0
    at = which.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :number]
    return GlobalTokens(which, at, which.gather(1, at))


class View(NamedTuple):
    """Which queries and keys a piece of the scores is of: functions that take from what there is for each token.

    A piece is one block, (batch or 1, heads or 1, queries, keys), or all of them, with the blocks in front of the queries.
    """

    queries: Callable[[Tensor], Tensor]
    """(..., tokens) -> (..., queries)"""
    keys: Callable[[Tensor], Tensor]
    """(..., key tokens) -> (..., keys)"""
    pairs: Callable[[Tensor], Tensor]
    """(..., tokens, key tokens) -> (..., queries, keys)"""


class Band(NamedTuple):
    """What a query may attend to: keys `before` and `after` its own, and of those what masks and texts allow.

    The fields are those of `local_attention`; global keys stand in front of the `keys` others.
    """

    before: int
    after: int
    tokens: int
    keys: int
    causal: bool
    scale: float
    mask: Tensor | None
    texts: Tensor | None
    chosen: GlobalTokens | None

    @property
    def first(self) -> int:
        """How many global keys there are."""
        return 0 if self.chosen is None else self.chosen.at.shape[1]

    def template(self, query: Tensor, bias: Bias | None) -> Tensor:
        """(1, heads or 1, BLOCK, before + BLOCK + after), what is added to the scores of a block all of whose keys exist."""
        queries = torch.arange(self.before, self.before + BLOCK, device=query.device)[None]
        keys = torch.arange(self.before + BLOCK + self.after, device=query.device)[None]
        apart = keys[:, None, :] - queries[:, :, None]
        scores = query.new_zeros(1, 1, *apart.shape[1:]) if bias is None else bias(queries, keys).to(query.dtype)
        return scores.masked_fill((apart < -self.before) | (apart > self.after), -math.inf)

    def blocks(self) -> Iterator[tuple[slice, slice, slice]]:
        """Of each block the queries, the keys, and where these stand in the template."""
        for start in range(0, self.tokens, BLOCK):
            stop = min(start + BLOCK, self.tokens)
            left = start + self.keys - self.tokens - self.before
            low, high = max(left, 0), min(left + self.before + stop - start + self.after, self.keys)
            yield slice(start, stop), slice(low, high), slice(low - left, high - left)

    def scores(self, template: Tensor, queries: slice, keys: slice, columns: slice) -> tuple[Tensor, Tensor | None]:
        """What is added to the scores of one block, and which of its rows have no key: see `opened`."""
        piece = template[:, :, : queries.stop - queries.start, columns]
        if self.mask is None and self.texts is None and self.chosen is None:
            return piece, None
        piece = self.limited(piece, View(lambda x: x[..., queries], lambda x: x[..., keys], lambda x: x[..., queries, keys]))
        if self.chosen is not None:
            at = self.chosen.at
            some = View(lambda x: x[..., queries], lambda x: taken(x, at), lambda x: taken(x[..., queries, :], at))
            piece = self.joined(some, piece)
        return opened(piece)

    def limited(self, piece: Tensor, view: View, around: bool = True) -> Tensor:
        """A piece without what masks and texts forbid; of the keys around a query, also without the global ones."""
        if self.mask is not None:
            square = self.mask.shape[-2] > 1
            mask = view.pairs(self.mask) if square else view.keys(self.mask[..., 0, :]).unsqueeze(-2)
            piece = piece.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else piece + mask.to(piece.dtype)
        if self.texts is not None:
            other = view.queries(self.texts).unsqueeze(-1) != view.keys(self.texts).unsqueeze(-2)
            piece = piece.masked_fill(other.unsqueeze(1), -math.inf)
        if self.chosen is not None and around:
            piece = piece.masked_fill(view.keys(self.chosen.which).unsqueeze(-2).unsqueeze(1), -math.inf)
        return piece

    def joined(self, view: View, piece: Tensor) -> Tensor:
        """What is added to the scores of the global keys, of which the view is, in front of a piece for the others."""
        assert self.chosen is not None
        first = piece.new_zeros(*[1] * (piece.ndim - 1), self.first)
        if self.causal:
            place = torch.arange(self.keys, device=piece.device)[None]
            behind = view.keys(place.expand(self.chosen.at.shape[0], -1)).unsqueeze(-2) > view.queries(place).unsqueeze(-1)
            first = first.masked_fill(behind.unsqueeze(1), -math.inf)
        if self.chosen.real is not None:
            first = first.masked_fill(
                ~self.chosen.real.view(len(self.chosen.real), *[1] * (piece.ndim - 2), self.first), -math.inf
            )
        first = self.limited(first, view, around=False)
        size = torch.broadcast_tensors(first[..., :1], piece[..., :1])[0].shape[:-1]
        return torch.cat([first.expand(*size, -1), piece.expand(*size, -1)], -1)


def taken(x: Tensor, at: Tensor) -> Tensor:
    """(batch or 1, ..., keys) at (batch or 1, number) -> (batch or 1, ..., number)"""
    batch = x.shape[0] if at.shape[0] == 1 else at.shape[0]  # take_along_dim would broadcast, but cannot be exported
    index = at.view(at.shape[0], *[1] * (x.ndim - 2), at.shape[1]).expand(batch, *x.shape[1:-1], -1)
    return x.expand(batch, *x.shape[1:]).gather(-1, index)


def opened(piece: Tensor) -> tuple[Tensor, Tensor | None]:
    """A piece with a key for each row, so that there is no NaN, and which rows had none: what they give is to be zero."""
    empty = (piece == -math.inf).all(-1, keepdim=True)
    if readable(piece) and not bool(empty.any()):
        return piece, None
    return piece.masked_fill(empty, 0.0), empty
