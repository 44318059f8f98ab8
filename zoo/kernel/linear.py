"""Linear layers: one, and several that read the same input."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernel import tiles
from zoo.kernel.packed import AVAILABLE, WEIGHTS, Prepared, Preparing, again, bare, by_table, product, worth_it
from zoo.kernel.switch import fast, product_dtype

FEW = range(2, 33)  # rows
LEAST = 2**17  # multiplications from which on it is worth asking for another way than the plain one
NARROW, MANY = 256, 2048  # inputs, rows
NARROW_GELU, MANY_GELU = 384, 384  # the same where GELU follows


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, memory: Prepared | None = None) -> Tensor:
    """(..., inputs) x (outputs, inputs) -> (..., outputs), for a weight that belongs to no `Linear`.

    Scoring a few tokens by a large table, without gradients and in float32, is oneDNN's product (8 rows, 50257 x 768 on a
    2-core AVX-512 server: 8.7 ms against 14.4; 4 rows 7.6 against 9.5; one row is all reading, 4.4 either way), and where one
    caller does it again and again (`kernel.repeated`) that of a copy in a better layout (5.5 ms; one row 4.8 against 5.6),
    which is kept in `memory`. Making it takes as long as eight products.
    """
    if memory is not None and (y := by_table(x, weight, bias, memory)) is not None:
        return y
    if fast() and not torch.is_grad_enabled() and _few(x, weight) and _single(x, weight, bias):
        scores: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return scores
    return _product(x, weight, bias)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.linear, and its backward pass, on the tiles where there are any and that is worth it (`zoo.kernel.tiles`)."""
    if not torch.compiler.is_compiling() and weight.dim() == 2 and x.dim() > 1:
        columns, sums = weight.shape
        if tiles.worth_it(x.numel() // max(sums, 1), columns, sums) and fast():
            given = (x, weight) if bias is None else (x, weight, bias)
            y = tiles.linear(x, weight, bias) if product_dtype(*given) == torch.float32 else None
            if y is not None:
                return y
    return F.linear(x, weight, bias)


def _few(x: Tensor, weight: Tensor) -> bool:
    """Whether few rows meet a large table."""
    rows = x.numel() // max(weight.shape[-1], 1)
    return weight.numel() >= WEIGHTS and rows in FEW


def _single(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether this is an ordinary product in float32 on the CPU."""
    given = (x, weight) if bias is None else (x, weight, bias)
    ordinary = AVAILABLE and x.dim() > 1 and x.shape[-1] == weight.shape[-1] and weight.is_contiguous()
    return ordinary and product_dtype(*given) == torch.float32


def is_narrow(x: Tensor, module: torch.nn.Module, most: int = NARROW, least: int = MANY) -> bool:
    """Whether a product has many rows of few inputs, which without gradients and in float32 is oneDNN's.

    There the plain call spends its time on the bias, which it writes first. On one core of an AVX-512 server, 6272 rows,
    96 -> 384 features: 5.2 ms against 3.7, and with GELU after it, which oneDNN computes on the way, 6.9 against 4.4; 3152
    rows, 192 -> 768: 7.4 against 6.8, and 9.4 against 7.6; 384 -> 1536: 25.4 against 26.0, and 29.1 against 27.6. With GELU,
    392 rows, 384 -> 1536, 3.3 against 3.0.
    """
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or not AVAILABLE or not bare(module):
        return False
    weight: Any = module.weight
    rows = x.numel() // max(weight.shape[-1], 1)
    if weight.shape[-1] > most or rows < least or module.bias is None or not x.is_contiguous() or not fast():
        return False
    if tiles.worth_it_prepared(rows, *weight.shape):
        return False
    return _single(x, weight, module.bias)  # type: ignore[arg-type]


class Linear(Preparing, torch.nn.Linear):
    """torch.nn.Linear (same parameters, initialisation and state dict), which in inference may keep its weight
    in the matrix library's layout: see `zoo.kernel.packed` for when, for the memory, and for the way out.

    What is kept is neither copied nor pickled, and a module with hooks, a parametrisation, an adapter around it
    or a subclass's forward is always the plain call.
    """

    memory = Prepared

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.forget()

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:  # shapes alone are drawn all the same, at the cost of a third of loading a model
            super().reset_parameters()

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)"""
        if torch.compiler.is_compiling() or input.numel() * self.out_features < LEAST:
            return F.linear(input, self.weight, self.bias)
        y = again(input, (self,))
        if y is None and worth_it(input, self) and bare(self):
            y = product(input, (self,))
        if y is not None:
            return y
        if is_narrow(input, self):
            return torch.ops.mkldnn._linear_pointwise(input, self.weight, self.bias, "none", [], "")
        return _product(input, self.weight, self.bias)


def project(x: Tensor, *modules: torch.nn.Module) -> tuple[Tensor, ...]:
    """(..., inputs) -> one (..., outputs of that module) per module: several linear layers of one input.

    The same as calling each. Where all are bare `Linear` and the prepared way applies they are one product,
    5 % faster than three, and the results are views of its columns (strided: last dimension contiguous). So they are in
    training under bfloat16 autocast, where the backward pass then has two products instead of six (three projections
    forward and backward on a 2-core AVX-512 server, 6272 rows of 96 features: 4.5 ms instead of 5.3; 392 of 384: 2.3 instead
    of 2.9; 394 of 768: 6.6 instead of 7.0; in float32 nothing is gained).
    """
    many = not torch.compiler.is_compiling() and x.numel() * getattr(modules[0], "out_features", 0) * len(modules) >= LEAST
    if many:
        y = again(x, modules)
        if y is None and worth_it(x, *modules) and all(map(bare, modules)):
            y = product(x, modules)
        if y is not None:
            return y.split([module.out_features for module in modules], dim=-1)
    if len(modules) > 1 and _learned_together(x, *modules):
        with torch.autocast("cpu", enabled=False):
            layers: list[Any] = list(modules)
            weight = torch.cat([layer.weight.to(torch.bfloat16) for layer in layers])
            biases = [layer.bias.to(torch.bfloat16) for layer in layers if layer.bias is not None]
            y = F.linear(x.to(torch.bfloat16), weight, torch.cat(biases) if biases else None)
        return y.split([layer.out_features for layer in layers], dim=-1)
    return tuple(module(x) for module in modules)


def _learned_together(x: Tensor, *modules: torch.nn.Module) -> bool:
    """Whether these are bare linear layers in training under bfloat16 autocast on the CPU, all with a bias or all without."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or not torch.is_autocast_enabled("cpu"):
        return False
    if not fast() or not all(map(bare, modules)) or len({module.bias is None for module in modules}) > 1:
        return False
    weights: list[Any] = [module.weight for module in modules]
    return any(weight.requires_grad for weight in weights) and product_dtype(x, *weights) == torch.bfloat16
