"""Few tokens through their experts in one call: equal to float64 whatever the sizes, never stale, and only where it is known.

Bounds: against float64 the largest error of what is tested is 4.7e-7 of the largest value, that of torch 2.2e-7 (measured).
Both in float32, of a whole mixture, differ by up to 1.1e-6, and weights that are stale by a tenth and more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from kernel_helpers import close
from torch import Tensor

from zoo import kernel
from zoo.config.base import Slot
from zoo.kernel import experts_few_rows, experts_product
from zoo.kernel.activation import IN_C, activation
from zoo.kernel.packed import Source
from zoo.registry import make

needs_vectors = pytest.mark.skipif(experts_few_rows.functions() is None, reason="no AVX-512 in this processor, or no compiler")
BOUND, WHOLE = 1e-6, 5e-6
EXPERTS = 4


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reference(x: Tensor, chosen: Tensor, weights: Tensor, layers: list[Any], biases: list[Any], name: str) -> Tensor:
    """The same in float64, a token and a choice at a time."""
    layers, biases = ([None if each is None else each.double() for each in some] for some in (layers, biases))
    up, down, gate = (*layers, None)[:3]
    first, last, other = (*biases, None)[:3]

    def own(many: Tensor | None, expert: int) -> Tensor | None:
        return None if many is None else many[expert]

    def one(row: Tensor, expert: int) -> Tensor:
        above = F.linear(row, up[expert], own(first, expert))
        if gate is None:
            return F.linear(activation(name)(above), down[expert], own(last, expert))
        return F.linear(
            activation(name)(F.linear(row, gate[expert], own(other, expert))) * above, down[expert], own(last, expert)
        )

    nothing = torch.zeros(down.shape[1], dtype=torch.float64)
    found = [
        sum((share * one(row, e) if e < EXPERTS else nothing for share, e in zip(shares, mine)), nothing)
        for row, shares, mine in zip(x.double(), weights.double(), chosen.tolist())
    ]
    return torch.stack(found)


def check(tokens: int, choices: int, sizes: tuple[int, int, int], gated: bool = True, biased: bool = False, name: str = "silu",
          chosen: Tensor | None = None) -> None:  # fmt: skip
    inputs, hidden, outputs = sizes
    shapes = [(hidden, inputs), (outputs, hidden), (hidden, inputs)][: 2 + gated]
    layers = [drawn(EXPERTS, *shape, seed=seed) * shape[1] ** -0.5 for seed, shape in enumerate(shapes)]
    biases = [drawn(EXPERTS, shape[0], seed=5 + seed) if biased else None for seed, shape in enumerate(shapes)]
    if chosen is None:
        chosen = drawn(tokens, EXPERTS, seed=8).topk(choices).indices
    x, weights = drawn(tokens, inputs, seed=9), drawn(tokens, chosen.shape[1], seed=10).softmax(-1)
    wanted = reference(x, chosen, weights, layers, biases, name)
    panels = [experts_few_rows.Panels(layer) for layer in layers]
    found = experts_few_rows.mixture(x, chosen, weights, panels, biases, name, [Source(layer) for layer in layers])
    assert found is not None and found.dtype == torch.float32
    close(found.double(), wanted, BOUND)


@needs_vectors
@pytest.mark.parametrize("tokens", [1, 2, 7, 16, 33, 70])
@pytest.mark.parametrize("choices", [1, 2, 4])
def test_any_number_of_rows(tokens: int, choices: int) -> None:
    check(tokens, choices, (64, 96, 48))


@needs_vectors
@pytest.mark.parametrize("sizes", [(1, 1, 1), (37, 49, 5), (64, 15, 100), (130, 200, 47)], ids=str)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_any_sizes(sizes: tuple[int, int, int], gated: bool, biased: bool) -> None:
    check(20, 2, sizes, gated, biased)


@needs_vectors
@pytest.mark.parametrize("name", IN_C)
@pytest.mark.parametrize("gated", [False, True])
def test_each_activation(name: str, gated: bool) -> None:
    check(11, 2, (40, 70, 40), gated, biased=True, name=name)


@needs_vectors
@pytest.mark.parametrize("chosen", [[2, 2], [0, 3], [1, EXPERTS], [EXPERTS, EXPERTS]], ids=str)
def test_some_experts_have_all_rows_and_some_choices_are_of_none(chosen: list[int]) -> None:
    check(150, 2, (40, 60, 40), chosen=torch.tensor(chosen).expand(150, 2))


@needs_vectors
def test_rows_of_any_layout_and_what_is_no_number() -> None:
    """What is not a number, or infinite, stays with the tokens that meet it."""
    layers = [drawn(EXPERTS, *shape, seed=seed) for seed, shape in enumerate([(50, 40), (40, 50), (50, 40)])]
    panels, chosen = [experts_few_rows.Panels(layer) for layer in layers], torch.arange(12).view(6, 2) % EXPERTS
    x, weights = drawn(40, 12)[:, ::2].T, torch.full((2, 6), 0.5).T
    plain = experts_few_rows.mixture(x.contiguous(), chosen, weights, panels, [None] * 3, "silu", [])
    assert torch.equal(experts_few_rows.mixture(x, chosen, weights, panels, [None] * 3, "silu", []), plain)  # type: ignore[arg-type]
    for value in (float("nan"), float("inf")):
        other = x.clone()
        other[3, 7] = value
        found = experts_few_rows.mixture(other, chosen, weights, panels, [None] * 3, "silu", [])
        assert found is not None and plain is not None
        assert torch.equal(found[[0, 1, 2, 4, 5]], plain[[0, 1, 2, 4, 5]]) and not found[3].isfinite().any()


def part(name: str = "silu", bias: bool = False, **more: Any) -> Any:
    expert = {"type": "gated", "hidden": 1024, "bias": bias, "activation": name}
    config = {"type": "mixture-of-experts", "experts": EXPERTS, "top_k": 2, "expert": expert, **more}
    module = make(Slot("feedforward").validate(config), width=256).eval()
    for number, parameter in enumerate(module.parameters()):
        parameter.data = drawn(*parameter.shape, seed=number) * parameter.shape[-1] ** -0.5
    return module


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What came out of each call."""
    found: list[Any] = []
    way: Callable[..., Any] = experts_few_rows.mixture
    monkeypatch.setattr(experts_product, "mixture", lambda *given: found.append(way(*given)) or found[-1])
    return found


