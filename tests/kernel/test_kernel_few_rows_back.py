"""Products of few rows with a matrix that is read once equal torch's, and are torch's where they are not known.

Bounds: sums of so many normal numbers differ from float64 by up to 2.9e-6 times the root of their number, torch's by 1.8e-6.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from zoo.kernel import few_rows_back, tiles
from zoo.kernel.few_rows_back import MOST, matmul

BOUND = 5e-6
needs_vectors = pytest.mark.skipif(few_rows_back.functions() is None, reason="no AVX-512 in this processor, or no compiler")


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_rows_back, "NUMBERS", 1)


@needs_vectors
@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("rows", [1, 7, 8, 9, 17, MOST])
@pytest.mark.parametrize("columns", [1, 15, 16, 47, 48, 49, 200])
def test_equals_float64(rows: int, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "matmul", None)
    for inputs in (1, 2, 31, 32, 33, 63, 64, 65, 1000):
        x, matrix, room = (
            torch.randn(rows, inputs + 3)[:, 2:-1],
            torch.randn(inputs, columns),
            torch.full((rows + 2, columns), 7.0),
        )
        wanted = x.double() @ matrix.double()
        y = matmul(x, matrix, room[1:-1])
        for found in (y, matmul(x, matrix)):
            assert (found - wanted).abs().max() <= BOUND * inputs**0.5
        assert y.data_ptr() == room[1:].data_ptr() and bool((room[0] == 7).all() and (room[-1] == 7).all())


@needs_vectors
@pytest.mark.usefixtures("_small")
def test_more_threads_than_rows_of_the_matrix() -> None:
    x, matrix, threads = torch.randn(5, 2), torch.randn(2, 70), torch.get_num_threads()
    try:
        torch.set_num_threads(5)
        assert torch.allclose(matmul(x, matrix), x @ matrix, atol=1e-6)
    finally:
        torch.set_num_threads(threads)


@needs_vectors
@pytest.mark.usefixtures("_small")
def test_not_a_number_stays_in_its_row_or_column() -> None:
    x, matrix = torch.randn(9, 64), torch.randn(64, 100)
    x[2, 3], matrix[7, 1] = float("nan"), float("inf")
    found, wanted = matmul(x, matrix), x @ matrix
    assert torch.equal(found.isnan(), wanted.isnan()) and torch.equal(found.isinf(), wanted.isinf())


def test_all_else_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[Tensor] = []
    plain = tiles.matmul
    monkeypatch.setattr(tiles, "matmul", lambda *given: used.append(plain(*given)) or used[-1])
    x, matrix = torch.randn(MOST + 1, 512), torch.randn(512, 512)
    few, wide, square = x[:4], torch.empty(4, 600), matrix[:9, :9]
    cases = [(x, matrix, None), (x[:0], matrix, None), (few, matrix.t(), None), (few[:, :9], square, None)]
    cases += [(few.double(), matrix.double(), None), (few, matrix, wide[:, :512]), (few[:, ::2], matrix[::2], None)]
    for number, case in enumerate(cases):
        assert torch.allclose(matmul(*case), case[0] @ case[1], atol=1e-3) and len(used) == number + 1
