"""Products in float32 on the bfloat16 tiles of a processor (Intel's AMX).

A float32 number is the sum of three bfloat16 numbers exactly. Of the nine products of such parts the six largest are computed
by the tiles, which add them up in float32 (Henry, Tang, Heinecke, "Leveraging the bfloat16 Artificial Intelligence Datatype
For Higher-Precision Computations", 2019; cuBLAS does the same under the name of BF16x9). The tiles are 16 times as fast as
the processor's float32 units, so that six products are still faster than one. Nothing is less exact: against float64, 512
rows, 768 -> 3072 features, normal numbers, the error is 2.2e-7 of the result, and MKL's 3.5e-7, since the tiles add 32 products
up before they add them to the sum. A row's result does not depend on how many rows there are.

Measured on a 2-core server with tiles, twelve weights by turns, milliseconds: F.linear, the weight as it lies, and prepared:

    512 rows, 768 -> 3072 features    7.2   4.8   4.1
    394 rows, 768 -> 3072             5.7   4.0   3.4
    256 rows, 768 -> 768              0.98  0.83  0.65
    1576 rows, 192 -> 768             1.37  1.08  0.99

Taken where `product_dtype` is float32 and the sizes are worth it (`worth_it`, `worth_it_prepared`), and only on Linux with
GNU's compiler and OpenMP (`zoo.kernel.compiled`). Numbers that the parts cannot hold (infinite, not a number, above 3e38; or
products below 1e-24 throughout) are noticed, and the product is torch's. ZOO_KERNEL=torch does without anything compiled.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernel.compiled import library, memory

STEP = 3 * 2 * 512  # bfloat16 numbers for 32 columns and 32 places of the sum: as in tiles.c
OPTIONS = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512bf16", "-mamx-tile", "-mamx-bf16")
"""The compiler's, for what they need of the processor."""
DONE = 0
WORK = 2**24
"""Multiplications from which on a product is worth asking."""
ROWS, ROWS_PREPARED, COLUMNS = 192, 65, 64
"""Rows from which on it is worth laying out the weight, and using one that is; columns, and places of the sum."""


@lru_cache
def functions() -> Any:
    """The compiled functions, or None; asked for the first time when the first product is worth it."""
    found = library("tiles", *OPTIONS)
    if found is None or found.zoo_tiles_enable() != 0:
        return None
    number, address, switch, real = ctypes.c_long, ctypes.c_void_p, ctypes.c_int, ctypes.c_float
    matrix: list[Any] = [address, number, switch]
    found.zoo_tiles_prepare.argtypes = [address, number, switch, number, number, address, switch]
    found.zoo_tiles_prepare.restype = real
    found.zoo_tiles_multiply.argtypes = [number] * 3 + matrix * 2 + [address, real, address, address, number, switch]
    return found


def worth_it(rows: int, columns: int, sums: int) -> bool:
    """Whether a product of these sizes, (rows, sums) by (sums, columns), is faster this way."""
    enough = rows >= ROWS and columns >= COLUMNS and sums >= COLUMNS and rows * columns * sums >= WORK
    return enough and functions() is not None


def worth_it_prepared(rows: int, columns: int, sums: int) -> bool:
    """The same where the second factor is prepared."""
    return rows >= ROWS_PREPARED and rows * columns * sums >= WORK and functions() is not None


class Weight:
    """A weight as the tiles want it: (outputs, inputs), six bytes for each number."""

    __slots__ = ("highest", "memory", "shape")

    def __init__(self, weight: Tensor) -> None:
        outputs, inputs = self.shape = weight.shape
        self.memory = memory(-(-outputs // 32) * -(-inputs // 32) * STEP * 2)
        stride, along = _lies(weight.t(), first=False)
        to = self.memory.data_ptr()
        self.highest = functions().zoo_tiles_prepare(
            weight.data_ptr(), stride, along, outputs, inputs, to, torch.get_num_threads()
        )


def _lies(matrix: Tensor, first: bool) -> tuple[int, int]:
    """How a factor lies in memory: the stride from line to line and 1, or from one place of the sum to the next and 0."""
    lines, sums = (0, 1) if first else (1, 0)
    if matrix.stride(sums) == 1:
        return matrix.stride(lines), 1
    if matrix.stride(lines) == 1:
        return matrix.stride(sums), 0
    raise ValueError(f"a matrix with strides {matrix.stride()}: rows or columns must be contiguous")


def multiply(a: Tensor, b: Tensor | Weight, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor | None:
    """(rows, sums) x (sums, columns) -> (rows, columns), all float32 on the CPU; None where the numbers are out of range.

    Args:
        b: or a prepared weight, (columns, sums).
        bias: (columns,), added to each row.
        out: where to write it, with contiguous rows; None makes a new tensor. Written to in any case.
    """
    rows, sums = a.shape
    columns = b.shape[0] if isinstance(b, Weight) else b.shape[1]
    y = a.new_empty(rows, columns) if out is None else out
    a = a if 1 in a.stride() else a.contiguous()
    highest, prepared = 0.0, None
    second: tuple[int | None, int, int] = (None, 0, 0)
    if isinstance(b, Weight):
        highest, prepared = b.highest, b.memory.data_ptr()
    else:
        b = b if 1 in b.stride() else b.contiguous()
        second = b.data_ptr(), *_lies(b, first=False)
    done = functions().zoo_tiles_multiply(
        rows, columns, sums, a.data_ptr(), *_lies(a, first=True), *second, prepared, highest,
        None if bias is None else bias.data_ptr(), y.data_ptr(), y.stride(0), torch.get_num_threads(),
    )  # fmt: skip
    return y if done == DONE else None


def matmul(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """(rows, sums) x (sums, columns) -> (rows, columns) in float32 on the CPU, on the tiles where that is worth it."""
    if worth_it(a.shape[0], b.shape[1], a.shape[1]):
        y = multiply(a, b, out=out)
        if y is not None:
            return y
    return torch.mm(a, b) if out is None else torch.mm(a, b, out=out)


class Linear(torch.autograd.Function):
    """`F.linear` for products in float32 on the CPU, and its backward pass. Gradients of gradients are torch's operators."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.biased = bias is not None
        y = multiply(x.reshape(-1, x.shape[-1]), weight.t(), bias)
        return F.linear(x, weight, bias) if y is None else y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        product = torch.mm if torch.is_grad_enabled() else matmul
        flat = gradient.reshape(-1, gradient.shape[-1])
        return (
            product(flat, weight).view(x.shape) if of_x else None,
            product(flat.t(), x.reshape(-1, x.shape[-1])) if of_weight else None,
            flat.sum(0) if of_bias and ctx.biased else None,
        )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """(..., inputs) x (outputs, inputs) -> (..., outputs), differentiable; None where torch's product is to be taken.

    The tensors are those for which `product_dtype` is float32.
    """
    columns, sums = weight.shape
    rows = x.numel() // max(sums, 1)
    if not worth_it(rows, columns, sums) or x.shape[-1] != sums or 1 not in weight.stride():
        return None
    if bias is not None and (bias.shape != (columns,) or not bias.is_contiguous()):
        return None
    y: Tensor = Linear.apply(x, weight, bias)
    return y
