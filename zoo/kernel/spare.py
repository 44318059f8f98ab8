"""Memory of large gradients that is used again.

A training step drops its gradients before the next one asks for new ones. In between the C library gives so much memory back to
the system, which has to clear and map it again page by page: that took 5 to 35 ms for the 88 MB of 8 gated experts of
512 -> 1792 -> 512 features, in steps that take 26 (64 tokens) and 112 ms (1024) without that.

The price is that memory of gradients is not free for other things while there are none, as with `zero_grad(set_to_none=False)`.
It belongs to a module, and goes with what this prepared (`zoo.kernel.packed.Preparing`): with `eval()`, `.to()` or `forget()`.
"""

from __future__ import annotations

import ctypes
import weakref

import torch
from torch import Tensor

LEAST = 2**22
"""Bytes from which on memory is kept."""


class Spare:
    """As much memory as there were gradients at once. It is free as soon as nobody holds a tensor that lies in it."""

    def __init__(self) -> None:
        self.free: dict[int, list[Tensor]] = {}

    def like(self, weight: Tensor) -> Tensor:
        """`torch.empty_like`, contiguous."""
        size = weight.numel() * weight.element_size()
        if size < LEAST or type(weight) not in (Tensor, torch.nn.Parameter) or weight.device.type != "cpu":
            return torch.empty_like(weight, memory_format=torch.contiguous_format)
        free = self.free.setdefault(size, [])
        try:
            space = free.pop()
        except IndexError:
            space = torch.empty(size, dtype=torch.uint8)
        # the tensor's storage holds the array, and when it lets go of it, the space is free again
        array = (ctypes.c_char * size).from_address(space.data_ptr())
        weakref.finalize(array, free.append, space).atexit = False
        return torch.frombuffer(array, dtype=weight.dtype).view(weight.shape)
