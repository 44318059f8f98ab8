"""Relative buckets against transformers: which bucket, which number, once per stack, over a cache, in local attention."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from zoo import kernel
from zoo.errors import ConfigError
from zoo.kernel.local_band import BLOCK
from zoo.position.relative_bucket import RelativeBucketPosition

Make = Callable[..., Any]
SETTINGS = [(32, 128), (8, 10), (4, 3), (5, 7), (6, 30), (16, 64), (32, 256), (64, 128), (7, 500), (128, 129), (12, 9)]


def part(buckets: int = 8, distance: int = 20, heads: int = 3, causal: bool = False) -> RelativeBucketPosition:
    config = RelativeBucketPosition.Config(buckets=buckets, distance=distance)
    position = RelativeBucketPosition(config, heads=heads, causal=causal).double()
    torch.nn.init.normal_(position.table)
    return position


def theirs_of(position: RelativeBucketPosition) -> Any:
    """T5's own attention with the same table."""
    from transformers import T5Config
    from transformers.models.t5.modeling_t5 import T5Attention

    config = T5Config(
        relative_attention_num_buckets=position.config.buckets, relative_attention_max_distance=position.config.distance,
        num_heads=position.table.shape[1], is_decoder=position.causal,
    )  # fmt: skip
    theirs = T5Attention(config, has_relative_attention_bias=True, layer_idx=0, is_causal=position.causal).double()
    theirs.relative_attention_bias.weight.data.copy_(position.table.data)
    return theirs


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("buckets", "distance"), SETTINGS)
def test_every_distance_falls_into_the_bucket_of_t5(buckets: int, distance: int, causal: bool) -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    apart = torch.cat([torch.arange(-1500, 1500), torch.tensor([-100_000, 100_000])])
    found = part(buckets, distance, causal=causal).bucket(apart)
    expected = T5Attention._relative_position_bucket(apart, not causal, buckets, distance)
    assert torch.equal(found, expected) and found.max() < buckets


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("queries", "past"), [(1, 0), (9, 0), (150, 0), (1, 40), (5, 33)])
def test_biases_and_their_gradients_are_those_of_t5(causal: bool, queries: int, past: int) -> None:
    position, keys = part(causal=causal), queries + past
    theirs, key_at = theirs_of(position), torch.arange(keys)[None]
    found, expected = position.bias(key_at[:, past:], key_at), theirs.compute_bias(queries, keys, past_seen_tokens=past)
    assert found.shape == (1, 3, queries, keys) and torch.equal(found, expected) and found.is_contiguous()
    direction = torch.randn(found.shape, dtype=torch.float64)
    (found * direction).sum().backward()
    (expected * direction).sum().backward()
    assert (position.table.grad - theirs.relative_attention_bias.weight.grad).abs().max() < 1e-11


def test_places_need_not_follow_one_another() -> None:
    position = part()
    generator = torch.Generator().manual_seed(0)
    query_at, key_at = (torch.randint(0, 60, (4, number), generator=generator) for number in (6, 11))
    found = position.bias(query_at, key_at)
    buckets = position.bucket(key_at[:, None, :] - query_at[:, :, None])
    assert torch.equal(found, position.table[buckets].permute(0, 3, 1, 2))
    row, gap = torch.arange(5)[None], torch.tensor([[3, 4, 6]])
    for first, second in ((row, gap), (gap, row), (row.flip(1), row), (row.expand(2, -1), row + 2)):
        pairs = second[:, None, :] - first[:, :, None]
        assert torch.equal(position.bias(first, second), position.table[position.bucket(pairs)].permute(0, 3, 1, 2))
    assert torch.equal(position.bias(row + 70, row), position.bias(row + 75, row + 5))  # only what is between them counts


@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (64, 128)])
def test_float32_and_half_precision_have_the_same_buckets(buckets: int, distance: int) -> None:
    position, at = part(buckets, distance), torch.arange(300)[None]
    exact = position.bias(at, at)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert torch.equal(copy.deepcopy(position).to(dtype).bias(at, at), exact.to(dtype))


STACK = {
    "type": "uniform", "width": 24, "depth": 4, "final_norm": "rms-norm",
    "position": {"type": "relative-bucket", "buckets": 8, "distance": 20},
    "block": {"norm": "rms-norm", "attention": {"type": "full", "heads": 3}, "feedforward": {"type": "mlp", "hidden": 40}},
}  # fmt: skip


@pytest.fixture
def model(redraw: Make) -> Make:
    """A function that builds a transformer with one position for all layers, in float64 and eval mode, redrawn."""

    def build(changes: dict[str, Any] | None = None) -> Any:
        fields = {"type": "transformer", "embedding": {"type": "tokens", "vocabulary": 31}, "stack": STACK}
        return redraw(zoo.build(fields, changes or {}, dtype="float64")).eval()

    return build


