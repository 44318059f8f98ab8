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
from zoo.kernel.experts_learned import Gated, Gather, Linear, Mixed
from zoo.kernel.experts_product import Kept, by_expert, plainly, product
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
    place = torch.empty_like(order).scatter_(0, order, torch.arange(order.shape[0], device=x.device))
    rows = compute(_gather(x, order if choices == 1 else order // choices, place), counts[:experts])
    missing = order.shape[0] - rows.shape[0]
    if missing:
        rows = torch.cat([rows, rows.new_zeros(missing, rows.shape[1])])
    quick = fast() and product_dtype(x, rows, weights) == torch.float32
    if full and quick:
        y: Tensor = Mixed.apply(rows, place.view_as(chosen), weights)  # type: ignore[no-untyped-call]
        return y
    back = _gather(rows, place, order).unflatten(0, (-1, choices))
    if not full:  # what stands behind the last expert's rows is nothing, whatever is written there
        back = back.masked_fill((chosen == experts)[..., None], 0.0)
    if choices == 1:
        return (back.squeeze(1) * weights).to(x.dtype)
    if quick or weights.dtype != rows.dtype:  # the backward pass of the product below would go from token to token
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
        kept: where prepared weights, and the memory of gradients, are kept from call to call.
    """
    sizes, spare = row_counts(rows, counts), None if kept is None else kept.spare
    layers = [up, down] if gate is None else [up, down, gate]
    tensors = [rows, *(tensor for layer in layers for tensor in layer if tensor is not None)]
    quick = sizes is not None and fast() and product_dtype(*tensors) == torch.float32
    if sizes is not None and quick and not torch.is_grad_enabled() and not dropout:
        return _inferred(rows, sizes, layers, activation, kept)
    if quick and gate is not None and not dropout and all(layer.bias is None for layer in layers):
        y: Tensor = Gated.apply(rows, sizes, activation, *(layer.weight for layer in layers), spare)  # type: ignore[no-untyped-call]
        return y

    def linear(x: Tensor, layer: Layer) -> Tensor:
        if sizes is None:
            return _product(rows, counts, layer, x)
        if not quick:
            return plainly(x, sizes, *layer)
        return Linear.apply(x, sizes, *layer, spare)  # type: ignore[no-any-return, no-untyped-call]

    above = linear(rows, up)
    hidden = named(activation)(above) if gate is None else named(activation)(linear(rows, gate)) * above
    return linear(F.dropout(hidden, dropout) if dropout else hidden, down)


def mixture(
    x: Tensor,
    chosen: Tensor,
    weights: Tensor,
    up: Layer,
    activation: str,
    down: Layer,
    gate: Layer | None,
    kept: Kept,
) -> Tensor | None:
    """`through_experts` with `expert_feedforward` in one call, where that is faster; None for the ordinary way."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or not fast():
        return None
    layers = [up, down] if gate is None else [up, down, gate]
    biases = [layer.bias for layer in layers]
    known = [each for each in biases if each is not None]
    if product_dtype(x, weights, *(layer.weight for layer in layers), *known) != torch.float32:
        return None
    if not all(each.is_contiguous() for each in known):
        return None
    return kept.mixture(x, chosen, weights, [layer.weight for layer in layers], biases, activation)


def _inferred(rows: Tensor, sizes: list[int], layers: list[Layer], activation: str, kept: Kept | None) -> Tensor:
    """The same without gradients in float32 on the CPU: one expert after another, whose rows the caches still hold."""
    weights = [layer.weight for layer in layers]
    packed = None if kept is None else kept.weights(weights, sum(sizes) // max(len(sizes), 1))
    function, result = overwriting(activation), rows.new_empty(sum(sizes), weights[1].shape[1])
    tensors = [tensor for layer in layers for tensor in layer]
    for expert, place, up, up_bias, down, down_bias, *gate in by_expert(sizes, *tensors):
        own = [None] * 3 if packed is None else [layer[expert] for layer in packed]
        above = product(rows[place], up, up_bias, packed=own[0])
        hidden = function(product(rows[place], gate[0], gate[1], packed=own[2])).mul_(above) if gate else function(above)
        product(hidden, down, down_bias, result[place], own[1])
    return result


def _gather(x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
    """The rows of `x` at these places, of which each comes equally often; `inverse` says where."""
    if not torch.is_grad_enabled() or not fast():
        return x.index_select(0, index)
    y: Tensor = Gather.apply(x, index, inverse)  # type: ignore[no-untyped-call]
    return y


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
