"""The root-mean-square norm equals torch's, forward and backward, and steps aside where it must."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from zoo import kernel
from zoo.kernel import norm


def both(x: torch.Tensor, weight: torch.Tensor, gradient: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """What ours gives with its gradients, and what torch's gives in float64."""
    found = []
    for function, kind in ((lambda a, b: kernel.rms_norm(a, b, 1e-6), x.dtype), (None, torch.float64)):
        a, b = (each.detach().to(kind).requires_grad_() for each in (x, weight))
        y = functional.rms_norm(a, a.shape[-1:], b, 1e-6) if function is None else function(a, b)
        found.append([y, *torch.autograd.grad(y, (a, b), gradient.to(kind))])
    return found[0], found[1]


@pytest.mark.parametrize("shape", [(3, 100, 128), (7000, 32), (1, 513, 512), (2, 7, 8)])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_values_and_gradients(shape: tuple[int, ...], scale: float) -> None:
    draw = torch.Generator().manual_seed(0)
    x, weight, gradient = (torch.randn(size, generator=draw) for size in (shape, shape[-1:], shape))
    ours, theirs = both(x * scale, weight, gradient)
    for mine, exact in zip(ours, theirs):
        assert (mine.double() - exact).abs().max() <= 2e-6 * exact.abs().max()  # torch's own in float32: 1e-6


def test_no_gradient_is_wanted_of_one_of_them() -> None:
    x, weight = torch.randn(8, 200, 64, requires_grad=True), torch.randn(64)
    (mine,) = torch.autograd.grad(kernel.rms_norm(x, weight, 1e-6).sum(), x)
    with kernel.plain():
        (exact,) = torch.autograd.grad(kernel.rms_norm(x, weight, 1e-6).sum(), x)
    assert torch.allclose(mine, exact, rtol=0.0, atol=1e-5)


def test_second_derivatives() -> None:
    x, weight = torch.randn(4, 300, 64, requires_grad=True), torch.randn(64, requires_grad=True)
    found = []
    for _ in range(2):
        with kernel.plain() if found else torch.enable_grad():
            (first,) = torch.autograd.grad(kernel.rms_norm(x, weight, 1e-6).square().sum(), x, create_graph=True)
            found.append(torch.autograd.grad(first.square().sum(), (x, weight)))
    for mine, exact in zip(*found):
        assert torch.allclose(mine, exact, rtol=0.0, atol=float(1e-5 * exact.abs().max()))


@pytest.mark.parametrize("grad", [True, False])
def test_the_fast_way_is_taken_of_many_tokens_in_float32_alone(grad: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    scale = norm._scale
    monkeypatch.setattr(norm, "_scale", lambda x, eps: taken.append(tuple(x.shape)) or scale(x, eps))
    weight = torch.ones(64)
    with torch.set_grad_enabled(grad):
        for x in (
            torch.randn(80, 64, 64),
            torch.randn(2, 64),
            torch.randn(80, 64, 64).double(),
            torch.randn(64, 80, 64).mT[..., :64],
        ):
            kernel.rms_norm(x.requires_grad_(grad), weight.to(x.dtype).requires_grad_(grad), 1e-6)
    assert taken == [(80, 64, 64)]
