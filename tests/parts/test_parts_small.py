"""Norms, feed-forwards, pools, positions, layer scale and drop path against a few lines of plain torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zoo import registry
from zoo.block.drop_path import DropPath
from zoo.block.residual import LayerScale
from zoo.layout import Layout

WIDTH = 24
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "gelu-tanh": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "quick-gelu": lambda x: x / (1 + torch.exp(-1.702 * x)),
    "relu": lambda x: x.clamp(min=0),
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "tanh": lambda x: (torch.exp(2 * x) - 1) / (torch.exp(2 * x) + 1),
    "sigmoid": lambda x: 1 / (1 + torch.exp(-x)),
    "identity": lambda x: x,
}


def close(a: Tensor, b: Tensor) -> None:
    """Equal shapes and values within 1e-12 of the largest."""
    assert a.shape == b.shape and a.dtype == b.dtype
    assert (a - b).abs().max() <= 1e-12 * max(1.0, float(b.detach().abs().max()))


@pytest.fixture
def part(redraw: Callable[..., Any]) -> Callable[..., Any]:
    """A function that builds a part of a kind in float64, redrawn, in eval mode."""

    def make(kind: str, name: str, fields: dict[str, Any] | None = None, **context: Any) -> Any:
        cls = registry.part(kind, name)
        with torch.device("meta"):
            module = cls(cls.Config.model_validate({"type": name, **(fields or {})}), width=WIDTH, **context)
        module = module.double().to_empty(device="cpu")
        for parameter in module.parameters():
            nn.init.zeros_(parameter)
        return redraw(module).eval()

    return make


def data(*shape: int) -> Tensor:
    """Random numbers in float64."""
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def gradients_flow(module: nn.Module, output: Tensor, *inputs: Tensor) -> None:
    """Every parameter and input has a gradient that is not zero."""
    named = dict(module.named_parameters())
    found = torch.autograd.grad((output * torch.randn_like(output)).sum(), [*named.values(), *inputs], allow_unused=True)
    for name, gradient in zip([*named, *range(len(inputs))], found):
        assert gradient is not None and gradient.abs().max() > 0, name


@pytest.mark.parametrize("eps", [1e-6, 0.1])
@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm(part: Callable[..., Any], eps: float, bias: bool) -> None:
    norm, x = part("norm", "layer-norm", {"eps": eps, "bias": bias}), data(2, 5, WIDTH)
    mean = x.mean(-1, keepdim=True)
    expected = (x - mean) / ((x - mean) ** 2).mean(-1, keepdim=True).add(eps).sqrt() * norm.weight
    close(norm(x), expected + norm.bias if bias else expected)
    assert [n for n, _ in norm.named_parameters()] == (["weight", "bias"] if bias else ["weight"])
    gradients_flow(norm, norm(x), x)


@pytest.mark.parametrize("eps", [1e-6, 0.1])
def test_rms_norm(part: Callable[..., Any], eps: float) -> None:
    norm, x = part("norm", "rms-norm", {"eps": eps}), data(2, 5, WIDTH)
    close(norm(x), x / (x**2).mean(-1, keepdim=True).add(eps).sqrt() * norm.weight)
    gradients_flow(norm, norm(x), x)


def linear(x: Tensor, layer: Any) -> Tensor:
    """A product and its bias."""
    return x @ layer.weight.T + (0 if layer.bias is None else layer.bias)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("norm", [None, "layer-norm", "rms-norm"])
def test_mlp(part: Callable[..., Any], activation: str, bias: bool, norm: str | None) -> None:
    layer, x = (
        part("feedforward", "mlp", {"hidden": 40, "activation": activation, "bias": bias, "norm": norm}),
        data(2, 5, WIDTH),
    )
    hidden = ACTIVATIONS[activation](linear(x, layer.up))
    expected = linear(hidden if norm is None else layer.norm(hidden), layer.down)
    close(layer(x), expected)
    with torch.no_grad():
        close(layer(x), expected.detach())
    gradients_flow(layer, layer(x), x)
    assert (layer.up.bias is None) is (layer.down.bias is None) is not bias


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm", [None, "rms-norm"])
def test_gated(part: Callable[..., Any], activation: str, norm: str | None) -> None:
    layer, x = part("feedforward", "gated", {"hidden": 40, "activation": activation, "norm": norm}), data(2, 5, WIDTH)
    hidden = ACTIVATIONS[activation](linear(x, layer.gate)) * linear(x, layer.up)
    close(layer(x), linear(hidden if norm is None else layer.norm(hidden), layer.down))
    gradients_flow(layer, layer(x), x)


def test_every_activation_is_tested() -> None:
    from zoo import kernel

    assert set(kernel.ACTIVATIONS) == set(ACTIVATIONS)


@pytest.mark.parametrize(
    ("fields", "hidden"),
    [({}, 96), ({"ratio": 2}, 48), ({"ratio": 2.5}, 60), ({"ratio": 1.99}, 47), ({"hidden": 7, "ratio": 3}, 7)],
)
def test_inner_width(part: Callable[..., Any], fields: dict[str, Any], hidden: int) -> None:
    assert part("feedforward", "mlp", fields).up.out_features == hidden


@pytest.mark.parametrize("name", ["mlp", "gated"])
@pytest.mark.parametrize("norm", [None, "layer-norm"])
def test_dropout_of_a_feedforward_is_of_training_only(part: Callable[..., Any], name: str, norm: str | None) -> None:
    layer, x = part("feedforward", name, {"hidden": 40, "dropout": 1.0, "norm": norm}), data(2, 5, WIDTH)
    assert not torch.equal(layer(x), layer.train()(x))
    inner = torch.zeros(2, 5, 40, dtype=torch.float64)
    close(layer(x), linear(inner if norm is None else layer.norm(inner), layer.down))


def layout(prefix: int = 0, grid: tuple[int, int] | None = None, mask: Tensor | None = None, resample: bool = False) -> Layout:
    """What the tokens of a batch are."""
    return Layout(prefix, grid, resample, real=mask, mask=None if mask is None else mask[:, None, None, :])


MASK = torch.tensor([[True] * 9, [True, True, False, True, False, True, True, False, False]])


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("name", ["mean", "max", "mean-max"])
def test_pools_of_statistics(part: Callable[..., Any], name: str, masked: bool, prefix: bool) -> None:
    pool, x = part("pool", name, {"prefix": prefix}), data(2, 9, WIDTH)
    found = pool(x, layout(prefix=2, mask=MASK if masked else None))
    for row in range(2):
        tokens = x[row][0 if prefix else 2 :]
        real = tokens[MASK[row][0 if prefix else 2 :]] if masked else tokens
        expected = {"mean": real.mean(0), "max": real.max(0).values, "mean-max": (real.mean(0) + real.max(0).values) / 2}[name]
        close(found[row], expected)


@pytest.mark.parametrize("name", ["mean", "max", "mean-max"])
def test_a_pool_of_one_token_is_that_token(part: Callable[..., Any], name: str) -> None:
    x = data(2, 9, WIDTH)
    close(part("pool", name)(x, layout(mask=torch.arange(9)[None].expand(2, -1) == 4)), x[:, 4])


@pytest.mark.parametrize("name", ["mean", "max", "mean-max"])
def test_a_pool_of_nothing_is_zero(part: Callable[..., Any], name: str) -> None:
    x = data(2, 9, WIDTH)
    mask = torch.stack([torch.zeros(9, dtype=torch.bool), torch.ones(9, dtype=torch.bool)])
    found = part("pool", name)(x, layout(mask=mask))
    assert not found[0].any() and found[1].abs().min() > 0
    assert torch.autograd.grad(found.sum(), x)[0].isfinite().all()


def test_class_token_and_no_pool(part: Callable[..., Any]) -> None:
    x = data(2, 9, WIDTH)
    assert torch.equal(part("pool", "class-token")(x, layout(1)), x[:, 0])
    assert part("pool", "none")(x, layout(1)) is x


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_attention_pool(part: Callable[..., Any], prefix: bool, masked: bool) -> None:
    fields = {"attention": {"heads": 3}, "norm": {"type": "layer-norm"}, "feedforward": {"hidden": 40}, "prefix": prefix}
    pool, x = part("pool", "attention", fields), data(2, 9, WIDTH)
    tokens = x if prefix else x[:, 2:]
    query, key, value = (
        linear(each, layer).unflatten(-1, (3, 8)).transpose(1, 2)
        for each, layer in (
            (pool.query.expand(2, -1, -1), pool.attention.query),
            (tokens, pool.attention.key),
            (tokens, pool.attention.value),
        )
    )
    scores = query @ key.mT / math.sqrt(8)
    if masked:
        scores = scores.masked_fill(~MASK[:, None, None, 0 if prefix else 2 :], -math.inf)
    mixed = linear((scores.softmax(-1) @ value).transpose(1, 2).flatten(2), pool.attention.output)
    found = pool(x, layout(prefix=2, mask=MASK if masked else None))
    close(found, (mixed + pool.feedforward(pool.norm(mixed)))[:, 0])
    for name, parameter in pool.named_parameters():
        gradient = torch.autograd.grad(found.sum(), parameter, retain_graph=True, allow_unused=True)[0]
        assert gradient is not None and (name == "attention.key.bias" or gradient.abs().max() > 0), name


@pytest.mark.parametrize("order", ["interleaved", "halves"])
@pytest.mark.parametrize("base", [10000.0, 100.0])
def test_sinusoidal_positions(part: Callable[..., Any], order: str, base: float) -> None:
    position, x = part("position", "sinusoidal", {"order": order, "base": base}, length=9), data(2, 9, WIDTH)
    table = torch.zeros(9, WIDTH, dtype=torch.float64)
    for place in range(9):
        for pair in range(WIDTH // 2):
            angle = place / base ** (2 * pair / WIDTH)
            sine, cosine = (2 * pair, 2 * pair + 1) if order == "interleaved" else (pair, WIDTH // 2 + pair)
            table[place, sine], table[place, cosine] = math.sin(angle), math.cos(angle)
    close(position(x, layout()), x + table.float())
    assert not list(position.parameters())


def test_sinusoidal_positions_stay_exact_in_bfloat16(part: Callable[..., Any]) -> None:
    position = part("position", "sinusoidal", length=9).to(torch.bfloat16)
    found = position(torch.zeros(1, 3000, WIDTH, dtype=torch.bfloat16), layout())
    exact = torch.tensor(2999.0, dtype=torch.float64)
    assert torch.equal(found[0, -1, :2], torch.stack([exact.sin(), exact.cos()]).float().to(torch.bfloat16))


def test_an_odd_width_has_one_cosine_less() -> None:
    cls = registry.part("position", "sinusoidal")
    for order in ("interleaved", "halves"):
        assert cls(cls.Config(order=order), width=7, length=3).at(layout(), 3).shape == (3, 7)


def test_learned_positions(part: Callable[..., Any]) -> None:
    position, x = part("position", "learned", length=17, grid=(4, 4)), data(2, 17, WIDTH)
    assert position.table.shape == (17, WIDTH)
    close(position(x, layout(1, (4, 4))), x + position.table)
    gradients_flow(position, position(x, layout(1, (4, 4))), x)
    with pytest.raises(ValueError, match="16 tokens, but the position table has 17 rows"):
        position(data(2, 16, WIDTH), layout(1, (4, 4)))


@pytest.mark.parametrize("kind", ["bicubic", "bicubic-antialias"])
@pytest.mark.parametrize("grid", [(6, 3), (2, 2), (8, 8)])
def test_learned_positions_of_another_grid(part: Callable[..., Any], kind: str, grid: tuple[int, int]) -> None:
    position = part("position", "learned", {"resample": kind}, length=17, grid=(4, 4))
    x = data(2, 1 + grid[0] * grid[1], WIDTH)
    table = position.table[1:].reshape(4, 4, WIDTH).permute(2, 0, 1)[None]
    anti = kind == "bicubic-antialias"
    table = (
        nn.functional.interpolate(table.float() if anti else table, grid, mode="bicubic", antialias=anti)[0]
        .flatten(1)
        .T.double()
    )
    close(position(x, layout(1, grid, resample=True)), x + torch.cat([position.table[:1], table]))
    with pytest.raises(ValueError, match="position table has 17 rows"):
        position(x, layout(1, grid))


@pytest.mark.parametrize("fresh", [0.0, 1e-6, 2.0])
def test_layer_scale(fresh: float) -> None:
    scale, x = LayerScale(WIDTH, fresh).double(), data(2, 5, WIDTH)
    assert len(list(scale.parameters())) == 1
    scale.initialize(None)
    close(scale(x), x * fresh)


def test_drop_path() -> None:
    x = torch.ones(4000, 3, 2)
    assert torch.equal(DropPath(0.0).train()(x), x) and torch.equal(DropPath(0.9).eval()(x), x)
    dropped = DropPath(0.25).train()(x)
    kept = dropped[:, 0, 0] > 0
    assert torch.equal(dropped, kept[:, None, None] * x / 0.75)
    assert abs(kept.double().mean() - 0.75) < 4 * math.sqrt(0.25 * 0.75 / 4000)
    assert not DropPath(1.0).train()(x).any()
