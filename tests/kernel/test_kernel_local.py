"""Local attention equals attention to all tokens with a band as its mask, forward and backward, block by block or at once."""

from __future__ import annotations

import math
import random
import resource
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from zoo import kernel
from zoo.kernel.local_attention import SCORES, LocalAttention
from zoo.kernel.local_band import BLOCK, GlobalTokens
from zoo.kernel.switch import fast

Settings = dict[str, Any]


def dense(q: Tensor, k: Tensor, v: Tensor, window: int, causal: bool = False, **given: Any) -> Tensor:
    """All weights written out; tokens that may attend to nothing give zeros."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    key_at = torch.arange(k.shape[2])
    query_at = key_at[k.shape[2] - q.shape[2] :]
    apart = key_at - query_at[:, None]
    allowed = (apart.abs() <= window)[None, None]
    if given.get("global_tokens") is not None:
        allowed = allowed | given["global_tokens"].which[:, None, None, :]
    if causal:
        allowed = allowed & (apart <= 0)
    scores = q @ k.mT * (given.get("scale") or q.shape[-1] ** -0.5)
    if given.get("bias") is not None:
        scores = scores + given["bias"](query_at[None], key_at[None])
    mask, texts = given.get("mask"), given.get("texts")
    if mask is not None and mask.dtype == torch.bool:
        allowed = allowed & mask
    elif mask is not None:
        allowed, scores = allowed & (mask != -math.inf), scores + mask.masked_fill(mask == -math.inf, 0.0)
    if texts is not None:
        allowed = allowed & (texts[:, None, :, None] == texts[:, None, None, :])
    return (scores.masked_fill(~allowed, -1e30).softmax(-1) * allowed) @ v


def heads(shape: tuple[int, int, int, int, int, int], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Queries, keys and values of (batch, heads, key heads, tokens, key tokens, head_size), laid out as projections are."""
    batch, number, key_heads, tokens, keys, size = shape
    sizes = [(batch, tokens, number, size), (batch, keys, key_heads, size), (batch, keys, key_heads, size)]
    return [torch.randn(each, dtype=dtype).transpose(1, 2).requires_grad_() for each in sizes]


def agree(inputs: list[Tensor], learned: list[Tensor] | None = None, bound: float = 1e-12, **settings: Any) -> None:
    found, wanted = kernel.local_attention(*inputs, **settings), dense(*inputs, **settings)
    direction = torch.randn_like(wanted)
    watched = [*inputs, *(learned or [])]
    gradients = [torch.autograd.grad((y * direction).sum(), watched) for y in (found, wanted)]
    for a, b in zip((found, *gradients[0]), (wanted, *gradients[1]), strict=True):
        assert a.shape == b.shape and a.isfinite().all()
        assert torch.allclose(a, b, rtol=0.0, atol=bound * max(1.0, float(b.detach().norm(math.inf))) if b.numel() else 0.0)


def drawn(seed: int) -> tuple[list[Tensor], list[Tensor], Settings]:
    """Lengths, windows, heads, masks, texts, positions and global tokens, all by chance."""
    chance = random.Random(seed)
    torch.manual_seed(seed)
    keys, window = chance.choice([chance.randint(1, 100), BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 1]), chance.randint(0, 80)
    batch, key_heads = chance.randint(1, 3), chance.randint(1, 2)
    tokens = keys if chance.random() < 0.7 else chance.randint(1, keys)
    inputs = heads((batch, key_heads * chance.randint(1, 3), key_heads, tokens, keys, 4))
    number, square = inputs[0].shape[1], tokens == keys
    settings: Settings = {"window": window, "causal": chance.random() < 0.5, "scale": chance.choice([None, 0.7])}
    kind = chance.randint(0, 6)
    shape = [(batch, 1, 1, keys), (1, 1, 1, keys), (batch, 1, tokens, keys), (batch, number, tokens, keys)][kind % 4]
    if kind < 4:
        mask = torch.rand(shape) < 0.6
        settings["mask"] = mask if chance.random() < 0.5 else torch.randn(shape).double().masked_fill(~mask, -math.inf)
    if square and chance.random() < 0.3:
        settings["texts"] = torch.randint(0, 3, (batch, keys)).sort(1)[0]
    if chance.random() < 0.25:
        slope = torch.randn(number, dtype=torch.float64, requires_grad=True)
        settings["bias"] = lambda a, b: slope[:, None, None] * (a[:, :, None] - b[:, None, :]).abs()[:, None] / 10
        return inputs, [slope], settings
    if square and chance.random() < 0.4:
        which = torch.rand(batch, keys) < 0.1
        settings["global_tokens"] = chance.choice([kernel.chosen_tokens(which), kernel.first_tokens(min(2, keys), keys)])
    return inputs, [], settings


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("start", range(0, 300, 50))
def test_everything_by_chance(start: int, plain: bool) -> None:
    for seed in range(start, start + 50):
        with kernel.plain() if plain else nullcontext():
            inputs, learned, settings = drawn(seed)
            agree(inputs, learned, **settings)


