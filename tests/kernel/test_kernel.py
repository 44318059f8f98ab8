"""Every fast way of zoo.kernel equals the plain way, is never stale, and steps aside where it must.

Bounds: float32 products of 192 terms differ from float64 by 1.1e-6 at values up to 2, packed and plain alike
(the noise floor, measured); the tests allow 2e-5. bfloat16 has 8 bits: 2e-2 of the largest.
"""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from zoo import kernel
from zoo.errors import UnknownNameError
from zoo.kernel import packed

BOUND = 2e-5
needs_packing = pytest.mark.skipif(not packed.AVAILABLE, reason="torch without MKL and oneDNN")


def close(a: Tensor, b: Tensor, bound: float = BOUND) -> None:
    assert a.shape == b.shape and a.dtype == b.dtype
    assert (a.double() - b.double()).abs().max() <= bound * max(1.0, b.abs().max().item())


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def ready(layer: kernel.Linear, x: Tensor) -> kernel.Linear:
    """The layer, with its weight prepared for inputs like x."""
    layer.eval()
    with torch.no_grad():
        for _ in range(3):
            layer(x)
    assert layer.prepared.weight is not None
    return layer


def pair(bias: bool = True) -> tuple[kernel.Linear, Tensor]:
    x = torch.randn(2, 20, 192)
    return ready(kernel.Linear(192, 256, bias=bias), x), x


def check(layer: kernel.Linear, x: Tensor) -> None:
    with torch.no_grad():
        for _ in range(4):
            close(layer(x), F.linear(x, layer.weight, layer.bias))


def test_linear_is_torchs_linear() -> None:
    torch.manual_seed(1)
    ours = kernel.Linear(3, 4)
    torch.manual_seed(1)
    theirs = torch.nn.Linear(3, 4)
    assert isinstance(ours, torch.nn.Linear) and list(ours.state_dict()) == ["weight", "bias"]
    assert torch.equal(ours.weight, theirs.weight) and torch.equal(ours.bias, theirs.bias)
    assert kernel.Linear(3, 4, device="meta").weight.is_meta


@needs_packing
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_prepared_equals_plain(bias: bool, mode: type) -> None:
    layer, x = pair(bias)
    with mode():
        y = layer(x)
        with kernel.plain():
            close(y, layer(x))
    check(layer, torch.randn(3, 192))
    check(layer, torch.randn(5, 7, 192))


@needs_packing
def test_prepared_bfloat16_autocast_equals_plain() -> None:
    layer, x = pair()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for _ in range(3):
            y = layer(x)
            parts = kernel.project(x, layer, layer)
        assert layer.prepared.weight is not None
        with kernel.plain():
            close(y, layer(x), 2e-2)
            for part in parts:
                close(part, layer(x), 2e-2)


def _update(layer: kernel.Linear) -> None:
    optimiser = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True)
    layer(torch.ones(1, 192)).sum().backward()
    optimiser.step()


def _no_grad_element(layer: kernel.Linear) -> None:
    with torch.no_grad():
        layer.weight[3, 5] += 10


CHANGES = {
    "in place": _no_grad_element,
    "detached": lambda layer: layer.weight.detach()[3].mul_(2),
    "load_state_dict": lambda layer: layer.load_state_dict(kernel.Linear(192, 256).state_dict()),
    "load assign": lambda layer: layer.load_state_dict(kernel.Linear(192, 256).state_dict(), assign=True),
    "parameter": lambda layer: setattr(layer, "weight", torch.nn.Parameter(torch.randn(256, 192))),
    "alias": lambda layer: setattr(layer, "weight", torch.nn.Parameter(layer.weight.data.mul_(2))),
    "data": lambda layer: setattr(layer.weight, "data", torch.randn(256, 192)),
    "data in place": lambda layer: layer.weight.data.mul_(2),
    "data copied": lambda layer: layer.weight.data.copy_(torch.randn(256, 192)),
    "numpy": lambda layer: layer.weight.detach().numpy().__imul__(2),
    "optimiser": _update,
    "bias": lambda layer: layer.bias.data.add_(1),
    "to and back": lambda layer: layer.double().float(),
    "share": lambda layer: layer.share_memory(),
    "init": lambda layer: torch.nn.init.zeros_(layer.weight),
    "not a number": lambda layer: layer.weight.data.fill_(1e30),
}