def counted(position: Any) -> list[tuple[int, ...]]:
    """The shapes of the biases that a position makes from now on."""
    made: list[tuple[int, ...]] = []
    bias = position.bias

    def noted(query_at: Tensor, key_at: Tensor) -> Tensor:
        found: Tensor = bias(query_at, key_at)
        made.append(tuple(found.shape))
        return found

    position.bias = noted
    return made


CAUSAL = {"stack.block.attention.causal": True}
IDS = torch.randint(0, 31, (2, 40), generator=torch.Generator().manual_seed(1))
REAL = (torch.arange(40) < torch.tensor([[40], [23]])).long()


@pytest.mark.parametrize("changes", [{}, CAUSAL])
@pytest.mark.parametrize("mask", [None, REAL])
def test_a_stack_computes_its_biases_once(model: Make, changes: dict[str, Any], mask: Tensor | None) -> None:
    ours = model(changes)
    tables = [name for name, _ in ours.named_parameters() if "position" in name]
    assert tables == ["stack.position.table"] and len(ours.stack.layers) == 4
    made = counted(ours.stack.position)
    ours(IDS, attention_mask=mask)
    assert made == [(1, 3, 40, 40)]
    ours(IDS, attention_mask=mask, output_attentions=True)
    assert len(made) == 2
    ours.train()(IDS, attention_mask=mask).last_hidden_state.sum().backward()
    assert len(made) == 3


def test_decoding_computes_one_row_once(model: Make) -> None:
    ours = model(CAUSAL)
    whole, made = ours(IDS).last_hidden_state, counted(ours.stack.position)
    cache, parts = ours.new_cache(), []
    for start, stop in ((0, 17), (17, 18), (18, 38), (38, 39), (39, 40)):
        parts.append(ours(IDS[:, start:stop], past_key_values=cache).last_hidden_state)
    assert (torch.cat(parts, 1) - whole).abs().max() < 1e-13
    assert made == [(1, 3, 17, 17), (1, 3, 1, 18), (1, 3, 20, 38), (1, 3, 1, 39), (1, 3, 1, 40)]


def test_layers_with_a_position_of_their_own_do_not_share_it(model: Make) -> None:
    own = {"stack.position": None, "stack.block.attention.position": {"type": "relative-bucket", "buckets": 8, "distance": 20}}
    ours = model(own)
    made = [counted(layer.attention.position) for layer in ours.stack.layers]
    shared = model()
    for layer in ours.stack.layers:
        layer.attention.position.table.data.copy_(shared.stack.position.table)
    others = {name: value for name, value in shared.state_dict().items() if "position" not in name}
    assert not ours.load_state_dict(others, strict=False).unexpected_keys
    assert (ours(IDS).last_hidden_state - shared(IDS).last_hidden_state).abs().max() < 1e-13
    assert [len(each) for each in made] == [1, 1, 1, 1]


@pytest.mark.parametrize("kind", ["full", "local"])
@pytest.mark.parametrize("causal", [False, True])
def test_gradient_checkpointing_changes_no_gradient(model: Make, kind: str, causal: bool) -> None:
    """Though each block makes its biases anew, and the backward pass once more."""
    window = {"stack.block.attention.window": 5} if kind == "local" else {}
    ours = model({"stack.block.attention.type": kind, "stack.block.attention.causal": causal, **window}).train()

    def gradients() -> dict[str, Tensor]:
        ours.zero_grad()
        found = ours(IDS, attention_mask=REAL).last_hidden_state
        (found * torch.linspace(-1, 1, found.numel(), dtype=torch.float64).view_as(found)).sum().backward()
        return {name: parameter.grad.clone() for name, parameter in ours.named_parameters()}

    plain = gradients()
    made = counted(ours.stack.position)
    ours.gradient_checkpointing()
    again = gradients()
    assert len(made) == 8 and plain["stack.position.table"].abs().max() > 0.01
    assert all((plain[name] - again[name]).abs().max() < 1e-11 for name in plain)


def test_a_model_with_relative_buckets_equals_its_formula(model: Make) -> None:
    ours = model({"stack.depth": 1})
    layer, x = ours.stack.layers[0], ours.embedding.table[IDS]
    normed = layer.attention_norm(x)
    attention = layer.attention
    query, key, value = (
        each(normed).unflatten(2, (3, 8)).transpose(1, 2) for each in (attention.query, attention.key, attention.value)
    )
    at = torch.arange(40)
    bias = ours.stack.position.table[ours.stack.position.bucket(at - at[:, None])].permute(2, 0, 1)
    scores = query @ key.mT * 8**-0.5 + bias  # which is not scaled with the scores
    scores = scores.masked_fill(REAL[:, None, None, :] == 0, -torch.inf)
    x = x + attention.output((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))
    x = ours.stack.final_norm(x + layer.feedforward(layer.feedforward_norm(x)))
    found = ours(IDS, attention_mask=REAL, output_attentions=True)
    assert (found.last_hidden_state - x).abs().max() < 1e-13
    assert (found.attentions[0] - scores.softmax(-1)).abs().max() < 1e-14