@pytest.mark.parametrize("causal", [False, True])
def test_lengths_and_windows(causal: bool) -> None:
    torch.manual_seed(0)
    for length in (1, 2, 7, BLOCK - 1, BLOCK, BLOCK + 1, BLOCK + 6):
        for window in (0, 1, 3, BLOCK - 2, BLOCK - 1, BLOCK, BLOCK + 4, BLOCK + 5, BLOCK + 16):
            agree(heads((1, 2, 1, length, length, 4)), window=window, causal=causal)


def test_many_rows_and_heads_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backward pass forms few scores at once: rows together, or heads one after another."""
    import importlib

    for limit in (1, BLOCK * 120, 3 * BLOCK * 120, SCORES):
        monkeypatch.setattr(importlib.import_module("zoo.kernel.local_attention"), "SCORES", limit)
        torch.manual_seed(0)
        inputs = heads((3, 6, 3, 150, 150, 4))
        slope = torch.randn(6, dtype=torch.float64, requires_grad=True)
        agree(inputs, window=9, mask=torch.rand(3, 6, 1, 150) < 0.5)
        agree(inputs, [slope], window=9, bias=lambda a, b, s=slope: s[:, None, None] * (a[:, :, None] - b[:, None])[:, None])


@pytest.mark.parametrize("plain", [False, True])
def test_a_row_without_keys_gives_zeros_and_no_gradient(plain: bool) -> None:
    torch.manual_seed(0)
    q, k, v = heads((2, 2, 2, 150, 150, 4), torch.float32)
    mask = torch.ones(2, 1, 1, 150, dtype=torch.bool)
    mask[0, ..., 20:90] = False
    mask[1] = False
    with kernel.plain() if plain else nullcontext():
        for given in (mask, torch.zeros(mask.shape).masked_fill(~mask, -math.inf)):
            y = kernel.local_attention(q, k, v, window=5, mask=given)
            gradients = torch.autograd.grad(y.sum(), (q, k, v))
            assert not y[1].any() and not y[0, :, 25:85].any() and y[0, :, 24].all()
            assert all(each.isfinite().all() and not each[1].any() for each in gradients)
            assert not gradients[1][0, :, 20:90].any()


def test_gradients_of_gradients_and_in_batches() -> None:
    torch.manual_seed(0)
    inputs = tuple(torch.randn(1, 2, BLOCK + 6, 3, dtype=torch.float64, requires_grad=True) for _ in range(3))
    mask = torch.rand(1, 1, 1, BLOCK + 6) < 0.8

    def function(*inputs: Tensor) -> Tensor:
        return kernel.local_attention(*inputs, window=3, mask=mask)

    assert torch.autograd.gradcheck(function, inputs, fast_mode=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)
    rows = [torch.stack([x, 2 * x]) for x in inputs]
    together = torch.func.vmap(function)(*rows)
    assert torch.allclose(together[1], function(*(row[1] for row in rows)), rtol=0.0, atol=1e-12)


def test_dropout_drops_weights_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    q, k = (torch.randn(1, 1, 200, 4) for _ in range(2))
    value = torch.eye(200)[None, None]  # the output is the weights
    wanted = kernel.local_attention(q, k, value, window=7)
    drawn = torch.stack([kernel.local_attention(q, k, value, window=7, dropout=0.25) for _ in range(400)])
    inside = wanted > 0
    assert int(inside.sum()) == 200 * 15 - 2 * 28 and not drawn[:, ~inside].any()
    assert abs(float((drawn[:, inside] == 0).float().mean()) - 0.25) < 0.005
    kept = drawn[:, inside]
    assert torch.allclose(kept[kept > 0], (wanted[inside] / 0.75).expand_as(kept)[kept > 0], rtol=1e-4)


def test_autocast_computes_in_bfloat16() -> None:
    torch.manual_seed(0)
    inputs = heads((2, 4, 2, 200, 200, 16), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = kernel.local_attention(*inputs, window=20)
        gradients = torch.autograd.grad(found.float().pow(2).sum(), inputs)
    exact = [each.detach().double().requires_grad_() for each in inputs]
    wanted = dense(*exact, 20)
    distance = float((found - wanted).detach().norm())
    assert found.dtype == torch.bfloat16
    assert distance < 1e-2 * float(wanted.detach().norm())
    for a, b in zip(gradients, torch.autograd.grad(wanted.pow(2).sum(), exact), strict=True):
        assert a.dtype == torch.float32 and float((a - b).norm()) < 2e-2 * float(b.norm())


def test_shapes_on_the_meta_device() -> None:
    q, k = torch.empty(2, 4, 100, 8, device="meta"), torch.empty(2, 2, 100, 8, device="meta")
    given = {"mask": torch.empty(2, 1, 1, 100, dtype=torch.bool, device="meta"), "window": 7}
    assert kernel.local_attention(q, k, k, **given).shape == q.shape
    assert kernel.chosen_tokens(torch.zeros(2, 9, dtype=torch.bool, device="meta")) is None


def test_global_tokens_are_counted_and_filled_up() -> None:
    which = torch.tensor([[False, True, True, False], [False, False, False, True]])
    found = kernel.chosen_tokens(which)
    assert isinstance(found, GlobalTokens) and found.at[0].tolist() == [1, 2] and int(found.at[1, 0]) == 3
    assert found.real is not None and found.real.tolist() == [[True, True], [True, False]]
    none = kernel.chosen_tokens(torch.zeros(2, 4, dtype=torch.bool))
    assert none is not None and none.at.shape == (2, 0)
    agree(heads((2, 2, 2, 4, 4, 4)), window=1, global_tokens=none)


def test_one_token_reads_its_window_alone() -> None:
    """As in decoding; where the mask is, is counted from the end."""
    torch.manual_seed(0)
    q, k, v = heads((2, 4, 2, 1, 300, 4))
    mask = torch.rand(2, 1, 1, 300) < 0.5
    agree([q, k, v], window=9, causal=True, mask=mask)
    far = k.detach().clone()
    far[:, :, :290] = math.nan
    assert kernel.local_attention(q, far, v, window=9, causal=True).isfinite().all()


@pytest.mark.parametrize("train", [False, True])
def test_memory_and_work_grow_with_the_length_alone(train: bool) -> None:
    """Nothing of tokens x tokens: 30000 tokens would take 3.6 GB for one head's scores, and 0.9 GB for a mask."""
    inputs = [torch.randn(1, 1, 30000, 8, requires_grad=train) for _ in range(3)]
    mask = torch.ones(1, 1, 1, 30000, dtype=torch.bool)
    mask[..., -9:] = False
    texts = torch.arange(30000)[None] // 1000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    which = kernel.first_tokens(3, 30000)
    with torch.set_grad_enabled(train):
        found = kernel.local_attention(*inputs, window=10, mask=mask, texts=texts, global_tokens=which)
    if train:
        found.sum().backward()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes


def test_what_is_kept_for_the_backward_pass_are_the_inputs() -> None:
    kept: list[Tensor] = []
    inputs = heads((1, 2, 2, 500, 500, 4), torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        found = kernel.local_attention(*inputs, window=10)
    assert type(found.grad_fn).__name__ == f"{LocalAttention.__name__}Backward"
    assert sum(x.numel() for x in kept) == 3 * 500 * 2 * 4 + BLOCK * (BLOCK + 20)
    with kernel.plain():
        assert not fast() and type(kernel.local_attention(*inputs, window=10).grad_fn).__name__ != "LocalAttentionBackward"


Compiled = Callable[..., Tensor]


@pytest.mark.parametrize("settings", [{}, {"causal": True, "global_tokens": True}, {"mask": True, "texts": True}], ids=str)
def test_traced_whole(settings: Settings) -> None:
    """One graph, forward and backward, for torch.compile; exported for any number of rows."""

    class Module(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, texts: Tensor) -> Tensor:
            given = dict(settings)
            given |= {"mask": mask} if "mask" in given else {}
            given |= {"texts": texts} if "texts" in given else {}
            given |= {"global_tokens": kernel.first_tokens(2, q.shape[2])} if "global_tokens" in given else {}
            return kernel.local_attention(q, k, v, window=5, **given)

    torch.manual_seed(0)
    inputs = heads((3, 4, 2, 100, 100, 8), torch.float32)
    mask, texts = torch.rand(3, 1, 1, 100) < 0.7, torch.arange(100)[None].expand(3, -1) // 30
    wanted = Module()(*inputs, mask, texts)
    graph: Compiled = torch.compile(Module(), fullgraph=True, backend="aot_eager")
    found = graph(*inputs, mask, texts)
    assert torch.allclose(found, wanted, atol=1e-5)
    for a, b in zip(*(torch.autograd.grad(y.pow(2).sum(), inputs) for y in (found, wanted)), strict=True):
        assert torch.allclose(a, b, atol=1e-4)
    rows = {0: torch.export.Dim("rows", min=2, max=64)}
    plain = tuple(x.detach() for x in inputs)
    exported = torch.export.export(Module(), (*plain, mask, texts), dynamic_shapes=(rows,) * 5).module()
    more = [torch.cat([x, x + 1]) for x in plain]
    given = (torch.cat([mask, ~mask]), texts.repeat(2, 1))
    assert torch.allclose(exported(*more, *given), Module()(*more, *given), atol=1e-5)