@needs_packing
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("group", [False, True])
def test_never_stale(change: str, group: bool) -> None:
    layer, x = pair()
    others = (kernel.Linear(192, 64).eval(), kernel.Linear(192, 64).eval())

    def call() -> Tensor:
        return torch.cat(kernel.project(x, others[0], layer, others[1]), -1) if group else layer(x)

    with torch.no_grad():
        for _ in range(4):
            call()
        assert (others[0] if group else layer).prepared.weight is not None
    CHANGES[change](layer)
    with torch.no_grad():
        for _ in range(4):
            y = call()
            with kernel.plain():
                expected = call()
            close(y, expected)


@needs_packing
def test_varying_rows_end_as_the_plain_call() -> None:
    layer, x = pair()
    for rows in (8, 8, 9, 9, 8, 8, 9, 9, 8, 8, 9, 9):
        check(layer, torch.randn(rows, 192)) if rows == 7 else layer.eval()
        with torch.no_grad():
            layer(torch.randn(rows, 192))
    assert layer.prepared.weight is None


@needs_packing
def test_copies_and_pickles_leave_the_prepared_weight_behind() -> None:
    layer, x = pair()
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(buffer, weights_only=False)]
    assert len(buffer.getvalue()) < 256 * 192 * 4 + 10_000
    for other in copies:
        assert other.prepared.weight is None
        check(other, x)
    layer.train()
    assert layer.prepared.weight is None


@needs_packing
def test_hooks_wrappers_and_parametrisations_are_called() -> None:
    layer, x = pair()
    handle = layer.register_forward_hook(lambda module, inputs, output: output * 0)
    with torch.no_grad():
        assert not kernel.project(x, layer, kernel.Linear(192, 8))[0].any()
        assert torch.equal(
            kernel.mlp(x, layer, "gelu", layer_down := kernel.Linear(256, 8)),
            layer_down(torch.zeros(2, 20, 256)),
        )
    handle.remove()
    assert packed.bare(layer)

    class Adapter(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return layer(x) + 1

    with torch.no_grad():
        close(kernel.project(x, Adapter(), layer)[0], layer(x) + 1)
    torch.nn.utils.parametrizations.weight_norm(layer)
    assert not packed.bare(layer)
    with torch.no_grad():
        layer.parametrizations.weight.original0.mul_(2)
    check(layer, x)


def test_hook_outputs_are_not_overwritten() -> None:
    seen: list[Tensor] = []
    up, down = kernel.Linear(192, 256), kernel.Linear(256, 192)
    up.register_forward_hook(lambda module, inputs, output: seen.append(output))
    x = torch.randn(20, 192)
    with torch.no_grad():
        kernel.mlp(x, up, "gelu", down)
        close(seen[0], F.linear(x, up.weight, up.bias))


@pytest.mark.parametrize("name", kernel.ACTIVATIONS)
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_mlp_and_gated_equal_plain(name: str, gradients: bool, autocast: bool) -> None:
    up, gate, down = (kernel.Linear(192, 192) for _ in range(3))
    x = torch.randn(2, 20, 192, requires_grad=gradients)
    before = x.detach().clone()
    with torch.set_grad_enabled(gradients), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for call in (
            lambda: kernel.mlp(x, up, name, down),
            lambda: kernel.gated(x, gate, up, name, down),
        ):
            for _ in range(3):
                y = call()
            with kernel.plain():
                close(y, call(), 2e-2 if autocast else BOUND)
    assert torch.equal(x.detach(), before)


def test_dropout_is_seeded_and_only_in_training() -> None:
    up, down, x = kernel.Linear(8, 16), kernel.Linear(16, 8), torch.randn(4, 8)

    def run(training: bool) -> Tensor:
        torch.manual_seed(3)
        return kernel.mlp(x, up, "relu", down, 0.5, training)

    assert torch.equal(run(True), run(True)) and not torch.equal(run(True), run(False))
    with torch.no_grad():
        close(run(True), down(F.dropout(F.relu(up(x)), 0.5, True)) if torch.manual_seed(3) else x)


def test_unknown_activation_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="gelu"):
        kernel.activation("gelo")