LONG = torch.randint(0, 31, (2, 2 * BLOCK + 37), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [7, 60, BLOCK + 20, 1000])
@pytest.mark.parametrize("padded", [False, True])
def test_local_attention_learns_the_same_numbers(model: Make, causal: bool, window: int, padded: bool) -> None:
    """Over several blocks, against the weights of all pairs, forward and backward, in each of the kernel's ways."""
    changes = {"stack.depth": 2, "stack.block.attention.type": "local", "stack.block.attention.window": window}
    ours = model({**changes, "stack.block.attention.causal": causal})
    real = (torch.arange(LONG.shape[1]) < torch.tensor([[LONG.shape[1]], [101]])).long() if padded else None

    def result(**options: Any) -> tuple[Tensor, Tensor]:
        ours.zero_grad()
        found = ours(LONG, attention_mask=real, **options).last_hidden_state
        (found * torch.linspace(-1, 1, found.numel(), dtype=torch.float64).view_as(found)).sum().backward()
        return found.detach(), ours.stack.position.table.grad.clone()

    expected = result(output_attentions=True)
    with kernel.plain():
        plain = result()
    for found in (result(), plain):
        assert (found[0] - expected[0]).abs().max() < 1e-12
        assert (found[1] - expected[1]).abs().max() < 1e-10 * expected[1].abs().max()
    assert expected[1].abs().max() > 0.1


def test_local_attention_goes_on_from_a_cache(model: Make) -> None:
    changes = {"stack.block.attention.type": "local", "stack.block.attention.window": 6, **CAUSAL}
    ours = model(changes)
    cache = ours.new_cache()
    parts = [ours(each, past_key_values=cache).last_hidden_state for each in IDS.split([11, 1, 1, 20, 7], 1)]
    assert (torch.cat(parts, 1) - ours(IDS).last_hidden_state).abs().max() < 1e-13


def test_bfloat16_and_autocast_stay_near(model: Make) -> None:
    ours = model().float()
    exact = ours(IDS, attention_mask=REAL).last_hidden_state
    with torch.autocast("cpu", torch.bfloat16):
        near = ours(IDS, attention_mask=REAL).last_hidden_state
        near.sum().backward()
    assert ours.stack.position.table.grad.isfinite().all()
    whole = ours.bfloat16()(IDS, attention_mask=REAL).last_hidden_state
    assert whole.dtype == torch.bfloat16
    for found in (near, whole):
        error = (found.float() - exact).norm() / exact.norm()
        assert error < 0.05, error


def test_it_can_be_exported(model: Make) -> None:
    ours = model({"stack.depth": 2})
    exported = torch.export.export(ours, (IDS,), strict=False).module()
    assert (exported(IDS).last_hidden_state - ours(IDS).last_hidden_state).abs().max() < 1e-12


@pytest.mark.parametrize(("changes", "message"), [
    ({"stack.position.buckets": 3}, "3 buckets for two directions leave 1 for each; 4 would do"),
    ({"stack.position.buckets": 1}, "buckets"),
    ({"stack.position.distance": 2}, "2 of the 4 buckets of a direction are of a single distance each"),
    ({"stack.position.distance": 4, **CAUSAL}, "4 of the 8 buckets"),
    ({"stack.position.distance": 0}, "distance"),
    ({"embedding.position": "relative-bucket"}, "acts inside of attention"),
    ({"stack.position": "learned"}, "stands at embedding.position"),
    ({"stack.pattern": [{}, {"attention": {"heads": 6}}]}, "layers with different heads cannot share it"),
    ({"stack.pattern": [{}, {"attention": {"causal": True}}]}, "cannot share it"),
    ({"stack.padding": "skip"}, "cannot leave padding out"),
])  # fmt: skip
def test_what_cannot_be_is_refused(model: Make, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model(changes)


def test_fresh_tables_follow_the_initialisation() -> None:
    fields = {"type": "transformer", "embedding": {"type": "tokens", "vocabulary": 31}, "stack": {**STACK, "depth": 1}}
    large = {"stack.position.buckets": 400, "stack.position.distance": 4000, "stack.width": 48}
    for changes, std in (({"init": "normal"}, 0.02), ({"init": {"type": "fan-in", "factor": 3.0}}, 3 * 48**-0.5), (
        {"init": "fan-in", "stack.position.std": 0.7}, 0.7,
    )):  # fmt: skip
        table = zoo.build(fields, {**large, **changes}).stack.position.table
        assert table.std().item() == pytest.approx(std, rel=0.1) and abs(table.mean().item()) < 0.15 * std
