"""activation(gate) * up and its backward pass as one operation each equal float64, and are torch's where nothing is compiled.

Bounds: against float64 the largest error of values and gradients is 8.2e-7 of the largest, torch's 4.7e-7 (measured).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_helpers import close
from torch import Tensor

from zoo import kernel
from zoo.kernel.activation import ACTIVATIONS, IN_C, activation
from zoo.kernel.gated_activation import functions, gated, gated_back

needs_vectors = pytest.mark.skipif(functions() is None, reason="no AVX-512 in this processor, or no compiler")
BOUND = 2e-6


def reference(name: str, gate: Tensor, up: Tensor, back: Tensor) -> tuple[Tensor, ...]:
    """What comes out, and the gradients of gate and up."""
    first, second = (each.clone().requires_grad_() for each in (gate, up))
    hidden = activation(name)(first) * second
    return (hidden.detach(), *torch.autograd.grad(hidden, (first, second), back))


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (3, 5), (1, 16), (33, 31), (200, 100)], ids=str)
def test_values_and_gradients_equal_float64(name: str, shape: tuple[int, int]) -> None:
    for spread in (0.1, 1.0, 8.0):
        gate, up, back, *room = torch.randn(7, *shape)
        gate = gate * spread
        wanted = reference(name, gate.double(), up.double(), back.double())
        for found, true in zip(gated_back(name, gate, up, back, room[1:]), wanted, strict=True):
            assert found.numel() == 0 or close(found.double(), true, BOUND) is None
        assert gated(name, gate, up, room[0]) is room[0] and (
            not room[0].numel() or close(room[0].double(), wanted[0], BOUND) is None
        )


@needs_vectors
@pytest.mark.parametrize("name", IN_C)
def test_large_numbers_and_none_are_as_in_torch(name: str) -> None:
    special = torch.tensor([0.0, -0.0, 1e-30, 40.0, -40.0, 1e10, -1e10, float("nan"), float("inf"), -float("inf")])
    gate, up, back = special.repeat(2), torch.ones(20), torch.ones(20)
    found, wanted = gated_back(name, gate, up, back, list(torch.empty(3, 20))), reference(name, gate, up, back)
    for mine, true in zip(found, wanted, strict=True):
        known = true.isfinite()
        assert torch.equal(mine.isfinite(), known) and torch.equal(mine.isnan()[7::10], true.isnan()[7::10])
        assert torch.allclose(mine[known], true[known], rtol=1e-6, atol=1e-27)


@needs_vectors
def test_only_what_is_known_is_computed_here() -> None:
    gate, up, back, *room = torch.randn(6, 8, 48)

    def here(*given: Any) -> bool:
        room[0].fill_(7.0)
        return not bool((gated_back(*given, room)[0] - room[0]).any())

    assert here("silu", gate, up, back)
    assert not here("tanh", gate, up, back) and not here("silu", gate.t().contiguous().t(), up, back)
    with kernel.plain():
        assert not here("silu", gate, up, back)
    doubles = [each.double() for each in (gate, up, back)]
    found = gated_back("silu", *doubles, [each.double() for each in room])
    assert all(torch.equal(*pair) for pair in zip(found, reference("silu", *doubles)))
