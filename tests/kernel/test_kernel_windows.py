"""Windows of a grid and products of few inputs: the fast ways give what the plain ones do, and are taken where they should."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from zoo import kernel
from zoo.kernel import windows
from zoo.kernel.linear import is_narrow
from zoo.kernel.windows import APART, Windows


@pytest.mark.parametrize("plan", [
    Windows((6, 8), (3, 4), (1, 2)), Windows((7, 5), (3, 2), (1, 1)), Windows((7, 5), (3, 2), (1, 1), pad_first=False),
    Windows((2, 9), (4, 4)), Windows((6, 8), (3, 4)),
], ids=str)  # fmt: skip
def test_tokens_come_back_to_their_places(plan: Windows) -> None:
    x = torch.randn(2, plan.grid[0] * plan.grid[1], 6)
    moved = plan.moved(x)
    cut = plan.cut(moved.unflatten(-1, (2, 3)).transpose(1, 2))
    assert cut.shape == (2, plan.counts[0] * plan.counts[1], 2, plan.window[0] * plan.window[1], 3)
    joined = plan.joined(cut).transpose(1, 2).flatten(2)
    assert torch.equal(joined, moved) and torch.equal(plan.back(joined), x)
    with torch.no_grad():
        assert torch.equal(plan.moved(x), moved) and torch.equal(plan.back(moved), x)  # in one step, where it can be
    if plan.padded == plan.grid:
        rolled = x.unflatten(1, plan.grid).roll((-plan.shift[0], -plan.shift[1]), (1, 2)).flatten(1, 2)
        assert torch.equal(moved, rolled)


@pytest.mark.parametrize("heads", [2, 1])
def test_the_fast_way_equals_the_plain_one(heads: int) -> None:
    torch.manual_seed(0)
    plan = Windows((14, 14), (7, 7), (3, 3))
    query = torch.randn(2, 4, 2, 49, 8)
    key, value = torch.randn(2, 2, 4, heads, 49, 8)
    scores = torch.randn(1, 4, 2, 49, 49) + windows.regions(plan, query)
    with torch.no_grad():
        ours = kernel.window_attention(query, key, value, scores=scores, scale=0.3)
        with kernel.plain():
            plain = kernel.window_attention(query, key, value, scores=scores, scale=0.3)
        fused = kernel.window_attention(query, key, value, scores=scores, scale=0.3, masked=True)
    assert torch.allclose(ours, plain, atol=1e-6) and torch.allclose(ours, fused, atol=1e-6)


@pytest.mark.parametrize("gradients", [False, True])
def test_no_weights_are_below_the_normal_numbers(gradients: bool) -> None:
    """Products with such numbers take several times as long. Where scores differ much, tokens apart mix all the same."""
    plan = Windows((14, 14), (7, 7), (3, 3))
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 4, 2, 49, 8)
    scores = windows.regions(plan, query)[None]
    for scale, mixes in ((1.0, False), (30.0, True)):
        with torch.set_grad_enabled(gradients):
            weights = windows._weights(query, key, scores, scale)
        wanted = windows._weights(query.double(), key.double(), scores.double(), scale)
        assert torch.allclose(weights.double(), wanted, atol=1e-5)
        assert ((weights == 0) | (weights >= torch.finfo(torch.float32).tiny)).all()
        assert bool((weights[(scores == APART).expand_as(weights)] > 1e-3).any()) == mixes


def test_products_of_few_inputs() -> None:
    torch.manual_seed(0)
    up, down = kernel.Linear(24, 96), kernel.Linear(96, 24)
    wide = kernel.Linear(512, 8)
    x = torch.randn(2, 1500, 24)
    assert not is_narrow(x, up)  # gradients are on
    with torch.no_grad():
        assert is_narrow(x, up) and not is_narrow(x[:, :600], up) and not is_narrow(torch.randn(3000, 512), wide)
        assert not is_narrow(x.double(), kernel.Linear(24, 96).double()) and not is_narrow(x.transpose(0, 1), up)
        assert torch.allclose(up(x), functional.linear(x, up.weight, up.bias), atol=1e-6)
        expected = down(functional.gelu(functional.linear(x, up.weight, up.bias)))
        assert torch.allclose(kernel.mlp(x, up, "gelu", down), expected, atol=1e-6)
        up.register_forward_hook(lambda module, inputs, output: output * 2)
        assert not is_narrow(x, up)
        assert torch.allclose(up(x), 2 * functional.linear(x, up.weight, up.bias), atol=1e-6)
    with torch.no_grad(), kernel.plain():
        assert not is_narrow(x, down)
