"""Attention equals the same written out in float64, forward and backward, with every mask."""

from __future__ import annotations

import pytest
import torch
from kernel_helpers import BOUND, close
from torch import Tensor

from zoo import kernel


def reference(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, scale: float | None = None) -> Tensor:
    """Attention written out in float64; tokens that may attend to nothing give zeros."""
    q, k, v = q.double(), *(t.double().repeat_interleave(q.shape[1] // k.shape[1], 1) for t in (k, v))
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if allowed is None:
        return scores.softmax(-1) @ v
    weights = scores.masked_fill(~allowed, -1e30).softmax(-1) * allowed
    return weights @ v


def heads(dtype: torch.dtype, tokens: int, keys: int, key_heads: int = 4) -> list[Tensor]:
    shapes = [(2, 4, tokens, 16), (2, key_heads, keys, 16), (2, key_heads, keys, 16)]
    return [torch.randn(s).to(dtype).requires_grad_() for s in shapes]


def agree(inputs: list[Tensor], allowed: Tensor | None, **settings: object) -> None:
    bound = {torch.float64: 1e-12, torch.float32: BOUND, torch.bfloat16: 4e-2}[inputs[0].dtype]
    y = kernel.attention(*inputs, **settings)
    expected = reference(*inputs, allowed)
    weight = torch.randn(y.shape)
    found = torch.autograd.grad((y * weight.to(y.dtype)).sum(), inputs)
    wanted = torch.autograd.grad((expected * weight.to(y.dtype)).sum(), inputs)
    for a, b in zip((y.double(), *found), (expected, *wanted), strict=True):
        assert a.isfinite().all()
        close(a, b, bound)


DTYPES = [torch.float32, torch.float64, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("key_heads", [4, 2, 1])
@pytest.mark.parametrize("tokens,keys", [(7, 7), (3, 7), (1, 7), (7, 3)])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_lengths_heads_causal(dtype: torch.dtype, key_heads: int, tokens: int, keys: int, causal: bool) -> None:
    allowed = torch.ones(tokens, keys, dtype=torch.bool).tril(keys - tokens) if causal else None
    agree(heads(dtype, tokens, keys, key_heads), allowed, causal=causal)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", [(2, 1, 1, 7), (2, 4, 7, 7), (7, 7)])
def test_attention_masks_with_empty_rows(dtype: torch.dtype, additive: bool, causal: bool, shape: tuple[int, ...]) -> None:
    allowed = torch.rand(shape) < 0.5
    allowed[..., -1, :] = False
    allowed[..., 0] &= shape[-2] == 1
    if shape[0] == 2:
        allowed[1] = False
    mask = torch.zeros(shape).masked_fill(~allowed, -torch.inf).to(dtype) if additive else allowed
    lower = torch.ones(7, 7, dtype=torch.bool).tril()
    agree(
        heads(dtype, 7, 7),
        (allowed & lower if causal else allowed).expand(2, 4, 7, 7),
        mask=mask,
        causal=causal,
    )


@pytest.mark.parametrize("causal", [False, True])
def test_attention_backward_in_autocast(causal: bool) -> None:
    inputs = heads(torch.float32, 33, 33)
    with torch.autocast("cpu", torch.bfloat16):
        y = kernel.attention(*inputs, causal=causal)
        assert y.dtype == torch.bfloat16 and type(y.grad_fn).__name__ == "AttentionBackward"
        found = torch.autograd.grad(y.float().pow(2).sum(), inputs)  # also with autocast on in the backward pass
    allowed = torch.ones(33, 33, dtype=torch.bool).tril() if causal else None
    wanted = torch.autograd.grad(reference(*inputs, allowed).pow(2).sum(), inputs)
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() < 2e-2 * b.norm()


def test_attention_double_backward_and_batched_gradients() -> None:
    inputs = heads(torch.bfloat16, 9, 9)
    found = torch.autograd.grad(kernel.attention(*inputs).float().pow(2).sum(), inputs, create_graph=True)
    twice = torch.autograd.grad(sum(t.float().pow(2).sum() for t in found), inputs)
    exact = [t.detach().double().requires_grad_() for t in inputs]
    first = torch.autograd.grad(reference(*exact, None).pow(2).sum(), exact, create_graph=True)
    second = torch.autograd.grad(sum(t.pow(2).sum() for t in first), exact)
    for a, b in zip(twice, second, strict=True):
        assert (a - b).norm() < 5e-2 * b.norm()
    y = kernel.attention(*inputs)
    weights = torch.randn(3, *y.shape).bfloat16()
    together = torch.autograd.grad(y, inputs, weights, is_grads_batched=True, retain_graph=True)
    for i, weight in enumerate(weights):
        for a, b in zip(together, torch.autograd.grad(y, inputs, weight, retain_graph=True), strict=True):
            assert (a[i] - b).float().norm() < 2e-2 * b.float().norm()


def test_attention_checkpointed() -> None:
    from torch.utils.checkpoint import checkpoint

    inputs = heads(torch.float32, 9, 9)
    with torch.autocast("cpu", torch.bfloat16):
        a = checkpoint(kernel.attention, *inputs, use_reentrant=False)
        b = kernel.attention(*inputs)
    for x, y in zip(torch.autograd.grad(a.sum(), inputs), torch.autograd.grad(b.sum(), inputs), strict=True):
        assert torch.equal(x, y)
