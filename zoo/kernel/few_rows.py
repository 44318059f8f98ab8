"""Products in float32 of few rows with a large weight, as when texts are written a token at a time.

They take as long as reading the weight, and how fast it is read depends on how it lies. Here it lies in large pages of memory,
in panels that a thread reads three at a time from beginning to end, while it multiplies what it holds by all rows. The sums are
float32's own, added up in the order of the inputs.

Measured on a 2-core server with AVX-512, twelve weights of 3072 x 768 by turns, milliseconds, and how fast that reads:

    rows                     1      2      4      8     16     32     64
    F.linear              0.36   0.36   0.60   0.81   0.81   1.04   1.44
    MKL's layout          0.34   0.39   0.44   0.53   0.60   0.76   1.04
    oneDNN's              0.38   0.42   0.43   0.51   0.59   0.82   1.22
    here                  0.30   0.30   0.32   0.34   0.37   0.53   0.93
    GB/s                  31.6   31.9   29.4   27.4   25.7   17.7   10.2

Called from C, the products of GPT-2's 340 MB read 38 GB/s in large pages and 30 in small ones. Weights of 512 x 512 gain
as much (8 rows 0.065 -> 0.047).
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from zoo.kernel.compiled import library, memory

OUTPUTS = 48  # of three panels: as in few_rows.c
MOST, WEIGHTS = 64, 2**17
"""Rows up to which this is the fastest way, and weights from which on they gain what asking takes."""


@lru_cache
def functions() -> Any:
    """The compiled functions, or None; asked for the first time when the first product is worth it."""
    found = library("few_rows", "-mavx512f")
    if found is None:
        return None
    number, address, switch = ctypes.c_long, ctypes.c_void_p, ctypes.c_int
    found.zoo_few_rows_prepare.argtypes = [number, number, address, address, switch]
    matrix: list[Any] = [address, number]
    found.zoo_few_rows_multiply.argtypes = [number] * 3 + matrix + [address, address] + matrix + [switch]
    found.zoo_few_rows_prepare.restype = found.zoo_few_rows_multiply.restype = None
    return found


def worth_it(rows: int, weights: int) -> bool:
    """Whether a weight of that many numbers is prepared this way for so many rows."""
    return 0 < rows <= MOST and weights >= WEIGHTS and functions() is not None


def size(outputs: int, inputs: int) -> int:
    """How many bytes the panels of a weight take."""
    return -(-outputs // OUTPUTS) * OUTPUTS * inputs * 4


class Weight:
    """A weight in panels: (outputs, inputs).

    Args:
        room: where they are to lie; None takes new memory.
    """

    __slots__ = ("memory", "shape")

    def __init__(self, weight: Tensor, room: Tensor | None = None) -> None:
        outputs, inputs = self.shape = weight.shape
        self.memory = memory(size(outputs, inputs)) if room is None else room
        source, threads = weight.contiguous(), torch.get_num_threads()
        functions().zoo_few_rows_prepare(outputs, inputs, source.data_ptr(), self.memory.data_ptr(), threads)


def multiply(x: Tensor, weight: Weight, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """(rows, inputs) x (outputs, inputs) -> (rows, outputs), all float32 on the CPU.

    Args:
        bias: (outputs,), added to each row.
        out: where to write it, with contiguous rows; None makes a new tensor.
    """
    (rows, inputs), outputs = x.shape, weight.shape[0]
    x = x if x.stride(1) == 1 else x.contiguous()
    y = x.new_empty(rows, outputs) if out is None else out
    functions().zoo_few_rows_multiply(
        rows, outputs, inputs, x.data_ptr(), x.stride(0), weight.memory.data_ptr(),
        None if bias is None else bias.data_ptr(), y.data_ptr(), y.stride(0), torch.get_num_threads(),
    )  # fmt: skip
    return y
