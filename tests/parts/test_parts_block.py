"""Attention, blocks, stacks, embeddings and heads against a few lines of plain torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import zoo
from zoo.errors import ConfigError
from zoo.layout import Layout, Memory

Model = Callable[..., Any]


def close(a: Tensor, b: Tensor, bound: float = 1e-12) -> None:
    """Equal shapes and values within a bound of the largest."""
    assert a.shape == b.shape
    assert (a - b).abs().max() <= bound * max(1.0, float(b.detach().abs().max()))


def attended(
    layer: Any, x: Tensor, heads: int, kv_heads: int, scale: float, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention written out: its output and its weights."""
    query = layer.query(x).unflatten(-1, (heads, -1)).transpose(1, 2)
    key, value = (
        each(x).unflatten(-1, (kv_heads, -1)).transpose(1, 2).repeat_interleave(heads // kv_heads, 1)
        for each in (layer.key, layer.value)
    )
    if layer.query_norm is not None:
        query, key = layer.query_norm(query), layer.key_norm(key)
    scores = query @ key.mT * scale
    weights = (scores if mask is None else scores.masked_fill(~mask, -math.inf)).softmax(-1)
    joined = (weights @ value).transpose(1, 2).flatten(2)
    return layer.output(joined if layer.output_norm is None else layer.output_norm(joined)), weights


@pytest.mark.parametrize(
    ("fields", "heads", "kv_heads", "scale"),
    [
        ({}, 3, 3, 8**-0.5),
        ({"heads": 4, "kv_heads": 2}, 4, 2, 6**-0.5),
        ({"heads": 4, "kv_heads": 1}, 4, 1, 6**-0.5),
        ({"head_size": 5}, 3, 3, 5**-0.5),
        ({"heads": 5, "head_size": 4}, 5, 5, 0.5),
        ({"scale": 0.7}, 3, 3, 0.7),
        ({"bias": False, "output_bias": False}, 3, 3, 8**-0.5),
        ({"qk_norm": "rms-norm", "output_norm": "layer-norm"}, 3, 3, 8**-0.5),
        ({"dropout": 0.9}, 3, 3, 8**-0.5),
    ],
    ids=str,
)
@pytest.mark.parametrize("causal", [False, True])
def test_attention(model_of: Model, fields: dict[str, Any], heads: int, kv_heads: int, scale: float, causal: bool) -> None:
    layer = model_of({"stack.block.attention": {**fields, "causal": causal}}).stack.layers[0].attention
    x = torch.randn(2, 9, 24, dtype=torch.float64)
    mask = torch.ones(9, 9, dtype=torch.bool).tril() if causal else None
    expected, weights = attended(layer, x, heads, kv_heads, scale, mask)
    found, seen = layer(x, Layout(), weights=True)
    close(found, expected)
    close(seen, weights)
    assert layer(x, Layout())[1] is None
    assert (layer.query.bias is None) is (fields.get("bias") is False)
    assert (layer.output.bias is None) is (fields.get("output_bias") is False)


def test_attention_to_another_sequence(model_of: Model) -> None:
    layer = model_of().stack.layers[0].attention
    x, memory = (torch.randn(2, n, 24, dtype=torch.float64) for n in (4, 7))
    query, key, value = (
        p(t).unflatten(-1, (3, 8)).transpose(1, 2) for p, t in ((layer.query, x), (layer.key, memory), (layer.value, memory))
    )
    expected = layer.output(((query @ key.mT / math.sqrt(8)).softmax(-1) @ value).transpose(1, 2).flatten(2))
    close(layer(x, Layout(), memory=Memory(memory))[0], expected)


@pytest.mark.parametrize("order", ["pre", "post", "branch"])
@pytest.mark.parametrize("scale", [None, 0.5])
def test_block_orders(model_of: Model, order: str, scale: float | None) -> None:
    block = model_of({"stack.block.order": order, "stack.block.layer_scale": scale}).stack.layers[0]
    x = start = torch.randn(2, 9, 24, dtype=torch.float64, requires_grad=True)
    branches = (
        (lambda y: block.attention(y, Layout())[0], block.attention_norm, block.attention_scale),
        (block.feedforward, block.feedforward_norm, block.feedforward_scale),
    )
    for branch, norm, factor in branches:
        gamma = 1.0 if factor is None else factor.weight
        if order == "pre":
            x = x + gamma * branch(norm(x))
        else:
            x = norm(x + gamma * branch(x)) if order == "post" else x + gamma * norm(branch(x))
    found = block(start, Layout())[0]
    close(found, x)
    found = (found * torch.randn_like(found)).sum()
    for name, gradient in zip(dict(block.named_parameters()), torch.autograd.grad(found, list(block.parameters()))):
        assert name == "attention.key.bias" or gradient.abs().max() > 1e-9, name


def test_a_whole_branch_is_dropped_in_training(model_of: Model) -> None:
    model = model_of({"stack.drop_path": 1.0}).train()
    rates = [layer.drop_path.rate for layer in model.stack.layers]
    assert rates == [0.0, 1.0]
    x = torch.randn(2, 9, 24, dtype=torch.float64)
    assert torch.equal(model.stack.layers[1](x, Layout())[0], x)
    assert not torch.equal(model.stack.layers[0](x, Layout())[0], x)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_drop_path_grows_linearly(tiny: dict[str, Any], depth: int) -> None:
    model = zoo.build(tiny, {"stack.drop_path": 0.4, "stack.depth": depth}, device="meta")
    rates = [layer.drop_path.rate for layer in model.stack.layers]
    assert rates == pytest.approx([0.4 * n / max(depth - 1, 1) for n in range(depth)])


def test_a_stack_is_its_blocks_and_the_final_norm(model_of: Model) -> None:
    for final in ("layer-norm", "rms-norm", None):
        stack = model_of({"stack.final_norm": final}).stack
        x = y = torch.randn(2, 9, 24, dtype=torch.float64)
        for layer in stack.layers:
            y = layer(y, Layout())[0]
        close(stack(x, Layout())[0], y if final is None else stack.final_norm(y))


def test_a_pattern_builds_other_blocks(tiny: dict[str, Any]) -> None:
    overrides = {
        "stack.depth": 4,
        "stack.pattern": [{}, {"norm": "rms-norm", "attention": {"heads": 4}, "feedforward": "gated"}],
    }
    layers = zoo.build(tiny, overrides, device="meta").stack.layers
    assert [type(layer.attention_norm).__name__ for layer in layers] == ["LayerNorm", "RMSNorm"] * 2
    assert [layer.attention.heads for layer in layers] == [3, 4, 3, 4]
    assert [type(layer.feedforward).__name__ for layer in layers] == ["MLP", "GatedFeedForward"] * 2


EMBEDDINGS: list[dict[str, Any]] = [
    {}, {"bias": False}, {"class_token": False}, {"registers": 2},
    {"registers": 2, "class_token": False, "prefix_position": False},
    {"prefix_position": False}, {"position": None}, {"position": "sinusoidal"},
    {"norm": "layer-norm"}, {"output_norm": "rms-norm"},
    {"channels": 1}, {"channels": 5, "image_size": [16, 40]}, {"patch_size": [4, 16]}, {"image_size": [37, 45]},
    {"image_size": [37, 45], "edges": "pad", "flexible": True},
]  # fmt: skip


@pytest.mark.parametrize("fields", EMBEDDINGS, ids=str)
def test_patch_embedding(model_of: Model, fields: dict[str, Any]) -> None:
    model = model_of({"embedding": fields, "head": None})
    embedding, config = model.embedding, model.config.embedding
    pixels = torch.randn(2, config.channels, *config.image_size, dtype=torch.float64)
    (high, wide) = config.patch_size
    whole = pixels
    if config.edges == "pad":
        whole = functional.pad(pixels, (0, -pixels.shape[3] % wide, 0, -pixels.shape[2] % high))
    rows, columns = whole.shape[2] // high, whole.shape[3] // wide
    patches = [
        torch.einsum("bchw,dchw->bd", whole[:, :, r * high : (r + 1) * high, c * wide : (c + 1) * wide], embedding.weight)
        for r in range(rows)
        for c in range(columns)
    ]
    x = torch.stack(patches, 1) + (0 if embedding.bias is None else embedding.bias)
    x = x if embedding.norm is None else embedding.norm(x)
    prefix = [token.expand(2, -1, -1) for token in (embedding.class_token, embedding.register_tokens) if token is not None]
    count = sum(token.shape[1] for token in prefix)
    joined, positions = torch.cat([*prefix, x], 1), torch.zeros(1, dtype=torch.float64)
    if config.position is not None and config.position.type == "sinusoidal":
        positions = embedding.position.at(Layout(), joined.shape[1]).double()
    elif config.position is not None:
        table = embedding.position.table
        if config.edges == "pad":  # the table is that of whole patches
            front = count if config.prefix_position else 0
            grid = table[front:].reshape(1, *config.grid, -1).permute(0, 3, 1, 2)
            grid = functional.interpolate(grid, (rows, columns), mode="bicubic").permute(0, 2, 3, 1).flatten(0, 2)
            table = torch.cat([table[:front], grid])
        positions = table if config.prefix_position else torch.cat([torch.zeros(count, 24, dtype=torch.float64), table])
    expected = joined + positions
    expected = expected if embedding.output_norm is None else embedding.output_norm(expected)
    found, layout = embedding(pixels)
    close(found, expected)
    assert (layout.prefix, layout.grid) == (count, (rows, columns))


def test_patch_dropout_keeps_the_prefix_and_a_share_of_the_patches(model_of: Model) -> None:
    model = model_of({"embedding": {"patch_dropout": 0.75, "registers": 1}})
    pixels = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    whole, _ = model.embedding(pixels)
    kept, layout = model.train().embedding(pixels)
    assert kept.shape == (2, 2 + 4, 24) and layout.grid is None
    assert torch.equal(kept[:, :2], whole[:, :2])
    for row in range(2):
        places = [int((whole[row] == token).all(1).nonzero()) for token in kept[row, 2:]]
        assert len(set(places)) == 4 and min(places) >= 2


@pytest.mark.parametrize("activation", ["tanh", "gelu", "identity"])
@pytest.mark.parametrize("size", [None, 7])
def test_pooler(model_of: Model, activation: str, size: int | None) -> None:
    model = model_of({"head": {"type": "pooler", "activation": activation, "size": size}})
    x = torch.randn(2, 9, 24, dtype=torch.float64)
    act = {"tanh": torch.tanh, "gelu": functional.gelu, "identity": lambda y: y}[activation]
    close(model.head(x, Layout())["pooler_output"], act(x[:, 0] @ model.head.output.weight.T + model.head.output.bias))
    assert model.head.output.out_features == (size or 24)


@pytest.mark.parametrize("fields", [{}, {"bias": False}, {"norm": "layer-norm"}, {"classes": 0}, {"dropout": 1.0}], ids=str)
def test_classifier(model_of: Model, fields: dict[str, Any]) -> None:
    head = model_of({"head": fields}).head
    x = torch.randn(2, 9, 24, dtype=torch.float64)
    pooled = x[:, 0] if head.norm is None else head.norm(x[:, 0])

    def scores(y: Tensor) -> Tensor:
        return y if head.output is None else nn.functional.linear(y, head.output.weight, head.output.bias)

    close(head(x, Layout())["logits"], scores(pooled))
    if fields.get("dropout"):
        close(head.train()(x, Layout())["logits"], scores(torch.zeros_like(pooled)))


@pytest.mark.parametrize("shared", [True, False])
def test_parallel_branches_read_the_same_tokens(shared: bool) -> None:
    change = {"stack.block": {"order": "parallel", "shared_norm": shared}, "stack.depth": 1}
    block, x = zoo.build("bert-tiny", change, dtype="float64").eval().stack.layers[0], torch.randn(2, 5, 128).double()
    normed = block.attention_norm(x)
    other = normed if shared else block.feedforward_norm(x)
    expected = x + block.attention(normed, Layout())[0] + block.feedforward(other)
    assert (block.feedforward_norm is None) == shared
    assert torch.equal(block(x, Layout())[0], expected)


def test_only_parallel_branches_can_share_a_norm() -> None:
    with pytest.raises(ConfigError, match=r"stack\.block\.shared_norm: the branches of order 'post' read different tokens"):
        zoo.build("bert-tiny", {"stack.block.shared_norm": True})


def test_positions_stand_where_they_act() -> None:
    with pytest.raises(ConfigError, match=r"attention\.position: 'learned' is added to the tokens, so it stands at embedding"):
        zoo.build("bert-tiny", {"stack.block.attention.position": {"type": "learned", "length": 9}})
    with pytest.raises(ConfigError, match=r"embedding\.position: 'rotary' acts inside of attention, so it stands at stack"):
        zoo.build("bert-tiny", {"embedding.position": "rotary"})
