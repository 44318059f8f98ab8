"""Few tokens through the experts that were chosen for them, without gradients: all products of all experts in one call.

Each expert has a few rows for its many weights, and reading these is most of the time. Calling torch for each of 24 products,
and ten times more to sort rows and to bring them back, would take half as long again, since reading weights drives all else
out of the processor's caches. The call also compares weights with what they were when they were laid out, by all threads.

Measured on a 2-core server with AVX-512, weights in memory and not in the caches, milliseconds:

    tokens                                      1      4     16     32     64    128    250
    8 gated experts of 512 -> 1792 -> 512     1.0    2.4    3.0    3.6    3.9    5.6    9.6
    one product after another                 1.5    3.2    4.3    4.8    6.2    7.9   12.7
    16 experts of 512 -> 1024 -> 512          0.8    1.1    2.1    2.3    2.8    3.4    4.6
    one product after another                 1.4    2.6    3.2    4.2    4.7    5.3    7.5

Taken by `zoo.kernel.experts_product.Kept` once it has laid out weights for few rows (on average, `few_rows.MOST`), for the
activations that are written in C, and where nobody watches the experts' call.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from zoo.kernel import few_rows
from zoo.kernel.activation import IN_C
from zoo.kernel.compiled import library, memory
from zoo.kernel.packed import Source


class Panels:
    """A layer of all experts, one expert behind the other: (experts, outputs, inputs)."""

    def __init__(self, weight: Tensor) -> None:
        self.shape = experts, outputs, inputs = weight.shape
        self.memory = memory(experts * few_rows.size(outputs, inputs))
        self.each = [few_rows.Weight(own, part) for own, part in zip(weight, self.memory.view(experts, -1))]

    def __getitem__(self, expert: int) -> few_rows.Weight:
        return self.each[expert]


def mixture(
    x: Tensor,
    chosen: Tensor,
    weights: Tensor,
    panels: Sequence[Panels],
    biases: Sequence[Tensor | None],
    activation: str,
    sources: Sequence[Source],
) -> Tensor | None:
    """(tokens, inputs) -> (tokens, outputs), each token the sum of what its experts make of it; None where weights changed.

    Args:
        chosen: (tokens, choices), the numbers of experts; as many as there are stands for none.
        weights: (tokens, choices), what is multiplied by.
        panels: of up, down, and gate if there is one.
        biases: of the same layers.
        sources: weights that are to be compared with what the panels were made from.
    """
    (tokens, inputs), choices, (experts, hidden, _), outputs = x.shape, chosen.shape[1], panels[0].shape, panels[1].shape[1]
    x = x if x.stride(1) == 1 else x.contiguous()
    chosen, weights = chosen.contiguous(), weights.contiguous()
    layers = [
        _Layer(each.memory.data_ptr(), None if bias is None else bias.data_ptr(), *each.shape[:0:-1])
        for each, bias in zip(panels, biases)
    ]
    samples = [_Sample(s.live.data_ptr(), s.sample.data_ptr(), s.live.stride(0), s.live.numel()) for s in sources]
    known = _Experts(experts, choices, IN_C.index(activation), (_Layer * 3)(*layers), len(samples), (_Sample * 3)(*samples))
    y, space = x.new_empty(tokens, outputs), x.new_empty(tokens * choices * (inputs + hidden + outputs))
    changed = functions()(
        known, tokens, x.data_ptr(), x.stride(0), chosen.data_ptr(), weights.data_ptr(), y.data_ptr(), space.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return None if changed else y


class _Layer(ctypes.Structure):
    """As in experts_few_rows.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("panels", "bias")),
        *((name, ctypes.c_long) for name in ("inputs", "outputs")),
    )


class _Sample(ctypes.Structure):
    """As in experts_few_rows.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("live", "kept")),
        *((name, ctypes.c_long) for name in ("apart", "number")),
    )


class _Experts(ctypes.Structure):
    """As in experts_few_rows.c."""

    _fields_ = (
        *((name, ctypes.c_long) for name in ("experts", "choices", "activation")),
        ("layers", _Layer * 3),
        ("samples", ctypes.c_long),
        ("sample", _Sample * 3),
    )


@lru_cache
def functions() -> Any:
    """The compiled function, or None."""
    found = library("experts_few_rows", "-mavx512f")
    if found is None:
        return None
    number, address = ctypes.c_long, ctypes.c_void_p
    found.zoo_experts_few_rows.argtypes = [ctypes.POINTER(_Experts), number, address, number, *[address] * 4, ctypes.c_int]
    found.zoo_experts_few_rows.restype = ctypes.c_int
    return found.zoo_experts_few_rows
