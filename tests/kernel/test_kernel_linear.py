"""Linear layers with a prepared weight equal the plain call, are never stale, and step aside where they must."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from kernel_helpers import check, close, needs_packing, pair
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from zoo import kernel
from zoo.kernel import few_rows, packed
from zoo.kernel.packed import Prepared


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
def test_varying_rows_end_as_the_plain_call(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, _x = pair()
    made: list[int] = []
    prepare = packed.Prepared._prepare

    def counted(self: packed.Prepared, weights: list[Tensor], rows: int, dtype: torch.dtype) -> None:
        made.append(rows)
        prepare(self, weights, rows, dtype)

    monkeypatch.setattr(packed.Prepared, "_prepare", counted)
    with torch.no_grad():
        for turn in range(40):
            for rows in [8 + turn % 2] * 3:
                layer(torch.randn(rows, 192))
        assert len(made) < 4  # each change asks for twice as many calls
        for rows in range(10, 10 + packed.UNUSED):
            layer(torch.randn(rows, 192))
    assert layer.prepared.weight is None
    check(layer, torch.randn(8, 192))


@needs_packing
def test_a_prompt_in_between_leaves_the_weight_of_decoding_alone() -> None:
    layer, _x = pair()
    with torch.no_grad():
        for _text in range(5):
            layer(torch.randn(100, 192))
            for _token in range(9):
                layer(torch.randn(8, 192))
        kept = layer.prepared.weight
        for rows in (8, 100, 8):
            x = torch.randn(rows, 192)
            close(layer(x), F.linear(x, layer.weight, layer.bias))
    assert kept is not None and layer.prepared.weight is kept


@needs_packing
@pytest.mark.parametrize("rows", [(1,), (2,), (3, 4), (32,), (33,)])
@pytest.mark.parametrize("bias", [True, False])
def test_few_rows_by_a_table_of_no_module(rows: tuple[int, ...], bias: bool) -> None:
    table, x = torch.randn(5000, 48), torch.randn(*rows, 48)
    own = torch.randn(5000) if bias else None
    with torch.no_grad():
        close(kernel.linear(x, table, own), F.linear(x, table, own))
        close(kernel.linear(x, table.T.contiguous().T, own), F.linear(x, table, own))
        close(kernel.linear(x.double(), table.double(), None), F.linear(x.double(), table.double()))
    table.requires_grad_()
    assert kernel.linear(x, table, own).requires_grad


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


@needs_packing
def test_small_weights_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Below the size from which it pays, in float32; bfloat16 saves the conversion and starts earlier."""
    monkeypatch.setattr(packed, "WEIGHTS", 2**20)
    layer, x = kernel.Linear(192, 256).eval(), torch.randn(2, 20, 192)
    with torch.no_grad():
        for _ in range(3):
            layer(x)
        assert layer.prepared.weight is None
        with torch.autocast("cpu", torch.bfloat16):
            for _ in range(3):
                layer(x)
    assert layer.prepared.weight is not None


@pytest.mark.parametrize("bias", [True, False])
def test_projections_are_learned_together_under_autocast(bias: bool) -> None:
    layers = [kernel.Linear(24, size, bias) for size in (24, 8, 8)]
    x = torch.randn(2, 5, 24, requires_grad=True)
    parameters = [parameter for layer in layers for parameter in layer.parameters()]
    found, products = [], []
    for plain in (False, True):
        with (
            torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen,
            torch.autocast("cpu", torch.bfloat16),
        ):
            with kernel.plain() if plain else torch.enable_grad():
                parts = kernel.project(x, *layers)
            loss = sum((part.float() * torch.linspace(-1, 1, part.numel()).view(part.shape)).sum() for part in parts)
            found.append([*parts, *torch.autograd.grad(loss, [x, *parameters])])
        products.append(sum(event.count for event in seen.key_averages() if event.key in ("aten::mm", "aten::addmm")))
    assert products == [3, 9]
    for mine, exact in zip(*found):
        assert mine.dtype == exact.dtype and (mine - exact).abs().max() <= 2e-2 * exact.abs().max()


@needs_packing
def test_a_large_table_is_laid_out_once_for_a_caller_that_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_rows, "functions", lambda: None)  # the library's own way
    made = []
    reorder = torch.ops.mkldnn._reorder_linear_weight
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", lambda *given: made.append(given) or reorder(*given))
    table, x = torch.randn(4096, 256), torch.randn(4, 1, 256)
    expected, memory = F.linear(x, table), Prepared()
    with torch.no_grad():
        for _ in range(12):
            close(kernel.linear(x, table, None, memory), expected)
        assert not made
        with kernel.repeated():
            for _ in range(12):
                close(kernel.linear(x, table, None, memory), expected)
            assert len(made) == 1
            close(kernel.linear(x[:3], table, None, memory), expected[:3])
        table.mul_(2)
        with kernel.repeated():
            close(kernel.linear(x, table, None, memory), 2 * expected)