@needs_vectors
def test_taken_without_gradients_once_weights_are_kept(calls: list[Any]) -> None:
    module, x = part(bias=True, capacity=30, shared={"type": "mlp", "hidden": 32}), drawn(2, 32, 256, seed=20)
    wanted = module(x).detach()
    for tokens in (32, 32, 32, 1, 7):
        with torch.no_grad():
            kept = module.experts.prepared.packed is not None
            close(module(x[:, :tokens]), wanted[:, :tokens], WHOLE)
            assert kept is bool(calls)
    assert len(calls) == 3 and all(each is not None for each in calls)
    calls.clear()
    module(x)  # with gradients
    with torch.no_grad():
        with kernel.plain():
            module(x)
        with torch.autocast("cpu", torch.bfloat16):
            module(x)
        torch._dynamo.reset()
        close(torch.compile(module, backend="eager")(x), wanted, WHOLE)
        handle = module.experts.register_forward_hook(lambda *given: given[-1] * 2)
        module(x), module(x)
        handle.remove()
        part("tanh")(x), module(torch.cat([x] * 10, 1))
        module.double()(x.double())
    assert not calls


@needs_vectors
@pytest.mark.parametrize("name", ["up", "down", "gate"])
@torch.no_grad()
def test_a_row_written_through_data_is_seen(name: str, calls: list[Any]) -> None:
    module, x = part(), drawn(1, 40, 256, seed=20)
    weight = module.experts.get_submodule(name).weight
    for expert, row in ((0, 0), (1, 77), (EXPERTS - 1, weight.shape[1] - 1)):
        module(x), module(x), module(x)
        assert calls[-1] is not None
        weight.data[expert, row] += 1.0
        with kernel.plain():
            wanted = module(x)
        close(module(x), wanted, WHOLE)
        assert calls[-1] is None
    module(x), module(x)
    before = len(calls)
    weight.mul_(1.5)  # in any other way, before a call
    with kernel.plain():
        wanted = module(x)
    close(module(x), wanted, WHOLE)
    assert len(calls) == before


@needs_vectors
@torch.no_grad()
def test_weights_are_compared_once_where_calls_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x, compared = part(), drawn(1, 1, 256), []
    way: Callable[..., Any] = experts_few_rows.mixture
    monkeypatch.setattr(experts_product, "mixture", lambda *given: compared.append(len(given[-1])) or way(*given))
    for _ in range(3):
        module(x)
    assert module(x[:, :0]).shape == (1, 0, 256)
    for _ in range(2):
        with kernel.repeated():
            module(x), module(x), module(x)
    assert compared == [3, 3, 0, 0, 3, 0, 0]


@needs_vectors
@torch.no_grad()
def test_several_threads_may_call_at_once() -> None:
    module, inputs = part(), [drawn(1, tokens, 256, seed=tokens) for tokens in (20, 40, 60)]
    for _ in range(3):
        wanted = [module(x) for x in inputs]
    found: list[bool] = []

    def run(x: Tensor, y: Tensor) -> None:
        with torch.no_grad():
            found.extend(torch.equal(module(x), y) for _ in range(20))

    threads = [threading.Thread(target=run, args=each) for each in zip(inputs, wanted)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(found) == 60 and all(found)
