"""Feed-forwards, patches and norms equal their plain calls; activations by name; the switch."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from kernel_helpers import BOUND, close, needs_packing
from torch import Tensor

from zoo import kernel
from zoo.errors import UnknownNameError


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


def test_compile_and_export_of_all_parts() -> None:
    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (kernel.Linear(32, 32) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (t.unflatten(-1, (2, 16)).transpose(1, 2) for t in kernel.project(x, self.a, self.b, self.c))
            y = x + kernel.attention(q, k, v, causal=True).transpose(1, 2).flatten(2)
            return kernel.layer_norm(y + kernel.mlp(y, self.a, "gelu", self.b), None, None, 1e-5)

    layer, x = Layer(), torch.randn(2, 9, 32)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            close(torch.compile(layer, fullgraph=True, backend="eager")(x), layer(x))
    close(torch.export.export(layer, (x,)).module()(x), layer(x))


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
    assert torch.equal(kernel.layer_norm(x, weight, weight, 1e-6), F.layer_norm(x, (8,), weight, weight, 1e-6))
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


SWITCH = """
import torch
from zoo import kernel
from zoo.kernel.switch import fast
layer = kernel.Linear(1024, 1024).eval()
with torch.no_grad():
    for _ in range(4):
        layer(torch.ones(20, 1024))
print(fast(), layer.prepared.weight is not None)
"""


@needs_packing
@pytest.mark.parametrize(("value", "expected"), [("plain", "False False"), ("", "True True"), ("fast", "True True")])
def test_the_environment_variable(run: Callable[..., subprocess.CompletedProcess[str]], value: str, expected: str) -> None:
    done = run("-c", SWITCH, ZOO_KERNEL=value)
    assert done.stdout.strip() == expected, done.stderr
