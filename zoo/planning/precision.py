"""Lightning's `precision`, on the meta device: there autocast itself does nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from zoo.inspect.cost import FusedAttention

PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")
"""Float32 throughout; float32 weights with products in bfloat16; bfloat16 throughout."""

PRODUCTS: frozenset[Callable[..., Any]] = frozenset(
    {
        functional.linear, functional.conv1d, functional.conv2d, functional.conv3d, functional.scaled_dot_product_attention,
        torch.matmul, torch.mm, torch.bmm, torch.baddbmm, torch.addmm, torch.einsum,
        Tensor.matmul, Tensor.__matmul__, Tensor.mm, Tensor.bmm, Tensor.baddbmm, Tensor.addmm,
    }
)  # fmt: skip
"""What autocast computes in bfloat16."""


class _Mixed(TorchFunctionMode):
    """Casts what autocast casts: a weight once for a whole forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: dict[int, Tensor] = {}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in PRODUCTS and torch.is_autocast_enabled("cpu"):
            args = [self._cast(each) for each in args]
            kwargs = {name: self._cast(each) for name, each in kwargs.items()}
        return function(*args, **kwargs)

    def _cast(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        if not (isinstance(value, nn.Parameter) and value.requires_grad):
            return value.to(torch.bfloat16)
        if id(value) not in self.weights:
            self.weights[id(value)] = value.to(torch.bfloat16)
        return self.weights[id(value)]


@contextmanager
def forward_pass(precision: str) -> Iterator[None]:
    """A training step's forward pass in this precision."""
    with ExitStack() as stack:
        stack.enter_context(FusedAttention())
        if precision == "bf16-mixed":
            stack.enter_context(torch.autocast("cpu", torch.bfloat16))
            mixed = stack.enter_context(_Mixed())
            stack.callback(mixed.weights.clear)
        yield


@contextmanager
def computed_again(precision: str) -> Iterator[None]:
    """A checkpointed block in the backward pass; checkpointing itself restores autocast, whose memory is then short."""
    with ExitStack() as stack:
        stack.enter_context(FusedAttention())
        if precision == "bf16-mixed":
            mixed = stack.enter_context(_Mixed())
            stack.callback(mixed.weights.clear)
        yield
