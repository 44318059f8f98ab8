"""Activation functions by name."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.errors import unknown

Function = Callable[[Tensor], Tensor]


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _identity(x: Tensor) -> Tensor:
    return x


def _gelu_tanh_(x: Tensor) -> Tensor:
    return torch.ops.aten.gelu_(x, approximate="tanh")


def _quick_gelu_(x: Tensor) -> Tensor:
    return x.mul_(torch.sigmoid(1.702 * x))


# name: (plain, the same written over its argument)
_FUNCTIONS: dict[str, tuple[Function, Function]] = {
    "gelu": (F.gelu, torch.ops.aten.gelu_),
    "gelu-tanh": (_gelu_tanh, _gelu_tanh_),
    "quick-gelu": (_quick_gelu, _quick_gelu_),
    "relu": (F.relu, torch.relu_),
    "silu": (F.silu, torch.ops.aten.silu_),
    "tanh": (torch.tanh, torch.tanh_),
    "sigmoid": (torch.sigmoid, torch.sigmoid_),
    "identity": (_identity, _identity),
}

ACTIVATIONS: tuple[str, ...] = tuple(_FUNCTIONS)

IN_C = ("identity", "relu", "gelu", "gelu-tanh", "quick-gelu", "silu")
"""Those of activation.c, in its order."""


def activation(name: str) -> Function:
    """The elementwise function of that name (one of `ACTIVATIONS`)."""
    return _named(name)[0]


def overwriting(name: str) -> Function:
    """The same function, written over its argument; only for a buffer that nobody else can see."""
    return _named(name)[1]


def _named(name: str) -> tuple[Function, Function]:
    if name not in _FUNCTIONS:
        raise unknown("activation", name, ACTIVATIONS)
    return _FUNCTIONS[name]
