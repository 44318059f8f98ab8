"""A narrow feed-forward layer in training: as exact as torch's operators, differentiable, and aside where it must be.

Bounds: the mean difference from float64 is measured on torch's own operators with the same numbers, beside ours, which must not
be more than 1.2 times as large (it is 0.4 to 1.0 times as large).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from zoo import kernel
from zoo.kernel import feedforward_tiles, tiles

needs_tiles = pytest.mark.skipif(feedforward_tiles.functions() is None, reason="no tiles in this processor, or no compiler")
SIZES = [(300, 64, 256), (193, 100, 330), (1000, 70, 65), (192, 192, 768)]
"""Rows, width and hidden numbers: whole blocks and their remainders, of one and of several blocks of rows."""


def layer(width: int, hidden: int, scale: float = 1.0) -> torch.nn.ModuleDict:
    torch.manual_seed(width)
    up, down = kernel.Linear(width, hidden), kernel.Linear(hidden, width)
    with torch.no_grad():
        up.weight.mul_(scale)
    return torch.nn.ModuleDict({"up": up, "down": down})


def run(x: Tensor, modules: torch.nn.ModuleDict, direction: Tensor, activation: str = "gelu") -> list[Tensor]:
    y = kernel.mlp(x, modules["up"], activation, modules["down"])
    wanted = [each for each in (x, *modules.parameters()) if each.requires_grad]
    return [y, *torch.autograd.grad(y, wanted, direction)]


def taken(y: Tensor) -> bool:
    return "MLP" in type(y.grad_fn).__name__


def difference(found: Tensor, exact: Tensor) -> float:
    found, exact = found.detach(), exact.detach()
    return float((found.double() - exact).abs().mean() / exact.abs().mean())


@needs_tiles
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_as_exact_as_torchs_operators(sizes: tuple[int, int, int], scale: float, threads: int) -> None:
    rows, width, hidden = sizes
    modules, x, direction = layer(width, hidden, scale), torch.randn(rows, width, requires_grad=True), torch.randn(rows, width)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        ours = run(x, modules, direction)
    finally:
        torch.set_num_threads(before)
    with kernel.plain():
        theirs = run(x, modules, direction)
        exact = run(x.detach().double().requires_grad_(), layer(width, hidden, scale).double(), direction.double())
    assert taken(ours[0]) and not taken(theirs[0])
    for mine, other, right in zip(ours, theirs, exact, strict=True):
        assert mine.shape == other.shape and difference(mine, right) <= 1.2 * difference(other, right) + 3e-8


@needs_tiles
def test_gelu_is_exact_for_all_sizes_of_numbers() -> None:
    modules, numbers = layer(64, 64), torch.cat([torch.linspace(-9, 9, 191), torch.tensor([0.0])])
    with torch.no_grad():
        for each in modules.parameters():
            each.zero_() if each.dim() == 1 else each.copy_(torch.eye(64))
    x = numbers[:, None].repeat(1, 64).requires_grad_()
    y, gradient, *_ = run(x, modules, torch.ones(192, 64))
    wide = numbers.double()[:, None]
    share, density = torch.special.erfc(-wide / 2**0.5) / 2, (-wide.square() / 2).exp() / (2 * torch.pi) ** 0.5
    error = (y.detach().double() - wide * share).abs()
    assert taken(y) and (error <= 1.2e-7 * wide.abs()).all()  # torch's: 1.9e-7
    some = (wide > -6)[:, 0] & (wide != 0)[:, 0]
    assert (error[some] <= 5e-5 * (wide * share).abs()[some]).all()  # torch's is zero from -5.5 on
    assert (gradient.double() - (share + wide * density)).abs().max() <= 1.5e-7


@needs_tiles
@pytest.mark.parametrize("kind", ["infinite", "nan", "large", "tiny", "tiny gradient"])
def test_numbers_out_of_range_are_torchs(kind: str) -> None:
    modules, x, direction = layer(64, 96), torch.randn(200, 64), torch.randn(200, 64)
    if kind in ("infinite", "nan"):
        x[3, 5] = float(kind[:3])
    elif kind == "tiny gradient":
        direction *= 1e-30
    else:
        x *= 3e37 if kind == "large" else 1e-30
    x.requires_grad_()
    ours = run(x, modules, direction)
    with kernel.plain():
        theirs = run(x, modules, direction)
    for mine, other in zip(ours, theirs, strict=True):
        size = float(other.detach().nan_to_num(0, 0, 0).abs().max())
        assert torch.allclose(mine, other, rtol=1e-4, atol=1e-5 * size, equal_nan=True)


@needs_tiles
def test_gradients_of_gradients() -> None:
    modules, x, direction = layer(64, 96), torch.randn(200, 64, requires_grad=True), torch.randn(200, 64)
    parameters = [x, *modules.parameters()]

    def found() -> list[Tensor]:
        y = kernel.mlp(x, modules["up"], "gelu", modules["down"])
        first = torch.autograd.grad((y * direction).sum(), parameters, create_graph=True)
        return [
            *first,
            *torch.autograd.grad(sum(each.square().sum() for each in first), parameters[:-1]),
        ]  # y is linear in the last

    ours = found()
    with kernel.plain():
        theirs = found()
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine - other).abs().max() <= 2e-5 * max(1.0, float(other.abs().max()))


@needs_tiles
def test_some_gradients_alone_and_twice() -> None:
    modules, x = layer(64, 96), torch.randn(4, 50, 64)
    y = kernel.mlp(x, modules["up"], "gelu", modules["down"])
    y.sum().backward(retain_graph=True)  # a gradient that is one number, everywhere
    first = modules["up"].weight.grad.clone()
    y.sum().backward()
    assert taken(y) and torch.equal(modules["up"].weight.grad, 2 * first)
    x.requires_grad_()
    y = kernel.mlp(x, modules["up"], "gelu", modules["down"])
    (alone,) = torch.autograd.grad(y.sum(), modules["down"].bias, retain_graph=True)
    (again,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(alone, torch.full((64,), 200.0)) and again.shape == x.shape
    y = kernel.mlp(x, modules["up"], "gelu", modules["down"])
    with torch.no_grad():
        modules["down"].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@needs_tiles
@pytest.mark.parametrize(
    "case",
    ["inference", "frozen", "no bias", "hook", "autocast", "float64", "few rows", "wide", "relu", "strided", "plain", "shape"],
)
def test_where_it_steps_aside(case: str) -> None:
    modules, x = layer(*((64, 96) if case != "wide" else (512, 600))), torch.randn(200, 64 if case != "wide" else 512)
    activation, context = "relu" if case == "relu" else "gelu", torch.enable_grad()
    calls: list[Any] = []
    if case == "inference":
        context = torch.no_grad()
    elif case == "frozen":
        modules["up"].weight.requires_grad_(False)
    elif case == "no bias":
        modules["down"] = kernel.Linear(96, 64, bias=False)
    elif case == "hook":
        modules["down"].register_forward_hook(lambda *given: calls.append(1))
    elif case == "autocast":
        context = torch.autocast("cpu", torch.bfloat16)
    elif case == "float64":
        modules, x = modules.double(), x.double()
    elif case == "few rows":
        x = x[: tiles.ROWS - 1]
    elif case == "strided":
        x = torch.randn(64, 200).T
    elif case == "plain":
        context = kernel.plain()
    elif case == "shape":
        modules["down"] = kernel.Linear(96, 32)
    with context:
        y = kernel.mlp(x, modules["up"], activation, modules["down"])
        hidden = modules["up"](x)
        expected = modules["down"](torch.relu(hidden) if case == "relu" else torch.nn.functional.gelu(hidden))
    assert not taken(y) and torch.allclose(y, expected, atol=1e-5 if case != "autocast" else 1e-2)
    assert case != "hook" or len(calls) == 2


@needs_tiles
def test_dropout_between_the_products_is_not_left_out() -> None:
    modules, x = layer(64, 96), torch.randn(200, 64)
    parts = modules["up"], "gelu", modules["down"]
    assert taken(kernel.mlp(x, *parts, dropout=0.5)) and not taken(kernel.mlp(x, *parts, dropout=0.5, training=True))


def test_done_without_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feedforward_tiles, "functions", lambda: None)
    modules, x, direction = layer(64, 96), torch.randn(200, 64, requires_grad=True), torch.randn(200, 64)
    ours = run(x, modules, direction)
    with kernel.plain():
        theirs = run(x, modules, direction)
    assert not taken(ours[0]) and all(torch.allclose(*each, atol=1e-4) for each in zip(ours, theirs))