@needs_packing
def test_watched_and_transformed_code_is_plain() -> None:
    layer, x = pair()
    seen: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    with torch.no_grad():
        expected = F.linear(x, layer.weight, layer.bias)
        with Watch():
            layer(x)
        assert "addmm" in seen and not any("mkl" in name for name in seen)
        close(torch.func.vmap(layer)(x), expected)
        close(torch.func.jvp(layer, (x,), (x,))[0], expected)
        close(torch.export.export(layer, (x,)).module()(x), expected)
        close(torch.compile(layer, fullgraph=True, backend="eager")(x), expected)
        close(torch.jit.trace(layer, x)(x), expected)
    double = kernel.Linear(192, 256).double()
    check(double, x.double())
    assert double.prepared.weight is None


def test_compile_and_export_of_all_parts() -> None:
    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (kernel.Linear(32, 32) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (
                t.unflatten(-1, (2, 16)).transpose(1, 2) for t in kernel.project(x, self.a, self.b, self.c)
            )
            y = x + kernel.attention(q, k, v, causal=True).transpose(1, 2).flatten(2)
            return kernel.layer_norm(y + kernel.mlp(y, self.a, "gelu", self.b), None, None, 1e-5)

    layer, x = Layer(), torch.randn(2, 9, 32)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            close(torch.compile(layer, fullgraph=True, backend="eager")(x), layer(x))
    close(torch.export.export(layer, (x,)).module()(x), layer(x))


# ---- attention -----------------------------------------------------------------------------------------


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
def test_attention_lengths_heads_causal(
    dtype: torch.dtype, key_heads: int, tokens: int, keys: int, causal: bool
) -> None:
    allowed = torch.ones(tokens, keys, dtype=torch.bool).tril(keys - tokens) if causal else None
    agree(heads(dtype, tokens, keys, key_heads), allowed, causal=causal)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", [(2, 1, 1, 7), (2, 4, 7, 7), (7, 7)])
def test_attention_masks_with_empty_rows(
    dtype: torch.dtype, additive: bool, causal: bool, shape: tuple[int, ...]
) -> None:
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
        found = torch.autograd.grad(
            y.float().pow(2).sum(), inputs
        )  # also with autocast on in the backward pass
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


# ---- patches and norms -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 32), (35, 47)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_patches_equal_the_convolution(size: tuple[int, int], dtype: torch.dtype) -> None:
    images = torch.randn(2, 3, *size, dtype=dtype, requires_grad=True)
    weight, bias = torch.randn(24, 3, 8, 8, dtype=dtype, requires_grad=True), torch.randn(24, dtype=dtype)
    y, expected = (
        kernel.patches(images, weight, bias, 8),
        F.conv2d(images, weight, bias, 8).permute(0, 2, 3, 1),
    )
    close(y, expected)
    for a, b in zip(
        torch.autograd.grad(y.pow(2).sum(), (images, weight)),
        torch.autograd.grad(expected.pow(2).sum(), (images, weight)),
        strict=True,
    ):
        close(a, b)


def test_norms_keep_the_dtype() -> None:
    x, weight = torch.randn(3, 8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    assert torch.equal(
        kernel.layer_norm(x, weight, weight, 1e-6), F.layer_norm(x, (8,), weight, weight, 1e-6)
    )
    assert torch.equal(kernel.rms_norm(x, weight, 1e-6), F.rms_norm(x, (8,), weight, 1e-6))
    assert kernel.rms_norm(x, weight, 1e-6).dtype == torch.float64


def test_the_switch() -> None:
    from zoo.kernel.switch import fast

    outside = fast()
    with kernel.plain():
        assert not fast()
        with kernel.plain():
            assert not fast()
        assert not fast()
    assert fast() is outside
