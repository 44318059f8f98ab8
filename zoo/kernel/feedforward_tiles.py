"""A narrow feed-forward layer with GELU in training, in float32 on the bfloat16 tiles of a processor, as one operation.

Computed one after another, the products and GELU write and read the hidden numbers seven times, and where these are many and
the sums short that takes as long as the products; most of them are new memory, too, which costs more than the work on it. Here
rows go through the layer in blocks that stay in the cache: forward only the numbers before GELU are written, and backward what
GELU makes of them is computed again, and no gradient of them is ever written. So it is 4.8 MB less for a layer of ViT-Ti with
8 images, too. The products are those of `zoo.kernel.tiles`; GELU differs from the exact one by at most
1.1e-7 of its argument (torch's by 1.9e-7).

Measured on a 2-core server with tiles, forward and backward, milliseconds: plain, the products of `tiles` alone, and this:

    1576 rows, 192 -> 768 -> 192      11.2    9.5    7.6
    6272 rows, 96 -> 384 -> 96        13.6   12.7    7.5
    3136 rows, 128 -> 128 -> 128       2.7    2.5    1.9

Whole training steps: ViT-Ti with 1, 2 and 8 images 1.08 times as fast as with the products alone, Swin-T with two 1.05.

The rule: gradients are on and all weights and biases learn, float32, at least 192 rows, and at most 2**18 numbers in a weight.
Larger weights do not fit into the cache with a block of rows (384 -> 1536: 0.97 of the speed; 768 -> 3072: 0.84). Numbers out
of the range of `tiles` are noticed, and the layer is then torch's; so are gradients of gradients.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernel import tiles
from zoo.kernel.attention import differentiate
from zoo.kernel.compiled import library
from zoo.kernel.packed import bare
from zoo.kernel.switch import fast, product_dtype

WEIGHTS = 2**18


@lru_cache
def functions() -> Any:
    """The compiled functions, or None; asked for the first time when the first layer is worth it."""
    found = library("feedforward_tiles", *tiles.OPTIONS)
    if found is None or found.zoo_tiles_enable() != 0:
        return None
    number, address, switch = ctypes.c_long, ctypes.c_void_p, ctypes.c_int
    found.zoo_tiles_mlp.argtypes = [number] * 3 + [address] * 7 + [switch]
    found.zoo_tiles_mlp_backward.argtypes = [number] * 3 + [address] * 10 + [switch]
    return found


def mlp(x: Tensor, up: Any, down: Any) -> Tensor | None:
    """(..., width) -> up -> GELU -> down -> (..., width), differentiable; None where it is not to be computed this way."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or not (bare(up) and bare(down)):
        return None
    hidden, width = up.weight.shape
    least = min(hidden, width) >= tiles.COLUMNS and hidden * width <= WEIGHTS and x.numel() >= tiles.ROWS * width
    if not least or x.shape[-1] != width or down.weight.shape != (width, hidden) or not fast():
        return None
    learned = (up.weight, up.bias, down.weight, down.bias)
    if any(each is None or not each.requires_grad or not each.is_contiguous() for each in learned):
        return None
    if product_dtype(x, *learned) != torch.float32 or not x.is_contiguous() or functions() is None:
        return None
    y: Tensor = MLP.apply(None, x, *learned)
    return y


def _composed(setting: None, x: Tensor, up: Tensor, up_bias: Tensor, down: Tensor, down_bias: Tensor) -> Tensor:
    return F.linear(F.gelu(F.linear(x, up, up_bias)), down, down_bias)


class MLP(torch.autograd.Function):
    """The layer in float32 on the CPU, and its backward pass. Gradients of gradients are torch's operators."""

    @staticmethod
    def forward(ctx: Any, setting: None, *inputs: Tensor) -> Tensor:
        x, up, up_bias, down, down_bias = inputs
        hidden, width = up.shape
        before, y = x.new_empty(x.numel() // width, hidden), torch.empty_like(x)
        tensors = (x, up, up_bias, down, down_bias, before, y)
        done = functions().zoo_tiles_mlp(len(before), width, hidden, *_addresses(tensors), torch.get_num_threads())
        if done != tiles.DONE:
            torch.addmm(up_bias, x.view(-1, width), up.t(), out=before)
            y = F.linear(F.gelu(before), down, down_bias).view(x.shape)
        ctx.save_for_backward(*inputs, before)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, before = ctx.saved_tensors
        x, up, _, down, _ = inputs
        if not torch.is_grad_enabled() and fast():
            hidden, width = up.shape
            needed = ctx.needs_input_grad[1:]
            found = [torch.empty_like(x) if needed[0] else None, *map(torch.empty_like, inputs[1:])]
            tensors = (x, before, up, down, gradient.contiguous(), *found)
            sizes = len(before), width, hidden
            if functions().zoo_tiles_mlp_backward(*sizes, *_addresses(tensors), torch.get_num_threads()) == tiles.DONE:
                return (None, *(each if wanted else None for each, wanted in zip(found, needed)))
        with torch.autocast("cpu", enabled=False):
            return (None, *differentiate(ctx, _composed, gradient, None, *inputs))


def _addresses(tensors: tuple[Tensor | None, ...]) -> list[int | None]:
    return [None if each is None else each.data_ptr() for each in tensors]
