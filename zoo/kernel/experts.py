"""Tokens through the experts that were chosen for them.

The rows of all choices are sorted by expert once, each expert computes the rows that are its own in one product for each of
its layers, and one gather brings them back to their tokens. No weight is copied, and nothing is computed for experts that
nobody chose. Where the numbers of rows cannot be read (under a compiler), one grouped product of torch does the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernel.activation import activation as named
from zoo.kernel.activation import overwriting
from zoo.kernel.switch import fast, product_dtype, readable


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
    mixed = back.squeeze(1) * weights if choices == 1 else (back * weights[..., None]).sum(1)
    return mixed.to(x.dtype)


def expert_feedforward(
    rows: Tensor,
    counts: Tensor,
    up: Layer,
    activation: str,
    down: Layer,
    gate: Layer | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """down(activation(up(x))) of each expert, or down(activation(gate(x)) * up(x)): (rows, width) -> (rows, width).

    Args:
        rows: sorted by expert.
        counts: (experts,), how many rows each has; rows behind those of the last are nothing.
        dropout: of what is inside; 0 outside of training.
    """
    sizes = row_counts(rows, counts)
    if sizes is None:
        first = _product(rows, counts, up if gate is None else gate)
        hidden = named(activation)(first) if gate is None else named(activation)(first) * _product(rows, counts, up)
        return _product(rows, counts, down, F.dropout(hidden, dropout))
    layers = [up, down] if gate is None else [up, down, gate]
    weights = [layer.weight.unbind() for layer in layers]
    biases = [(None,) * len(sizes) if layer.bias is None else layer.bias.unbind() for layer in layers]
    tensors = [tensor for layer in layers for tensor in layer if tensor is not None]
    quiet = not torch.is_grad_enabled() and fast() and product_dtype(rows, *tensors) is not None
    function, found = overwriting(activation) if quiet else named(activation), []
    for expert, part in enumerate(rows.split([*sizes, rows.shape[0] - sum(sizes)])[:-1]):
        if not sizes[expert] and not torch.is_grad_enabled():
            continue
        above = F.linear(part, weights[0][expert], biases[0][expert])
        if gate is None:
            hidden = function(above)
        else:
            hidden = function(F.linear(part, weights[2][expert], biases[2][expert]))
            hidden = hidden.mul_(above) if quiet else hidden * above
        hidden = F.dropout(hidden, dropout) if dropout else hidden
        found.append(F.linear(hidden, weights[1][expert], biases[1][expert]))
    return torch.cat(found) if found else rows[:0]


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
        y = sum_of(lambda e: (F.linear(x, weight[e]) * (mine == e)[:, None]), range(counts.shape[0]))
    return y if bias is None else y + bias.index_select(0, mine)


def sum_of(term: Callable[[int], Tensor], numbers: Sequence[int]) -> Tensor:
    """The sum of the terms of these numbers."""
    total: Any = term(numbers[0])
    for number in numbers[1:]:
        total = total + term(number)
    return total  # type: ignore[no-any-return]
