"""Products on the processor's tiles are as exact as torch's, differentiable, and step aside where they must.

Bounds: what a float32 product of n terms may differ from float64 by is measured beside each of them, on torch's own product of
the same numbers; ours must not differ by more than 1.2 times as much (it differs by 0.5 to 1.1 times as much).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from kernel_helpers import close
from torch import Tensor

from zoo import kernel
from zoo.kernel import compiled, tiles

needs_tiles = pytest.mark.skipif(tiles.functions() is None, reason="no tiles in this processor, or no compiler")
SIZES = [(512, 96, 200), (33, 70, 50), (1, 5, 33), (100, 31, 1000), (17, 2100, 40), (300, 260, 1600), (260, 33, 1700)]
"""Rows, columns, places of the sum: whole blocks and their remainders, one and several of what is held at a time."""


@pytest.fixture
def everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """No product is too small."""
    for name in ("ROWS", "ROWS_PREPARED", "COLUMNS", "WORK"):
        monkeypatch.setattr(tiles, name, 1)


def factors(rows: int, columns: int, sums: int, kind: str) -> tuple[Tensor, Tensor]:
    a, b = torch.randn(rows, sums), torch.randn(columns, sums)
    if kind == "positive":
        return a.abs(), b.abs()
    if kind == "of all sizes":
        return a * 2.0 ** torch.randint(-20, 20, (rows, 1)), b * 2.0 ** torch.randint(-20, 20, b.shape)
    return a, b


def differs(y: Tensor, a: Tensor, b: Tensor) -> float:
    """The mean difference from float64, in parts of what the terms come to without their signs."""
    exact, size = a.double() @ b.double().T, a.double().abs() @ b.double().abs().T
    return float(((y.double() - exact).abs() / size).mean())


@needs_tiles
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("kind", ["normal", "positive", "of all sizes"])
def test_as_exact_as_torchs_product(sizes: tuple[int, int, int], kind: str) -> None:
    a, b = factors(*sizes, kind)
    bound = 1.2 * differs(a @ b.T, a, b) + 3e-8
    ways = {
        "as it lies": tiles.multiply(a, b.T),
        "prepared": tiles.multiply(a, tiles.Weight(b)),
        "turned": tiles.multiply(a, b.T.contiguous()),
        "both turned": tiles.multiply(a.T.contiguous().T, b.T.contiguous()),
    }
    for name, y in ways.items():
        assert y is not None and differs(y, a, b) <= bound, name


@needs_tiles
@pytest.mark.parametrize("threads", [1, 3, 4])
def test_any_number_of_threads(threads: int) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for sizes in SIZES:
            a, b = factors(*sizes, "normal")
            turned = tiles.multiply(a.T.contiguous().T, b.T.contiguous())
            for y in (tiles.multiply(a, b.T), tiles.multiply(a, tiles.Weight(b)), turned):
                assert y is not None
                close(y, a @ b.T, 2e-5)
    finally:
        torch.set_num_threads(before)


@needs_tiles
def test_whole_numbers_and_single_terms_are_exact() -> None:
    a, b = (torch.randint(-64, 65, (size, 900)).float() for size in (70, 90))
    product = tiles.multiply(a, b.T)
    assert product is not None and torch.equal(product, a @ b.T)
    alone = tiles.multiply(torch.eye(900), b.T * 0.1)  # all 24 bits of each number come through
    assert alone is not None and torch.equal(alone, b.T * 0.1)
    bias = torch.randn(90)
    with_bias = tiles.multiply(torch.zeros(70, 900), b.T, bias)
    assert with_bias is not None and torch.equal(with_bias, bias.expand(70, -1))


@needs_tiles
def test_a_row_does_not_depend_on_the_others() -> None:
    a, b = factors(300, 130, 1600, "normal")
    whole = tiles.multiply(a, tiles.Weight(b))
    assert whole is not None
    for rows in (slice(0, 1), slice(7, 40), slice(250, 300)):
        for weight in (b.T, tiles.Weight(b)):
            some = tiles.multiply(a[rows].contiguous(), weight)
            assert some is not None and torch.equal(some, whole[rows])


@needs_tiles
@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan"), 3.39e38, 1e30])
@pytest.mark.parametrize("where", ["input", "weight"])
def test_numbers_out_of_range_are_torchs(everything: None, value: float, where: str) -> None:
    x, layer = torch.randn(200, 64), kernel.Linear(64, 96).eval()
    with torch.no_grad():
        if where == "input":
            x[3, 5] = value
            layer.weight.mul_(1e9 if value == 1e30 else 1)
        else:
            layer.weight[3, 5] = value
            x.mul_(1e9 if value == 1e30 else 1)
        expected = F.linear(x, layer.weight, layer.bias)
        for _ in range(4):  # as it lies, and prepared
            assert torch.allclose(layer(x), expected, rtol=1e-5, atol=1e-5, equal_nan=True)
    assert torch.equal(layer(x).isfinite(), expected.isfinite())


@needs_tiles
def test_tiny_numbers_are_torchs(everything: None) -> None:
    x, weight = torch.randn(200, 64) * 1e-20, torch.randn(96, 64) * 1e-18
    assert tiles.multiply(x, weight.T) is None
    assert torch.equal(kernel.linear(x, weight), F.linear(x, weight))
    assert tiles.multiply(x * 0, weight.T) is not None


@needs_tiles
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frozen", ["", "weight", "x"])
def test_gradients(everything: None, bias: bool, frozen: str) -> None:
    torch.manual_seed(3)
    x, layer = torch.randn(5, 50, 96, requires_grad=frozen != "x"), kernel.Linear(96, 70, bias)
    layer.weight.requires_grad_(frozen != "weight")
    wanted = [tensor for tensor in (x, *layer.parameters()) if tensor.requires_grad]
    direction = torch.randn(5, 50, 70)

    def found() -> list[Tensor]:
        y = layer(x)
        first = torch.autograd.grad((y * direction).sum(), wanted, retain_graph=True)
        again = torch.autograd.grad(y.square().sum(), wanted, create_graph=True)
        second = torch.autograd.grad(sum(each.square().sum() for each in again), wanted)
        return [y, *first, *second]

    ours = found()
    assert "Linear" in type(layer(x).grad_fn).__name__ or "View" in type(layer(x).grad_fn).__name__
    with kernel.plain():
        expected = found()
    for mine, theirs in zip(ours, expected, strict=True):
        assert (mine - theirs).abs().max() <= 2e-5 * theirs.abs().max()


@needs_tiles
def test_gradients_of_other_layouts(everything: None) -> None:
    x, weight = torch.randn(64, 200).T.requires_grad_(), torch.randn(64, 96).T.requires_grad_()
    gradient = torch.randn(96, 200).T
    ours = torch.autograd.grad(kernel.linear(x, weight), (x, weight), gradient)
    expanded = torch.autograd.grad(kernel.linear(x, weight).sum(), (x, weight))  # its gradient is one number, everywhere
    for mine, theirs in zip(ours, torch.autograd.grad(F.linear(x, weight), (x, weight), gradient)):
        close(mine, theirs, 2e-5)
    for mine, theirs in zip(expanded, torch.autograd.grad(F.linear(x, weight).sum(), (x, weight))):
        close(mine, theirs, 2e-5)
    for wrong in (weight[:, :63], torch.randn(96, 64, 1)):
        with pytest.raises(RuntimeError):
            kernel.linear(x, wrong)


@needs_tiles
def test_several_threads_of_python_at_once() -> None:
    jobs = [factors(200 + 30 * job, 96, 300, "normal") for job in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda job: [tiles.multiply(job[0], job[1].T) for _ in range(5)], jobs))
    for (a, b), products in zip(jobs, found):
        for y in products:
            assert y is not None
            close(y, a @ b.T, 2e-5)


@needs_tiles
def test_compiled_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = tmp_path / "zoo"
    ask = compiled.library.__wrapped__
    assert ask("few_rows", "-mavx512f") is not None
    (file,) = made.iterdir()
    assert file.suffix == ".so" and file.stat().st_mode & 0o077 == 0 and made.stat().st_mode & 0o077 == 0
    before = file.stat().st_mtime_ns
    assert ask("few_rows", "-mavx512f") is not None and file.stat().st_mtime_ns == before
    half = tmp_path / "other" / "zoo" / file.name
    half.parent.mkdir(parents=True, mode=0o700)
    half.write_bytes(b"half a file")
    half.chmod(0o600)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert ask("few_rows", "-mavx512f") is not None and half.stat().st_size > 1000  # made again
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert ask("few_rows", "-mavx512f") is not None  # only not kept
    assert [path.name for path in made.iterdir()] == [file.name]


@needs_tiles
@pytest.mark.parametrize("without", ["compiler", "feature", "threads", "permission"])
def test_done_without(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, without: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    option = "-mavx512f"
    if without == "compiler":
        monkeypatch.setenv("PATH", str(tmp_path))
    elif without == "feature":
        option = "-mavx1024"
    elif without == "threads":
        monkeypatch.setattr(compiled, "_threads", lambda: None)
    else:
        monkeypatch.setattr(compiled, "COMPILED", False)
    assert compiled.library.__wrapped__("few_rows", option) is None
    monkeypatch.setattr(tiles, "functions", lambda: None)
    x, weight = torch.randn(512, 256, requires_grad=True), torch.randn(256, 256)
    assert torch.equal(kernel.linear(x, weight), F.linear(x, weight))


ASKED = "from zoo.kernel import few_rows, tiles; print(tiles.functions(), few_rows.functions())"


def test_the_environment_can_forbid_it(run: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = run("-c", ASKED, ZOO_KERNEL="torch")
    assert done.stdout.strip() == "None None", done.stderr


def test_a_library_that_others_may_write_is_not_loaded(tmp_path: Path) -> None:
    file = tmp_path / "x.so"
    file.write_bytes(b"")
    os.chmod(tmp_path, 0o700)
    os.chmod(file, 0o600)
    assert compiled._ours(file)
    os.chmod(file, 0o666)
    assert not compiled._ours(file)
    os.chmod(file, 0o600)
    os.chmod(tmp_path, 0o777)
    assert not compiled._ours(file) and not compiled._ours(tmp_path / "missing")


def test_nothing_where_compiling_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiled, "_features", lambda: frozenset({"no-such-option", "avx512f"}))
    assert compiled.library.__wrapped__("few_rows", "-mno-such-option") is None
    assert compiled.library.__wrapped__("no-such-source", "-mavx512f") is None
    assert list(tmp_path.iterdir()) == []
