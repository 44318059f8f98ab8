"""The products of experts' rows with experts' weights: in torch's operators alone, and faster ones in float32 on the CPU.

Each expert has few rows for its many weights, so that reading weights, and laying them out for the matrix library, is much
of the time. In inference they are kept in the library's layout. Where they are not, a product of few rows is cut into pieces
of its outputs, one batched product of them: each core computes some, and the library reads the weights as they lie.

Measured on a 2-core AVX-512 server, all 24 products of 8 gated experts of 512 -> 1792 -> 512 features, which read 88 MB from
memory (reading alone: 1.8 to 4 ms, as busy as the machine's neighbours are):

    rows each                      8     16     24     48    250
    F.linear                    6.1   10.3   11.3   14.0   43.4 ms
    in pieces                   5.3    9.0   10.5   14.1   43.2
    kept in oneDNN's layout     5.4    6.8    8.2   11.5   37.8
    kept in MKL's layout        5.3    6.5    7.6   10.4   36.2
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernel import few_rows, tiles
from zoo.kernel.activation import IN_C
from zoo.kernel.experts_few_rows import Panels, mixture
from zoo.kernel.packed import AVAILABLE, Compiled, Source, layout, multiply
from zoo.kernel.spare import Spare
from zoo.kernel.switch import repetition

FEW, PIECES = 64, 8
"""Rows of an expert, up to which the pieces are as many as these."""
LEAST, ROWS = 2**18, 256
"""The weights of an expert's layer, from which on they are kept; the rows that their layout is made for."""


def by_expert(sizes: Sequence[int], *stacked: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """Each expert that has rows: its number, where they are, and its own share of each of these."""
    each = [[None] * len(sizes) if tensor is None else tensor.unbind() for tensor in stacked]
    start = 0
    for expert, size in enumerate(sizes):
        if size:
            yield expert, slice(start, start + size), *(own[expert] for own in each)
        start += size


def plainly(rows: Tensor, sizes: Sequence[int], weight: Tensor, bias: Tensor | None) -> Tensor:
    """A layer of each expert for its rows, in torch's operators: (rows, inputs) -> (rows of all experts, outputs)."""
    found = [F.linear(rows[place], *own) for _, place, *own in by_expert(sizes, weight, bias)]
    return torch.cat(found) if found else F.linear(rows[:0], weight[0], None if bias is None else bias[0])


def product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    y: Tensor | None = None,
    packed: Tensor | Compiled | None = None,
) -> Tensor:
    """(rows, inputs) x (outputs, inputs) -> (rows, outputs), in float32 on the CPU.

    Args:
        y: where to write it; None makes a new tensor.
        packed: the weight in the library's layout, too.
    """
    rows, outputs = x.shape[0], weight.shape[0]
    if isinstance(packed, Compiled):
        done = multiply(x, packed, bias, y)
        if done is not None:
            return done
        packed = None
    if packed is not None:
        found: Tensor = torch.ops.mkl._mkl_linear(x, packed, weight, None, rows)
        y = found if y is None else y.copy_(found)
    else:
        y = x.new_empty(rows, outputs) if y is None else y
        pieces = max(PIECES, torch.get_num_threads())
        if rows > FEW or outputs % pieces:
            tiles.matmul(x, weight.t(), y)
        else:
            found = torch.bmm(x.expand(pieces, -1, -1), weight.unflatten(0, (pieces, -1)).mT)
            y.unflatten(1, (pieces, -1)).copy_(found.transpose(0, 1))
    return y if bias is None else y.add_(bias)


def _layout(rows: int, weight: Tensor) -> type[Compiled] | None:
    """The layout of our own for about so many rows of each expert, of which those that have any have one."""
    return layout(max(rows, 1), *weight.shape[1:])


class Kept:
    """The weights of experts in a better layout, for inference. The rules are those of `zoo.kernel.packed`, but that rows may
    be as many as they are, which changes from call to call: a layout is right for any number of them.
    """

    def __init__(self) -> None:
        self.seen, self.missed, self.patience = 0, 0, 2
        self.packed: list[Any] | None = None
        self.layout: type[Compiled] | None = None
        self.sources: list[Source] = []
        self.compared: object = None
        self.spare = Spare()

    def weights(self, weights: Sequence[Tensor], rows: int) -> list[Any] | None:
        """Each layer's weights by expert, for about so many rows of each; None where they are not prepared, or cannot be."""
        # whatever is no parameter may be another tensor in the next call
        known = all(type(w) is torch.nn.Parameter and w.is_contiguous() and not w.is_inference() for w in weights)
        if not AVAILABLE or not known or weights[0][0].numel() < LEAST:
            return None
        if self.packed is not None and not self._unchanged(weights):
            self.packed, self.sources, self.seen = None, [], 0
        wanted = _layout(rows, weights[0])
        self.seen += 1
        self.missed = self.missed + 1 if self.packed is not None and wanted is not self.layout else 0
        if self.missed >= self.patience:  # either layout is right for any number of rows, and one of them is faster
            self.packed, self.missed, self.patience = None, 0, 2 * self.patience
        if self.packed is None and self.seen > 1:
            self.layout = wanted
            self.packed = [self._prepare(weight.detach()) for weight in weights]
            self.sources = [Source(weight) for weight in weights]
        return self.packed

    def mixture(
        self, x: Tensor, chosen: Tensor, shares: Tensor, weights: Sequence[Tensor], biases: Sequence[Any], activation: str
    ) -> Tensor | None:
        """`zoo.kernel.experts_few_rows.mixture`, once weights are kept in its layout; None for the ordinary way."""
        wanted = _layout(chosen.numel() // weights[0].shape[0], weights[0])
        if self.packed is None or self.layout is not few_rows.Weight or wanted is not self.layout or activation not in IN_C:
            return None
        here, panels = repetition(), self.packed
        if not len(chosen) or not self._unchanged(weights, compare=False):
            return None
        samples = self.sources if here is None or self.compared is not here else []
        y = mixture(x, chosen, shares, panels, biases, activation, samples)
        if y is None:
            self.packed, self.sources, self.seen = None, [], 0
        else:
            self.missed, self.compared = 0, here
        return y

    def _prepare(self, weight: Tensor) -> Any:
        if self.layout is few_rows.Weight:
            return Panels(weight)
        return [
            torch.ops.mkl._mkl_reorder_linear_weight(each, ROWS) if self.layout is None else self.layout(each)
            for each in weight
        ]

    def _unchanged(self, weights: Sequence[Tensor], compare: bool = True) -> bool:
        here = repetition()
        compare = compare and (here is None or self.compared is not here)
        if compare:
            self.compared = here
        same = (source.unchanged(weight, compare) for source, weight in zip(self.sources, weights))
        return len(weights) == len(self.sources) and all(same)
