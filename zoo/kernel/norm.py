"""Normalisation over the last dimension.

A layer norm is torch's own: in a measured transformer layer of width 768 it is 0.4 % of the time. torch composes its root
mean square of small operators, and more so in the backward pass; here, in float32, it is one pass for the roots and two for
the rest, and backward the layer norm's own kernel, to which only what a layer norm takes off is added again. On a 2-core
AVX-512 server forward and backward, 4 x 128 tokens of 512: 1.7 -> 0.6 ms, 2 x 256 of 4096: 18.1 -> 6.2 ms; forward alone
0.07 ms either way, and 1.2 -> 0.7 ms. Of few tokens torch's way is the faster one.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernel.attention import differentiate
from zoo.kernel.switch import fast, product_dtype

MANY, MANY_LEARNED = 2**18, 2**15  # elements, without and with gradients


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """(..., size) -> (..., size): mean 0 and variance 1 over the last dimension, then weight and bias (size,)."""
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """(..., size) -> (..., size): root of the mean square 1 over the last dimension, then weight (size,)."""
    if torch.compiler.is_compiling() or weight is None or _small(x) or not fast() or not x.is_contiguous():
        return F.rms_norm(x, x.shape[-1:], weight, eps)
    with torch.autocast("cpu", enabled=False):
        if product_dtype(x, weight) != torch.float32:
            return F.rms_norm(x, x.shape[-1:], weight, eps)
        if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
            y: Tensor = RootMeanSquare.apply(eps, x, weight)
            return y
        return (x * _scale(x, eps)).mul_(weight)


def _small(x: Tensor) -> bool:
    return x.numel() < (MANY_LEARNED if torch.is_grad_enabled() else MANY)


def _scale(x: Tensor, eps: float) -> Tensor:
    """What each vector is multiplied by, (..., 1)."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def _composed(eps: float, x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], weight, eps)


class RootMeanSquare(torch.autograd.Function):
    """The norm in float32 with a backward pass of its own."""

    @staticmethod
    def forward(ctx: Any, eps: float, x: Tensor, weight: Tensor) -> Tensor:
        scale = _scale(x, eps)
        ctx.eps = eps
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        if torch.is_grad_enabled() or not fast():
            return (None, *differentiate(ctx, _composed, gradient, ctx.eps, x, weight))
        with torch.autocast("cpu", enabled=False):
            gradient = gradient.to(x.dtype).contiguous()
            needed = [ctx.needs_input_grad[1], ctx.needs_input_grad[2], False]
            size = x.shape[-1]
            d_x, d_weight, _ = torch.ops.aten.native_layer_norm_backward(
                gradient, x, [size], torch.zeros_like(scale), scale, weight, None, needed
            )
            if needed[0]:  # a layer norm takes off the mean of the weighted gradient, too
                d_x.add_((gradient @ weight)[..., None].mul_(scale).div_(size))
        return None, d_x if needed[0] else None, d_weight if needed[1] else None
