"""Float32 products of few rows with a large matrix that is read once, row by row, as a backward pass has them.

The gradient of a layer's input is that of its output times the weight as it lies: (rows, outputs) x (outputs, inputs). With few
rows that takes as long as reading the weight, which the matrix library lays out anew for each product.

Measured on a 2-core server with AVX-512, 24 matrices by turns, milliseconds, torch.mm and here:

    rows                     4            8            16           24           40
    1792 x 512          0.22 0.08    0.25 0.09    0.28 0.15    0.22 0.20    0.36 0.29
    512 x 1792          0.20 0.10    0.30 0.11    0.36 0.16    0.34 0.26    0.46 0.45
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from zoo.kernel import tiles
from zoo.kernel.compiled import library
from zoo.kernel.switch import product_dtype

MOST, NUMBERS = 24, 2**17
"""Rows up to which this is faster, and numbers of a matrix from which on they gain what asking takes."""


def matmul(x: Tensor, matrix: Tensor, out: Tensor | None = None) -> Tensor:
    """(rows, inputs) x (inputs, columns) -> (rows, columns), as `zoo.kernel.tiles.matmul`."""
    if not _worth_it(x, matrix, out):
        return tiles.matmul(x, matrix, out)
    (rows, inputs), columns, threads = x.shape, matrix.shape[1], torch.get_num_threads()
    y = x.new_empty(rows, columns) if out is None else out
    space = x.new_empty(threads - 1, rows, columns)
    functions().zoo_few_rows_back(
        rows, inputs, columns, x.data_ptr(), x.stride(0), matrix.data_ptr(), y.data_ptr(), space.data_ptr(), threads
    )
    return y


def _worth_it(x: Tensor, matrix: Tensor, out: Tensor | None) -> bool:
    if not (0 < x.shape[0] <= MOST and matrix.numel() >= NUMBERS and x.stride(1) == 1 and matrix.is_contiguous()):
        return False
    usual = product_dtype(x, matrix, *(() if out is None else (out,))) == torch.float32
    return usual and (out is None or out.is_contiguous()) and functions() is not None


@lru_cache
def functions() -> Any:
    """The compiled function, or None."""
    found = library("few_rows_back", "-mavx512f")
    if found is None:
        return None
    number, address = ctypes.c_long, ctypes.c_void_p
    found.zoo_few_rows_back.argtypes = [number, number, number, address, number, address, address, address, ctypes.c_int]
    found.zoo_few_rows_back.restype = None
    return found
