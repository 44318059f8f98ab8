"""What the tests of the kernels share.

Bounds: float32 products of 192 terms differ from float64 by 1.1e-6 at values up to 2, packed and plain alike
(the noise floor, measured); the tests allow 2e-5. bfloat16 has 8 bits: 2e-2 of the largest.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo import kernel
from zoo.kernel import packed

BOUND = 2e-5
needs_packing = pytest.mark.skipif(not packed.AVAILABLE, reason="torch without MKL and oneDNN")


def close(a: Tensor, b: Tensor, bound: float = BOUND) -> None:
    assert a.shape == b.shape and a.dtype == b.dtype
    assert (a.double() - b.double()).abs().max() <= bound * max(1.0, b.abs().max().item())


def ready(layer: kernel.Linear, x: Tensor) -> kernel.Linear:
    """The layer, with its weight prepared for inputs like x."""
    layer.eval()
    with torch.no_grad():
        for _ in range(3):
            layer(x)
    assert layer.prepared.weight is not None
    return layer


def pair(bias: bool = True) -> tuple[kernel.Linear, Tensor]:
    x = torch.randn(2, 20, 192)
    return ready(kernel.Linear(192, 256, bias=bias), x), x


def check(layer: kernel.Linear, x: Tensor) -> None:
    with torch.no_grad():
        for _ in range(4):
            close(layer(x), F.linear(x, layer.weight, layer.bias))
