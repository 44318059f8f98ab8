"""Experts' products: prepared weights that are never stale, gradients of gradients, and every way against plain calls."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo import kernel
from zoo.config.base import Slot
from zoo.kernel.experts import Layer, expert_feedforward, through_experts
from zoo.kernel.experts_learned import Gated, Gather, Linear, Mixed, mixed
from zoo.kernel.experts_product import FEW, Kept, plainly, product
from zoo.kernel.packed import AVAILABLE
from zoo.registry import make

SIZES = [5, 0, 9, 1]


def drawn(*shape: int, seed: int = 0, dtype: Any = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_feedforward_of_each_expert(gated: bool, biased: bool, dtype: Any) -> None:
    """With gradients, without, with weights kept, and where nobody may read the numbers of rows."""
    counts, rows = torch.tensor(SIZES), drawn(17, 8, dtype=dtype)  # two rows behind are nobody's
    up, down, gate = (
        Layer(drawn(4, *shape, seed=number, dtype=dtype) / 3, drawn(4, shape[0], seed=9, dtype=dtype) if biased else None)
        for number, shape in enumerate(((12, 8), (8, 12), (12, 8)))
    )

    def one(expert: int, x: Tensor) -> Tensor:
        first = F.linear(
            x, (gate if gated else up).weight[expert], None if not biased else (gate if gated else up).bias[expert]
        )
        hidden = F.silu(first) * F.linear(x, up.weight[expert], up.bias[expert] if biased else None) if gated else F.silu(first)
        return F.linear(hidden, down.weight[expert], down.bias[expert] if biased else None)

    wanted = torch.cat([one(expert, part) for expert, part in enumerate(rows[:15].split(SIZES))])
    given: tuple[Any, ...] = (rows, counts, up, "silu", down, gate if gated else None)
    found = [expert_feedforward(*given)]
    with torch.no_grad():
        found += [expert_feedforward(*given, 0.0, kept) for kept in [Kept()] for _ in range(3)]
        with kernel.plain():
            found.append(expert_feedforward(*given))
    torch._dynamo.reset()  # of the cases before, each of which is compiled
    compiled = torch.compile(
        lambda rows, counts: expert_feedforward(rows, counts, *given[2:]), backend="aot_eager", fullgraph=True
    )
    found.append(compiled(rows, counts))
    bound = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 0.1}[dtype]
    for answer in found:
        assert (answer[:15] - wanted).abs().max() <= bound


def test_gradients_and_gradients_of_gradients() -> None:
    counts, rows = torch.tensor(SIZES), drawn(15, 4, dtype=torch.float64).requires_grad_()
    up, down = (drawn(4, *shape, seed=1, dtype=torch.float64).requires_grad_() for shape in ((3, 4), (4, 3)))

    def run(rows: Tensor, up: Tensor, down: Tensor) -> Tensor:
        return expert_feedforward(rows, counts, Layer(up), "tanh", Layer(down))

    assert torch.autograd.gradcheck(run, (rows, up, down)) and torch.autograd.gradgradcheck(run, (rows, up, down))


@pytest.mark.parametrize("sizes", [[5, 0, 90, 1], [0, 0, 0, 0], [0, 70, 0, 0], [1, 0, 0, 0], [64, 65, 16, 12]], ids=str)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape", [(16, 8), (8, 16), (5, 3)])
def test_gradients_of_a_layer_are_those_of_torch(sizes: list[int], biased: bool, shape: tuple[int, int]) -> None:
    """With experts that nobody chose, one that all chose, one row and none; two rows behind are nobody's."""
    weight, bias = drawn(4, *shape, seed=1, dtype=torch.float64), drawn(4, shape[0], seed=2, dtype=torch.float64)
    rows = drawn(sum(sizes) + 2, shape[1], dtype=torch.float64)
    inputs = [each.requires_grad_() for each in ([rows, weight, bias] if biased else [rows, weight])]
    direction, found = drawn(sum(sizes), shape[0], seed=3, dtype=torch.float64), []
    for way in (Linear.apply, plainly):
        y = way(rows, sizes, weight, bias if biased else None)
        gradients = torch.autograd.grad(y, inputs, direction, create_graph=True, materialize_grads=True)
        again = torch.autograd.grad(sum(each.square().sum() for each in gradients), inputs, materialize_grads=True)
        plain = torch.autograd.grad(
            way(rows, sizes, weight, bias if biased else None), inputs, direction, materialize_grads=True
        )
        found.append([y, *gradients, *again, *plain])
    for mine, other in zip(*found):
        assert mine.shape == other.shape and torch.allclose(mine, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sizes", [[5, 0, 90, 1], [0, 0, 0, 0], [0, 70, 0, 0], [1, 0, 0, 0], [64, 65, 16, 12]], ids=str)
def test_gradients_of_gated_experts_are_those_of_torch(sizes: list[int]) -> None:
    """Of all inputs, then of each alone, and gradients of gradients."""
    rows, up, down, gate = inputs = [
        drawn(*shape, seed=seed, dtype=torch.float64).requires_grad_()
        for seed, shape in enumerate([(sum(sizes) + 2, 8), (4, 16, 8), (4, 8, 16), (4, 16, 8)])
    ]

    def plain(rows: Tensor, sizes: list[int], name: str, up: Tensor, down: Tensor, gate: Tensor) -> Tensor:
        return plainly(F.silu(plainly(rows, sizes, gate, None)) * plainly(rows, sizes, up, None), sizes, down, None)

    direction, found = drawn(sum(sizes), 8, seed=5, dtype=torch.float64), []
    for way in (Gated.apply, plain):
        y = way(rows, sizes, "silu", up, down, gate)
        gradients = torch.autograd.grad(y, inputs, direction, create_graph=True, materialize_grads=True)
        again = torch.autograd.grad(sum(each.square().sum() for each in gradients), inputs, materialize_grads=True)
        y = way(rows, sizes, "silu", up, down, gate)
        once = torch.autograd.grad(y, inputs, direction, materialize_grads=True)
        found.append([y, *gradients, *again, *once])
        for each in inputs:
            alone = [other if other is each else other.detach() for other in inputs]
            y = way(alone[0], sizes, "silu", *alone[1:])
            found[-1] += torch.autograd.grad(y, each, direction, materialize_grads=True)
    for mine, other in zip(*found):
        assert mine.shape == other.shape and torch.allclose(mine, other, rtol=1e-12, atol=1e-9)


def test_only_what_learns_has_a_gradient() -> None:
    rows, weight, bias = drawn(15, 4), drawn(4, 8, 4, seed=1), drawn(4, 8, seed=2)
    for learning in (rows, weight, bias):
        learning.requires_grad_()
        (found,) = torch.autograd.grad(Linear.apply(rows, SIZES, weight, bias).sum(), learning)
        (wanted,) = torch.autograd.grad(plainly(rows, SIZES, weight, bias).sum(), learning)
        learning.requires_grad_(False)
        assert (found - wanted).abs().max() < 1e-4


def test_rows_are_gathered_both_ways() -> None:
    x, chosen = drawn(5, 3, dtype=torch.float64).requires_grad_(), torch.tensor([[0, 1], [2, 0], [3, 1], [1, 2], [2, 3]])
    order = chosen.flatten().argsort(stable=True)
    assert torch.equal(Gather.apply(x, order // 2, order.argsort()), x[order // 2])
    run = lambda x: Gather.apply(x, order // 2, order.argsort())  # noqa: E731
    assert torch.autograd.gradcheck(run, (x,)) and torch.autograd.gradgradcheck(run, (x,))


@pytest.mark.parametrize("choices", [1, 2, 3])
@pytest.mark.parametrize("sizes", [(0, 4), (1, 1), (7, 33), (100, 64)], ids=str)
def test_rows_are_mixed_and_their_gradients_equal_float64(choices: int, sizes: tuple[int, int]) -> None:
    tokens, width = sizes
    place = drawn(tokens * choices).argsort().view(tokens, choices)
    given = [drawn(tokens * choices, width, seed=1), drawn(tokens, choices, seed=2)]
    direction, found = drawn(width, tokens, seed=3).t(), []
    for way, dtype in ((Mixed.apply, torch.float32), (Mixed.apply, torch.float64), (mixed, torch.float64)):
        rows, weights = (each.to(dtype).requires_grad_() for each in given)
        y = way(rows, place, weights)
        found.append([y, *torch.autograd.grad(y, (rows, weights), direction.to(dtype), materialize_grads=True)])
    for mine, fallback, other in zip(*found):
        assert torch.allclose(fallback, other, rtol=0, atol=1e-12)
        assert torch.allclose(mine.double(), other, rtol=0, atol=1e-6 * width**0.5)


def test_gradients_of_gradients_of_mixed_rows() -> None:
    place, weights = torch.tensor([[3, 0], [1, 5], [2, 4]]), drawn(3, 2, dtype=torch.float64).requires_grad_()
    rows = drawn(6, 4, seed=1, dtype=torch.float64).requires_grad_()
    run = lambda rows, weights: Mixed.apply(rows, place, weights)  # noqa: E731
    assert torch.autograd.gradcheck(run, (rows, weights)) and torch.autograd.gradgradcheck(run, (rows, weights))
    rows, weights = (each.detach().float().requires_grad_() for each in (rows, weights))
    (once,) = torch.autograd.grad(Mixed.apply(rows, place, weights).square().sum(), rows, create_graph=True)
    assert once.requires_grad


@pytest.mark.parametrize("rows", [0, 1, 12, FEW, FEW + 1, 96])
@pytest.mark.parametrize("shape", [(48, 40), (40, 48), (7, 5)])
def test_products_in_pieces(rows: int, shape: tuple[int, int]) -> None:
    x, weight, bias = (drawn(*size, seed=seed) for seed, size in enumerate(((rows, shape[1]), shape, (shape[0],))))
    y = torch.empty(rows, shape[0])
    assert product(x, weight, bias, y) is y and torch.allclose(y, F.linear(x, weight, bias), atol=1e-5)
    assert torch.allclose(product(x, weight.t().contiguous().t()), F.linear(x, weight), atol=1e-5)


@pytest.mark.parametrize("tokens", [0, 1, 3, 300])
@pytest.mark.parametrize("activation", ["silu", "gelu-tanh"])
def test_a_block_and_its_gradients_equal_float64(tokens: int, activation: str) -> None:
    """In training and without gradients; in the last case all tokens go to two of the experts."""
    module = part(64, 96, activation)
    if tokens == 300:
        module.router.weight.data[0] = 0
    exact, x = copy.deepcopy(module).double(), drawn(1, tokens, 64, seed=7)
    x[..., 0] = 3.0
    found = []
    for each, given in ((module, x), (exact, x.double())):
        given = given.clone().requires_grad_()
        y = each(given)
        gradients = torch.autograd.grad(y.square().sum(), [given, *each.parameters()], materialize_grads=True)
        with torch.no_grad():
            found.append([y, each(given), *gradients])
    for mine, other in zip(*found):
        assert (mine - other).abs().sum() <= 2e-5 * other.abs().sum()


def test_rows_go_back_to_their_tokens() -> None:
    x, chosen = drawn(6, 3), torch.tensor([[0, 1], [2, 0], [3, 1], [1, 2], [2, 3], [0, 3]])
    weights = drawn(6, 2, seed=1)
    seen: list[Tensor] = []

    def compute(rows: Tensor, counts: Tensor) -> Tensor:
        seen.append(counts)
        return rows * (1 + torch.arange(4).repeat_interleave(counts))[:, None]

    found = through_experts(x, chosen, weights, 4, compute)
    assert seen[0].tolist() == [3, 3, 3, 3]
    assert (found - x * ((1 + chosen) * weights).sum(1, keepdim=True)).abs().max() < 1e-6
    none = torch.where(chosen == 3, 4, chosen.where(chosen != 2, 4))  # two choices are of nobody
    found = through_experts(x, none, weights, 4, lambda rows, counts: rows[: counts.sum()] * 2, full=False)
    assert (found - 2 * x * (weights * (none < 4)).sum(1, keepdim=True)).abs().max() < 1e-6


def part(width: int = 512, hidden: int = 512, activation: str = "silu") -> Any:
    config = {
        "type": "mixture-of-experts",
        "experts": 3,
        "top_k": 2,
        "expert": {"type": "gated", "hidden": hidden, "bias": False, "activation": activation},
    }
    module = make(Slot("feedforward").validate(config), width=width).eval()
    for number, parameter in enumerate(module.parameters()):
        parameter.data = drawn(*parameter.shape, seed=number) * parameter.shape[-1] ** -0.5
    return module


def kept(module: Any) -> Any:
    return module.experts.prepared.packed


@pytest.mark.skipif(not AVAILABLE, reason="this torch has no oneDNN")
@torch.no_grad()
def test_weights_are_kept_from_the_second_call_on_and_never_stale() -> None:
    module, x = part(), drawn(2, 120, 512, seed=7)
    with kernel.plain():
        wanted = module(x)
    assert kept(module) is None
    for tokens in (120, 120, 70, 7, 110):  # rows may be as many as they are
        assert (module(x[:, :tokens]) - wanted[:, :tokens]).abs().max() < 1e-4
    assert kept(module) is not None
    for change in (
        lambda weight: weight.mul_(1.5),
        lambda weight: weight.data.mul_(0.5),
        lambda weight: weight[1].zero_(),
    ):
        change(module.experts.up.weight)
        with kernel.plain():
            wanted = module(x)
        for _ in range(3):
            assert (module(x) - wanted).abs().max() < 1e-4
    copied = copy.deepcopy(module)
    assert kept(copied) is None and (copied(x) - wanted).abs().max() < 1e-4
    for free in (module.train, lambda: module.eval().to(torch.float32), lambda: module.load_state_dict(copied.state_dict())):
        module.eval()
        module(x), module(x)
        assert kept(module) is not None
        free()
        assert kept(module) is None


@pytest.mark.skipif(not AVAILABLE, reason="this torch has no oneDNN")
def test_small_weights_and_gradients_keep_nothing() -> None:
    small, large, x = part(64, 64), part(), drawn(1, 200, 512)
    with torch.no_grad():
        small(x[..., :64]), small(x[..., :64])
    large(x), large(x)
    assert kept(small) is None and kept(large) is None
    with torch.no_grad():
        large.double()(x.double()), large(x.double())
    assert kept(large) is None
