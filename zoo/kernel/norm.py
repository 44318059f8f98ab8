"""Normalisation over the last dimension.

Plain torch calls: in a measured transformer layer of width 768 a layer norm is 0.4 % of the time, and no other
way of computing it paid. They are here so that the library has one place to change.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """(..., size) -> (..., size): mean 0 and variance 1 over the last dimension, then weight and bias (size,)."""
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """(..., size) -> (..., size): root of the mean square 1 over the last dimension, then weight (size,)."""
    return F.rms_norm(x, x.shape[-1:], weight, eps)
