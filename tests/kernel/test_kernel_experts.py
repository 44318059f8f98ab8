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
from zoo.kernel.experts import Kept, Layer, expert_feedforward, through_experts
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


def part(width: int = 512, hidden: int = 512) -> Any:
    config = {
        "type": "mixture-of-experts",
        "experts": 3,
        "top_k": 2,
        "expert": {"type": "gated", "hidden": hidden, "bias": False},
    }
    module = make(Slot("feedforward").validate(config), width=width).eval()
    for number, parameter in enumerate(module.parameters()):
        parameter.data = drawn(*parameter.shape, seed=number) * parameter.shape[-1] ** -0.5
    return module


def kept(module: Any) -> Any:
    return module.experts.__dict__["kept"].packed


@pytest.mark.skipif(not AVAILABLE, reason="this torch has no oneDNN")
@torch.no_grad()
def test_weights_are_kept_from_the_second_call_on_and_never_stale() -> None:
    module, x = part(), drawn(2, 20, 512, seed=7)
    with kernel.plain():
        wanted = module(x)
    assert kept(module) is None
    for tokens in (20, 20, 7, 13):  # rows may be as many as they are
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
    small, large, x = part(64, 64), part(), drawn(1, 9, 512)
    with torch.no_grad():
        small(x[..., :64]), small(x[..., :64])
    large(x), large(x)
    assert kept(small) is None and kept(large) is None
    with torch.no_grad():
        large.double()(x.double()), large(x.double())
    assert kept(large) is None
