"""Products of few rows equal torch's, whatever the sizes, and are taken where a caller repeats itself."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from kernel_helpers import close
from torch import Tensor

from zoo import kernel
from zoo.kernel import few_rows
from zoo.kernel.packed import Prepared

needs_vectors = pytest.mark.skipif(few_rows.functions() is None, reason="no AVX-512 in this processor, or no compiler")
BOUND = 2e-6
"""Of the largest value: products of up to 1000 terms differ from float64 by 1e-6, torch's and ours alike."""


@needs_vectors
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8, 9, 16, 17, 33, 64])
@pytest.mark.parametrize("outputs", [1, 15, 16, 47, 48, 49, 200])
def test_equals_torchs_product(rows: int, outputs: int) -> None:
    for inputs in (1, 37, 1000):
        x, weight, bias = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(outputs)
        for own in (bias, None):
            close(few_rows.multiply(x, few_rows.Weight(weight), own), F.linear(x, weight, own), BOUND * inputs**0.5)


@needs_vectors
def test_other_layouts_and_places_to_write_to() -> None:
    x, weight, room = torch.randn(40, 6).T, torch.randn(40, 100).T, torch.full((6, 110), 7.0)
    y = few_rows.multiply(x, few_rows.Weight(weight), out=room[:, 5:105])
    close(y, x @ weight.T, 1e-5)
    assert y.data_ptr() == room[:, 5:].data_ptr() and bool((room[:, :5] == 7).all() and (room[:, 105:] == 7).all())


@needs_vectors
def test_not_a_number_stays_in_its_row() -> None:
    x, weight = torch.randn(5, 64), torch.randn(100, 64)
    x[2, 3], weight[7, 1] = float("nan"), float("inf")
    y = few_rows.multiply(x, few_rows.Weight(weight))
    assert torch.equal(y.isnan(), F.linear(x, weight).isnan()) and torch.equal(y.isinf(), F.linear(x, weight).isinf())


@needs_vectors
@torch.no_grad()
def test_one_row_is_worth_it_where_calls_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    multiply = few_rows.multiply

    def counted(x: Tensor, *others: object) -> Tensor:
        used.append(x.shape[0])
        return multiply(x, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(few_rows, "multiply", counted)
    layers = [kernel.Linear(512, 512).eval() for _ in range(3)]
    for rows in (1, 8):
        x = torch.randn(rows, 1, 512)

        def check(x: Tensor = x) -> None:
            close(layers[0](x), F.linear(x, layers[0].weight, layers[0].bias))
            for y, layer in zip(kernel.project(x, *layers[1:]), layers[1:], strict=True):
                close(y, F.linear(x, layer.weight, layer.bias))

        used.clear()
        for _ in range(4):
            check()
        assert bool(used) is (rows > 1)
        with kernel.repeated():
            for _ in range(4):
                check()
            many = len(used)
            assert many >= 2
            with torch.autocast("cpu", torch.bfloat16):
                assert layers[0](x).dtype == torch.bfloat16
            assert layers[0](x.double().float()).dtype == torch.float32 and len(used) == many + 1
        layers[0].weight.mul_(2)  # between two callers weights may change
        check()
        with kernel.repeated():
            for _ in range(3):
                check()


@needs_vectors
@torch.no_grad()
def test_a_table_is_laid_out_where_calls_repeat() -> None:
    table, bias = torch.randn(5000, 256), torch.randn(5000)
    for rows in (1, 3, 32):
        x, memory = torch.randn(rows, 256), Prepared()
        for _ in range(3):
            close(kernel.linear(x, table, bias, memory), F.linear(x, table, bias))
        assert memory.weight is None  # nobody said that it comes again and again
        for _ in range(2):
            with kernel.repeated():
                for _ in range(3):
                    close(kernel.linear(x, table, bias, memory), F.linear(x, table, bias))
            assert isinstance(memory.weight, few_rows.Weight)
            table.data.mul_(2)  # which the next caller sees


@needs_vectors
@torch.no_grad()
def test_plain_calls_among_repeated_ones_are_plain() -> None:
    layer, x = kernel.Linear(512, 512).eval(), torch.randn(1, 512)
    with kernel.repeated():
        for _ in range(3):
            fast = layer(x)
        with kernel.plain():
            assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
        assert torch.equal(layer(x), fast)
    assert not torch.equal(fast, F.linear(x, layer.weight, layer.bias))  # or this would say nothing
