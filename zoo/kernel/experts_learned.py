"""The backward passes of a layer of experts, and of the ways of rows to them and back.

torch would stack the gradients of all experts' weights anew (88 MB for 8 gated experts of 512 -> 1792 -> 512 features), and
add rows to tokens one at a time. Here each expert's gradient is written where it belongs, and rows are gathered both ways: all
that a step of 1024 tokens does around the experts, 9 ms of 118 in torch's operators, takes 4. Few rows go back through weights
as these lie (`zoo.kernel.few_rows_back`): a step of 64 tokens takes 25 ms instead of 27. Gradients of gradients are those of
torch's operators.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernel import few_rows_back
from zoo.kernel.activation import activation as named
from zoo.kernel.compiled import library
from zoo.kernel.experts_product import by_expert, plainly, product
from zoo.kernel.gated_activation import gated, gated_back
from zoo.kernel.spare import Spare
from zoo.kernel.switch import product_dtype
from zoo.kernel.tiles import matmul


class Gather(torch.autograd.Function):
    """The rows of `x` at `index`, in which each occurs equally often; `inverse` says where, in the order of `x`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.often = index.shape[0] // max(x.shape[0], 1)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (inverse,) = ctx.saved_tensors
        if ctx.often > 1 and not torch.is_grad_enabled() and product_dtype(gradient) == torch.float32:
            return F.embedding_bag(inverse.view(-1, ctx.often), gradient, mode="sum"), None, None
        back = gradient.index_select(0, inverse)
        return (back.unflatten(0, (-1, ctx.often)).sum(1) if ctx.often > 1 else back), None, None


def mixed(rows: Tensor, place: Tensor, weights: Tensor) -> Tensor:
    """The sum of each token's rows, which are at `place`, times `weights`, (tokens, choices) both: (tokens, width)."""
    return (rows.index_select(0, place.flatten()).unflatten(0, place.shape) * weights[..., None]).sum(1)


class Mixed(torch.autograd.Function):
    """The same in float32 on the CPU, where each row is of one token: no row is copied for the sum."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, place: Tensor, weights: Tensor) -> Tensor:
        rows, weights = rows.contiguous(), weights.contiguous()
        ctx.save_for_backward(rows, place, weights)
        return F.embedding_bag(place, rows, mode="sum", per_sample_weights=weights)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, place, weights = ctx.saved_tensors
        compiled = product_dtype(gradient, rows, weights) == torch.float32 and functions() is not None
        if torch.is_grad_enabled() or not compiled:
            own = rows.index_select(0, place.flatten()).unflatten(0, place.shape)
            each = (gradient[:, None] * weights[..., None]).flatten(0, 1)
            return torch.zeros_like(rows).index_copy(0, place.flatten(), each), None, (gradient[:, None] * own).sum(-1)
        gradient, (of_rows, of_weights) = gradient.contiguous(), (torch.empty_like(rows), torch.empty_like(weights))
        tensors = (gradient, rows, place, weights, of_rows, of_weights)
        functions().zoo_mixed_back(*place.shape, rows.shape[1], *(each.data_ptr() for each in tensors), torch.get_num_threads())
        return of_rows, None, of_weights


class Linear(torch.autograd.Function):
    """`zoo.kernel.experts_product.plainly` for products in float32 on the CPU."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, sizes: list[int], weight: Tensor, bias: Tensor | None, spare: Spare | None = None
    ) -> Tensor:
        ctx.sizes, ctx.spare = sizes, spare
        ctx.save_for_backward(rows, weight, bias)
        y = rows.new_empty(sum(sizes), weight.shape[1])
        for _, place, own, own_bias in by_expert(sizes, weight, bias):
            product(rows[place], own, own_bias, y[place])
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, bias = inputs = ctx.saved_tensors
        sizes, needed = ctx.sizes, (ctx.needs_input_grad[0], *ctx.needs_input_grad[2:4])
        if torch.is_grad_enabled():  # somebody wants gradients of these gradients
            wanted = [each for each, asked in zip(inputs, needed) if asked]
            y = plainly(rows, sizes, weight, bias)
            again = iter(torch.autograd.grad(y, wanted, gradient, create_graph=True, materialize_grads=True))
            first, second, third = (next(again) if asked else None for asked in needed)
            return first, None, second, third, None
        of_rows = torch.empty_like(rows) if needed[0] else None
        of_weight = _empty(weight, ctx.spare) if needed[1] else None
        of_bias = torch.empty_like(bias) if needed[2] else None
        if of_rows is not None:
            of_rows[sum(sizes) :].zero_()
        _nothing(sizes, [of_weight, of_bias])
        for _, place, own, *learned in by_expert(sizes, weight, of_weight, of_bias):
            if of_rows is not None:
                few_rows_back.matmul(gradient[place], own, of_rows[place])
            if of_weight is not None:
                matmul(gradient[place].t(), rows[place], learned[0])
            if of_bias is not None:
                torch.sum(gradient[place], 0, out=learned[1])
        return of_rows, None, of_weight, of_bias, None


