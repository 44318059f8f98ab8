"""Tokens through the experts that were chosen for them.

The rows of all choices are sorted by expert once, each expert computes the rows that are its own in one product for each of
its layers, and one gather brings them back to their tokens. No weight is copied, and nothing is computed for experts that
nobody chose. Where the numbers of rows cannot be read (under a compiler), one grouped product of torch does the same.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernel.activation import activation as named
from zoo.kernel.activation import overwriting
from zoo.kernel.packed import AVAILABLE
from zoo.kernel.switch import fast, product_dtype, readable, repetition


class Layer(NamedTuple):
    """A linear layer of each expert."""

    weight: Tensor
    """(experts, outputs, inputs)"""
    bias: Tensor | None = None
    """(experts, outputs)"""


def through_experts(
    x: Tensor, chosen: Tensor, weights: Tensor, experts: int, compute: Callable[[Tensor, Tensor], Tensor], full: bool = True
) -> Tensor:
    """Each token's mixture of what the experts chosen for it make of it.

    Args:
        x: (tokens, width).
        chosen: (tokens, choices), the numbers of experts; `experts` itself stands for none.
        weights: (tokens, choices), what is multiplied by.
        compute: what experts make of rows, (rows, width), sorted by expert, of which each has so many (experts,); rows of
            none, at the end, may be left out.
        full: whether every choice is an expert.

    Returns:
        (tokens, width), of the type of `x`.
    """
    choices = chosen.shape[1]
    flat = chosen.flatten()
    order = flat.argsort(stable=True)
    counts = torch.zeros(experts + 1, dtype=torch.int64, device=x.device).scatter_add_(0, flat, torch.ones_like(flat))
    rows = compute(x.index_select(0, order if choices == 1 else order // choices), counts[:experts])
    missing = order.shape[0] - rows.shape[0]
    if missing:
        rows = torch.cat([rows, rows.new_zeros(missing, rows.shape[1])])
    place = torch.empty_like(order).scatter_(0, order, torch.arange(order.shape[0], device=x.device))
    back = rows.index_select(0, place).unflatten(0, (-1, choices))
    if not full:  # what stands behind the last expert's rows is nothing, whatever is written there
        back = back.masked_fill((chosen == experts)[..., None], 0.0)
    if choices == 1:
        return (back.squeeze(1) * weights).to(x.dtype)
    if weights.dtype != back.dtype:
        return (back * weights[..., None]).sum(1).to(x.dtype)
    return weights[:, None].bmm(back).squeeze(1)


def expert_feedforward(
    rows: Tensor,
    counts: Tensor,
    up: Layer,
    activation: str,
    down: Layer,
    gate: Layer | None = None,
    dropout: float = 0.0,
    kept: Kept | None = None,
) -> Tensor:
    """down(activation(up(x))) of each expert, or down(activation(gate(x)) * up(x)): (rows, width) -> (rows, width).

    Args:
        rows: sorted by expert.
        counts: (experts,), how many rows each has; rows behind those of the last are nothing.
        dropout: of what is inside; 0 outside of training.
        kept: where prepared weights are kept from call to call.
    """
    sizes = row_counts(rows, counts)
    if sizes is None:
        first = _product(rows, counts, up if gate is None else gate)
        hidden = named(activation)(first) if gate is None else named(activation)(first) * _product(rows, counts, up)
        return _product(rows, counts, down, F.dropout(hidden, dropout))
    layers = [up, down] if gate is None else [up, down, gate]
    tensors = [tensor for layer in layers for tensor in layer if tensor is not None]
    usual = fast() and product_dtype(rows, *tensors) is not None
    quiet = usual and not torch.is_grad_enabled()
    packed = kept.weights([layer.weight for layer in layers]) if quiet and kept is not None else None
    weights = [layer.weight.unbind() for layer in layers]
    biases = [(None,) * len(sizes) if layer.bias is None else layer.bias.unbind() for layer in layers]

    def linear(x: Tensor, layer: int, expert: int) -> Tensor:
        if packed is None:
            return F.linear(x, weights[layer][expert], biases[layer][expert])
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed[layer][expert], biases[layer][expert], "none", [], "")
        return y

    function, found = overwriting(activation) if quiet else named(activation), []
    for expert, part in enumerate(rows.split([*sizes, rows.shape[0] - sum(sizes)])[:-1]):
        if not sizes[expert]:
            continue
        above = linear(part, 0, expert)
        if gate is None:
            hidden = function(above)
        else:
            hidden = function(linear(part, 2, expert))
            hidden = hidden.mul_(above) if quiet else hidden * above
        hidden = F.dropout(hidden, dropout) if dropout else hidden
        found.append(linear(hidden, 1, expert))
    return torch.cat(found) if found else rows[:0]


class Kept:
    """The weights of experts in oneDNN's layout, for inference in float32 on the CPU: what `zoo.kernel.packed` is for one
    layer. The rules are those there, but that rows may be as many as they are, which changes from call to call.

    On a 2-core AVX-512 server, 8 experts of 512 -> 1792 -> 512 features, 256 rows each: plain 47 ms, so 39; 16 rows each: 9.5
    and 6.6.
    """

    def __init__(self) -> None:
        self.seen = 0
        self.packed: list[list[Tensor]] | None = None
        self.known: list[tuple[Any, int, int, Tensor, Tensor]] = []
        self.compared: object = None

    def weights(self, weights: Sequence[Tensor]) -> list[list[Tensor]] | None:
        """Each layer's weights by expert; None where they are not prepared, or cannot be."""
        usual = all(w.dtype == torch.float32 and w.is_contiguous() and not w.is_inference() for w in weights)
        if not AVAILABLE or torch.is_autocast_enabled("cpu") or not usual or weights[0][0].numel() < LEAST:
            return None
        if self.packed is not None and not self._unchanged(weights):
            self.packed, self.known, self.seen = None, [], 0
        self.seen += 1
        if self.packed is None and self.seen > 1:
            self._prepare(weights)
        return self.packed

    def _prepare(self, weights: Sequence[Tensor]) -> None:
        self.packed = [[torch.ops.mkldnn._reorder_linear_weight(each.detach(), ROWS) for each in weight] for weight in weights]
        for weight in weights:
            live = weight.detach().view(-1).view(torch.int32)[:: max(min(weight.shape[1:]) - 1, 1)]  # of every row
            self.known.append((weakref.ref(weight), weight._version, weight.data_ptr(), live, live.clone()))

    def _unchanged(self, weights: Sequence[Tensor]) -> bool:
        here = repetition()
        compare = here is None or self.compared is not here
        self.compared = here
        return len(weights) == len(self.known) and all(
            owner() is weight
            and weight._version == version
            and weight.data_ptr() == address
            and (not compare or torch.equal(live, sample))
            for weight, (owner, version, address, live, sample) in zip(weights, self.known)
        )


