"""Leaving padding out: the real tokens of a batch as one row, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.kernel import readable
from zoo.layout import Layout


def without_padding(x: Tensor, layout: Layout) -> tuple[Tensor, Layout, Tensor] | None:
    """The real tokens of all texts, one after another in one row, and where they came from.

    Shapes: (batch, tokens, width) -> (1, real tokens, width), and their places (real tokens,) among batch x tokens.
    None where nothing is to be left out: no padding, or a mask that says more than which tokens are padding.
    """
    real = layout.real
    if real is None or layout.texts is not None or layout.cache is not None or not readable(real, wait=True):
        return None
    lengths = real.sum(1).tolist()
    if sum(lengths) in (0, real.numel()):
        return None
    places = real.flatten().nonzero().squeeze(1)
    positions = layout.positions
    if positions is None:
        positions = torch.arange(real.shape[1], device=x.device)[None]
    packed = layout._replace(
        mask=None,
        real=None,
        lengths=tuple(length for length in lengths if length),
        positions=positions.expand(real.shape).flatten()[places][None],
        shared={name: value for name, value in (layout.shared or {}).items() if name == "routed"},
    )
    return x.flatten(0, 1)[places][None], packed, places


def with_padding(x: Tensor, places: Tensor, shape: tuple[int, int]) -> Tensor:
    """The tokens back in their places, (1, real tokens, width) -> (batch, tokens, width); padding is zero."""
    whole = x.new_zeros(shape[0] * shape[1], x.shape[-1])
    return whole.index_copy(0, places, x[0]).unflatten(0, shape)
