"""Attention in bfloat16 on tiles: as exact as torch's operator, whatever the sizes and the layout, and aside where it must be.

Bound: the mean difference from float64 is measured on torch's operator with the same numbers; ours must not be more than 1.1
times as large (it is 0.99 to 1.02 times as large, of at least a thousand results).
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo import kernel
from zoo.kernel import attention_tiles

needs_tiles = pytest.mark.skipif(attention_tiles.functions() is None, reason="no tiles in this processor, or no compiler")
SIZES = [
    (2, 3, 197, 197, 64),
    (1, 2, 64, 64, 128),
    (3, 1, 33, 33, 32),
    (1, 5, 16, 300, 96),
    (1, 1, 90, 31, 64),
    (1, 2, 32, 1, 256),
]
"""Examples, heads, tokens, key tokens, head size: whole blocks and their remainders."""


@pytest.fixture
def everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """No attention is too small."""
    monkeypatch.setattr(attention_tiles, "WORK", 1)


def inputs(sizes: tuple[int, ...], layout: str = "as projected") -> list[Tensor]:
    torch.manual_seed(sum(sizes))
    examples, heads, tokens, keys, size = sizes
    made = [torch.randn(examples, heads, count, size).bfloat16() for count in (tokens, keys, keys)]
    if layout == "as projected":
        return [each.transpose(1, 2).contiguous().transpose(1, 2) for each in made]
    if layout == "columns of one":
        return [torch.cat([each, each], -1)[..., size:] for each in made]
    if layout == "repeated":
        return [each[:1].expand(examples, -1, -1, -1) for each in made]
    return made


def difference(y: Tensor, given: list[Tensor], causal: bool, scale: float | None = None) -> float:
    exact = F.scaled_dot_product_attention(*(each.double() for each in given), is_causal=causal, scale=scale)
    return float((y.double() - exact).abs().mean())


@needs_tiles
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("layout", ["as projected", "contiguous", "columns of one", "repeated"])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_as_exact_as_torchs_operator(everything: None, sizes: tuple[int, ...], layout: str, threads: int) -> None:
    given, before = inputs(sizes, layout), torch.get_num_threads()
    for causal in (False, True) if sizes[2] == sizes[3] else (False,):
        try:
            torch.set_num_threads(threads)
            y = attention_tiles.attention(*given, causal, sizes[-1] ** -0.5)
        finally:
            torch.set_num_threads(before)
        theirs = F.scaled_dot_product_attention(*given, is_causal=causal)
        assert y is not None and y.shape == theirs.shape and y.dtype == torch.bfloat16
        assert difference(y, given, causal) <= 1.1 * difference(theirs, given, causal) + 1e-6


@needs_tiles
@pytest.mark.parametrize("scale", [0.02, 1.0, 40.0])
def test_any_scale(everything: None, scale: float) -> None:
    given = inputs((1, 2, 70, 70, 64))
    y = kernel.attention(*given, scale=scale)
    theirs = F.scaled_dot_product_attention(*given, scale=scale)
    assert difference(y, given, False, scale) <= 1.1 * difference(theirs, given, False, scale) + 1e-6
    assert attention_tiles.attention(*given, False, -1.0) is None


@needs_tiles
def test_what_is_no_number_stays_with_its_token(everything: None) -> None:
    query, key, value = inputs((1, 2, 70, 70, 64))
    expected = attention_tiles.attention(query, key, value, True, 0.125)
    query[0, 0, 5, 3], value[0, 1, 60, 2] = float("nan"), float("inf")
    y = attention_tiles.attention(query, key, value, True, 0.125)
    assert y is not None and expected is not None
    assert y[0, 0, 5].isnan().all() and not y[0, 1, 60:, 2].isfinite().any()
    same = torch.ones_like(y, dtype=torch.bool)
    same[0, 0, 5], same[0, 1, 32:, 2] = False, False  # later values are multiplied by a weight of zero
    assert torch.equal(y[same], expected[same])


@needs_tiles
def test_a_token_does_not_depend_on_the_others(everything: None) -> None:
    query, key, value = inputs((2, 3, 100, 100, 64))
    whole = attention_tiles.attention(query, key, value, False, 0.125)
    some = attention_tiles.attention(query[:, :, 32:81], key, value, False, 0.125)
    assert whole is not None and some is not None and torch.equal(whole[:, :, 32:81], some)


@needs_tiles
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_taken_with_and_without_gradients(monkeypatch: pytest.MonkeyPatch, causal: bool, autocast: bool) -> None:
    given = inputs((2, 4, 128, 128, 64))
    given = [each.float() for each in given] if autocast else given
    calls, inner = [], attention_tiles.functions().zoo_tiles_attention
    monkeypatch.setattr(attention_tiles.functions(), "zoo_tiles_attention", lambda *sizes: calls.append(1) or inner(*sizes))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = kernel.attention(*given, causal=causal)
        learned = [each.detach().requires_grad_() for each in given]
        ours = kernel.attention(*learned, causal=causal)
        found = torch.autograd.grad(ours.float().sum(), learned)
        with kernel.plain():
            theirs = kernel.attention(*learned, causal=causal)
            expected = torch.autograd.grad(theirs.float().sum(), learned)
    assert len(calls) == 2 and torch.equal(y, ours) and y.dtype == torch.bfloat16
    assert (ours - theirs).abs().max() <= 0.02 * theirs.abs().max()
    for mine, other in zip(found, expected, strict=True):
        assert (mine - other).abs().max() <= 0.03 * other.abs().max()


@needs_tiles
@pytest.mark.parametrize(
    "case",
    [
        "float32",
        "mask",
        "dropout",
        "groups",
        "odd size",
        "one token",
        "many keys",
        "small",
        "plain",
        "learned",
        "other values",
        "turned",
    ],
)
def test_where_it_steps_aside(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    sizes = {"odd size": (1, 4, 100, 100, 40), "one token": (8, 8, 1, 999, 64), "many keys": (1, 1, 16, 2049, 64)}
    query, key, value = inputs(sizes.get(case, (1, 1, 16, 16, 64) if case == "small" else (1, 4, 100, 100, 64)))
    monkeypatch.setattr(attention_tiles.functions(), "zoo_tiles_attention", lambda *sizes: pytest.fail("taken"))
    options: dict[str, object] = {}
    if case == "float32":
        query, key, value = query.float(), key.float(), value.float()
    elif case == "mask":
        options["mask"] = torch.ones(100, 100, dtype=torch.bool).tril()
    elif case == "dropout":
        options["dropout"] = 0.5
    elif case == "groups":
        key, value = key[:, :2], value[:, :2]
    elif case == "other values":
        value = value[..., :32]
    elif case == "turned":
        key = key.transpose(2, 3).contiguous().transpose(2, 3)
    elif case == "learned":  # one of them alone: torch's operator and its backward pass
        key = key[:, :, :90].requires_grad_()
        value = value[:, :, :90]
    if case == "plain":
        with kernel.plain():
            y = kernel.attention(query, key, value)
    else:
        y = kernel.attention(query, key, value, **options)
    assert y.shape == (*query.shape[:3], value.shape[-1])


def test_done_without_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_tiles, "functions", lambda: None)
    given = inputs((2, 4, 128, 128, 64))
    assert torch.equal(kernel.attention(*given), F.scaled_dot_product_attention(*given))
