"""The two products of a feed-forward layer, with the activation between them.

The hidden activations are the largest temporaries of a transformer layer (4.8 MB here: 394 rows of 3072), and a
large temporary that is allocated anew costs more than the work on it, since each page of it is a page fault.
So the activation overwrites the fresh product instead of allocating a second buffer. Measured on a 2-core
AVX-512 server: a ViT-Ti/16 forward pass of 8 images made 28 000 page faults in 122 ms, then 1 150 in 90 ms.
Where the allocator happens to hold enough memory already there are no faults either way, and nothing is gained.
In training a narrow layer with GELU is one operation (`zoo.kernel.feedforward_tiles`). A wide one is the plain composition:
an own backward pass (activation recomputed, gradients in place) was not faster (float32: 2 to 3 % slower; ViT-B/16 in
bfloat16: the same).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernel import feedforward_tiles
from zoo.kernel.activation import activation as named
from zoo.kernel.activation import overwriting
from zoo.kernel.linear import MANY_GELU, NARROW_GELU, is_narrow
from zoo.kernel.packed import bare
from zoo.kernel.switch import fast, product_dtype


def mlp(
    x: Tensor,
    up: torch.nn.Module,
    activation: str,
    down: torch.nn.Module,
    dropout: float = 0.0,
    training: bool = False,
) -> Tensor:
    """(..., size) -> up -> activation -> dropout -> down -> (..., size)"""
    function = named(activation)
    if activation == "gelu" and not (training and dropout > 0):
        y = feedforward_tiles.mlp(x, up, down)
        if y is not None:
            return y
    if activation == "gelu" and is_narrow(x, up, NARROW_GELU, MANY_GELU):
        hidden = torch.ops.mkldnn._linear_pointwise(x, up.weight, up.bias, "gelu", [], "none")
    elif not torch.compiler.is_compiling() and not torch.is_grad_enabled() and bare(up) and fast():
        hidden = overwriting(activation)(up(x)) if _usual(x, up) else function(up(x))
    else:
        hidden = function(up(x))
    return down(F.dropout(hidden, dropout, training) if training and dropout > 0 else hidden)


def gated(
    x: Tensor,
    gate: torch.nn.Module,
    up: torch.nn.Module,
    activation: str,
    down: torch.nn.Module,
    dropout: float = 0.0,
    training: bool = False,
) -> Tensor:
    """(..., size) -> activation(gate) * up -> dropout -> down -> (..., size)"""
    quiet = not torch.compiler.is_compiling() and not torch.is_grad_enabled() and bare(gate) and bare(up) and fast()
    if quiet and _usual(x, gate, up):
        hidden = overwriting(activation)(gate(x)).mul_(up(x))
    else:
        hidden = named(activation)(gate(x)) * up(x)
    return down(F.dropout(hidden, dropout, training) if training and dropout > 0 else hidden)


def _usual(x: Tensor, *modules: Any) -> bool:
    tensors = [t for module in modules for t in (module.weight, module.bias) if t is not None]
    return product_dtype(x, *tensors) is not None