class Gated(torch.autograd.Function):
    """down(activation(gate(x)) * up(x)) of each expert without biases, which keeps what is in front of the activation alone.

    One expert after another: what is in between is computed again, stays in the caches, and takes the memory of one.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        sizes: list[int],
        activation: str,
        up: Tensor,
        down: Tensor,
        gate: Tensor,
        spare: Spare | None = None,
    ) -> Tensor:
        outputs, width = down.shape[1:]
        result = rows.new_empty(sum(sizes), outputs)
        inside, space = rows.new_empty(2, sum(sizes), width), rows.new_empty(max(sizes), width)
        for _, place, own_up, own_down, own_gate in by_expert(sizes, up, down, gate):
            first, above = (product(rows[place], weight, y=to[place]) for weight, to in zip((own_gate, own_up), inside))
            product(gated(activation, first, above, space[: len(first)]), own_down, y=result[place])
        ctx.sizes, ctx.activation, ctx.spare = sizes, activation, spare
        ctx.save_for_backward(rows, up, down, gate, inside)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, up, down, gate, inside = ctx.saved_tensors
        sizes, function, inputs = ctx.sizes, named(ctx.activation), (rows, up, down, gate)
        needed = (ctx.needs_input_grad[0], *ctx.needs_input_grad[3:6])
        if torch.is_grad_enabled():  # somebody wants gradients of these gradients
            hidden = function(plainly(rows, sizes, gate, None)) * plainly(rows, sizes, up, None)
            wanted = [each for each, asked in zip(inputs, needed) if asked]
            y = plainly(hidden, sizes, down, None)
            again = iter(torch.autograd.grad(y, wanted, gradient, create_graph=True, materialize_grads=True))
            first, *others = (next(again) if asked else None for asked in needed)
            return first, None, None, *others, None
        of_rows = torch.empty_like(rows) if needed[0] else None
        found = [_empty(each, ctx.spare) if asked else None for each, asked in zip(inputs[1:], needed[1:])]
        if of_rows is not None:
            of_rows[sum(sizes) :].zero_()
        _nothing(sizes, found)
        space = rows.new_empty(4, max(sizes), inside.shape[2])
        for expert, place, own_up, own_down, own_gate in by_expert(sizes, up, down, gate):
            x, back = rows[place], gradient[place]
            to, *others = space[:, : len(x)]
            hidden, first, above = gated_back(
                ctx.activation, inside[0, place], inside[1, place], few_rows_back.matmul(back, own_down, to), others
            )
            for weight, outputs, given in zip(found, (above, back, first), (x, hidden, x)):
                if weight is not None:
                    matmul(outputs.t(), given, weight[expert])
            if of_rows is not None:
                few_rows_back.matmul(first, own_gate, of_rows[place]).add_(few_rows_back.matmul(above, own_up))
        return of_rows, None, None, *found, None


@lru_cache
def functions() -> Any:
    """The compiled function, or None."""
    found = library("experts_learned", "-mavx512f")
    if found is None:
        return None
    number, address = ctypes.c_long, ctypes.c_void_p
    found.zoo_mixed_back.argtypes = [number] * 3 + [address] * 6 + [ctypes.c_int]
    found.zoo_mixed_back.restype = None
    return found


def _empty(weight: Tensor, spare: Spare | None) -> Tensor:
    return torch.empty_like(weight) if spare is None else spare.like(weight)


def _nothing(sizes: list[int], found: Sequence[Tensor | None]) -> None:
    """Writes zeros to the gradients of experts without rows."""
    for each in (each for each in found if each is not None):
        for expert in (expert for expert, size in enumerate(sizes) if not size):
            each[expert].zero_()