LEAST, ROWS = 2**18, 64  # weights of one expert's layer; the rows that a layout is chosen for


def row_counts(rows: Tensor, counts: Tensor) -> list[int] | None:
    """How many rows each expert has, as numbers; None where they cannot be read. Of shapes alone they are even."""
    if rows.is_meta:
        number, experts = rows.shape[0], counts.shape[0]
        return [number * (expert + 1) // experts - number * expert // experts for expert in range(experts)]
    if not readable(counts, wait=True) or torch.compiler.is_compiling():
        return None
    sizes: list[int] = counts.tolist()
    return sizes


def _product(rows: Tensor, counts: Tensor, layer: Layer, x: Tensor | None = None) -> Tensor:
    """One layer of all experts where nobody may read how many rows each has."""
    x, (weight, bias) = rows if x is None else x, layer
    ends = counts.cumsum(0)
    mine = torch.bucketize(torch.arange(x.shape[0], device=x.device), ends, right=True).clamp(max=counts.shape[0] - 1)
    aligned = all(size * x.element_size() % 16 == 0 for size in weight.shape[1:])
    if aligned and x.dtype in (torch.float32, torch.bfloat16):
        y = F.grouped_mm(x, weight.to(x.dtype).mT, offs=ends.int())
    else:  # every expert computes every row, which is plain but slow
        y = sum_of(lambda e: F.linear(x, weight[e]) * (mine == e)[:, None], range(counts.shape[0]))
    return y if bias is None else y + bias.index_select(0, mine)


def sum_of(term: Callable[[int], Tensor], numbers: Sequence[int]) -> Tensor:
    """The sum of the terms of these numbers."""
    total: Any = term(numbers[0])
    for number in numbers[1:]:
        total = total + term(number)
    return total  # type: ignore[no-any-return]
