"""Planted mistakes in decoders: each one is caught, and the module that it was planted in is named."""

import pytest
import torch
from planted import one_in_four, verified
from torch import nn

import zoo
import zoo.verification.run as run
from zoo.registry import make


def block(model, number=1):
    return model.stack.layers[number]


def set_eps(model):
    block(model).attention_norm.eps *= 3


def set_final_eps(model):
    model.stack.final_norm.eps *= 3


def no_final_norm(model):
    model.stack.final_norm.forward = lambda x: x


def other_activation(model):
    part = block(model).feedforward
    part.activation = "gelu" if part.activation == "gelu-tanh" else "gelu-tanh"


def post_norm(model):
    block(model).order = "post"


def parallel(model):
    block(model).order = "parallel"


def swap_norms(model):
    one = block(model)
    one.attention_norm, one.feedforward_norm = one.feedforward_norm, one.attention_norm


def swap_query_and_key(model):
    """Where they have as many heads."""
    attention = block(model, 0).attention
    attention.query, attention.key = attention.key, attention.query


def swap_gate_and_up(model):
    part = block(model, 0).feedforward
    part.gate, part.up = part.up, part.gate


def transposed_output(model):
    weight = block(model, 0).attention.output.weight
    weight.data = weight.data.T.contiguous()


def other_scale(model):
    block(model).attention.scale *= 1.001


def scale_of_another_layer(model):
    block(model).attention.scale = block(model, 0).attention.scale


def not_causal(model):
    block(model).attention.causal = False


def drop_query_bias(model):
    nn.init.zeros_(block(model, 0).attention.query.bias)


def drop_value_bias(model):
    nn.init.zeros_(block(model, 0).attention.value.bias)


def with_mask(model, change):
    attend = block(model).attention.attend
    block(model).attention.attend = lambda q, k, v, layout, weights: attend(
        q, k, v, layout._replace(mask=None if layout.mask is None else change(layout.mask), shared={}), weights
    )


def ignore_mask(model):
    with_mask(model, torch.ones_like)


def invert_mask(model):
    with_mask(model, lambda mask: ~mask)


def first_row_masks_all(model):
    with_mask(model, lambda mask: mask[:1].expand_as(mask))


def mask_lets_a_little_through(model):
    """Scores lowered by 20 instead of infinitely."""
    with_mask(model, lambda mask: torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, -20.0))


def heads_in_another_order(model):
    """Query heads 0, 2, 4, ... share a key, instead of neighbours."""
    attend = block(model).attention.attend
    groups = model.stack.layers[1].attention.heads // model.stack.layers[1].attention.kv_heads
    block(model).attention.attend = lambda q, k, v, layout, weights: attend(
        q, k.repeat(1, groups, 1, 1), v.repeat(1, groups, 1, 1), layout, weights
    )


def ignore_given_positions(model):
    forward = model.embedding.forward
    model.embedding.forward = lambda input_ids, position_ids=None, **others: forward(input_ids, **others)


def positions_of_padding_count(model):
    """Left padding counted as tokens, for the learned table alone."""
    position = model.embedding.position
    at = position.at
    position.at = lambda layout, tokens: at(layout._replace(positions=None), tokens)


def shift_positions(model):
    table = model.embedding.position.table
    table.data = table.data.roll(1, 0)


def ignore_segments(model):
    forward = model.embedding.forward
    model.embedding.forward = lambda input_ids, token_type_ids=None, **others: forward(input_ids, **others)


def rotary(model, **changes):
    attention = block(model).attention
    config = attention.position.config
    attention.position = make(
        type(config).model_validate({**config.model_dump(), **changes}), head_size=attention.head_size, heads=attention.heads
    )


def other_theta(model):
    rotary(model, theta=block(model).attention.position.config.theta * 1.01)


def interleaved(model):
    rotary(model, order="interleaved")


def half_of_the_head(model):
    rotary(model, fraction=0.5)


def no_scaling(model):
    rotary(model, scaling=None)


def scaling(model, **changes):
    rotary(model, scaling={**block(model).attention.position.config.scaling.model_dump(), **changes})


def other_factor(model):
    scaling(model, factor=block(model).attention.position.config.scaling.factor * 1.01)


def other_first_length(model):
    scaling(model, length=block(model).attention.position.config.scaling.length // 2)


def other_bound(model):
    scaling(model, fast=3.0)


def no_attention_factor(model):
    scaling(model, attention=1.0)


def turned_the_other_way(model):
    position = block(model).attention.position
    tables = position.tables
    position.tables = lambda layout, x: (tables(layout, x)[0], -tables(layout, x)[1])


def only_queries_are_turned(model):
    position = block(model).attention.position
    turned = position.turned
    position.turned = lambda q, k, layout: (turned(q, k, layout)[0], k)


def places_one_too_high_for_keys(model):
    position = block(model).attention.position
    turned = position.turned
    position.turned = lambda q, k, layout: (
        turned(q, k, layout)[0],
        turned(q, k, layout._replace(positions=layout.places(k.shape[2], k.device) + 1, shared={}))[1],
    )


def angles_in_double_precision(model):
    position = block(model).attention.position
    position.name = (*position.name, "double")
    position._angles = lambda layout, tokens, device: (
        layout.places(tokens, device)[..., None].double()
        / position.config.theta ** (torch.arange(0, position.size, 2).double() / position.size)
    )


def window_too_wide(model):
    block(model).attention.window += 1


def window_too_narrow(model):
    block(model).attention.window -= 1


def no_window(model):
    block(model).attention.window = 1000


def mean_is_taken_off(model):
    norm = block(model).attention_norm
    forward = norm.forward
    norm.forward = lambda x: forward(x - x.mean(-1, keepdim=True))


def normed_in_double_precision(model):
    block(model).attention_norm.precision = "same"


def untied(model):
    """Scores by a copy of the vectors that was not updated."""
    model.head.weight = nn.Parameter(model.embedding.table.detach() * 1.001)


def tied(model):
    model.head.weight = None


def pool_the_first_token(model):
    model.head.pool.forward = lambda x, layout: x[:, 0]


def pool_the_last_place(model):
    model.head.pool.forward = lambda x, layout: x[:, -1]


def with_places(model, change):
    """Another layout for the positions of layer 1, where tokens follow those of a cache."""
    position = block(model).attention.position
    turned = position.turned
    position.turned = lambda q, k, layout: turned(q, k, change(layout)._replace(shared={}) if layout.past else layout)


def new_tokens_start_at_0(model):
    with_places(model, lambda layout: layout._replace(past=0))


def new_tokens_are_one_too_far(model):
    with_places(model, lambda layout: layout._replace(past=layout.past + 1))


def padding_counts_for_new_tokens(model):
    with_places(model, lambda layout: layout._replace(positions=None))


def table_starts_at_0(model):
    position = model.embedding.position
    at = position.at
    position.at = lambda layout, tokens: at(layout._replace(past=0), tokens)


def table_starts_one_too_far(model):
    position = model.embedding.position
    at = position.at
    position.at = lambda layout, tokens: at(layout._replace(past=layout.past + (layout.past > 0)), tokens)


def padding_is_forgotten(model):
    """The tokens of the cache are all real."""
    attend = block(model).attention.attend

    def changed(q, k, v, layout, weights):
        if layout.mask is not None and layout.past:
            mask = layout.mask.clone()
            mask[..., : layout.past] = True
            layout = layout._replace(mask=mask, shared={})
        return attend(q, k, v, layout, weights)

    block(model).attention.attend = changed


def with_cache(model, change):
    attend = block(model).attention.attend

    class Changed:
        def __init__(self, cache):
            self.cache = cache

        def extend(self, key, value, keep=None):
            return change(self.cache, key, value, keep)

    block(model).attention.attend = lambda q, k, v, layout, weights: attend(
        q, k, v, layout if layout.cache is None else layout._replace(cache=Changed(layout.cache)), weights
    )


def keeps_one_too_few(model):
    with_cache(model, lambda cache, key, value, keep: cache.extend(key, value, keep - 1))


def values_in_another_order(model):
    """Those of the past, backwards."""

    def change(cache, key, value, keep):
        keys, values = cache.extend(key, value, keep)
        past = values.shape[2] - value.shape[2]
        return keys, torch.cat([values[:, :, :past].flip(2), value], 2)

    with_cache(model, change)


ATTENTION, NORM, FEEDFORWARD = (f"stack.layers.1.{part}" for part in ("attention", "attention_norm", "feedforward"))
ANY = {
    set_eps: NORM,
    set_final_eps: "stack.final_norm",
    no_final_norm: "stack.final_norm",
    other_activation: FEEDFORWARD,
    post_norm: "stack.layers.1",
    parallel: "stack.layers.1",
    swap_norms: NORM,
    other_scale: ATTENTION,
    not_causal: ATTENTION,
    ignore_mask: ATTENTION,
    invert_mask: ATTENTION,
    first_row_masks_all: ATTENTION,
    mask_lets_a_little_through: ATTENTION,
}
GPT2 = {
    **ANY,
    swap_query_and_key: "stack.layers.0.attention",
    transposed_output: "stack.layers.0.attention",
    drop_query_bias: "stack.layers.0.attention",
    drop_value_bias: "stack.layers.0.attention",
    ignore_given_positions: "embedding",
    positions_of_padding_count: "embedding",
    shift_positions: "embedding",
    ignore_segments: "embedding",
    table_starts_at_0: "embedding",
    table_starts_one_too_far: "embedding",
    padding_is_forgotten: ATTENTION,
    values_in_another_order: ATTENTION,
    untied: "head",
}
LLAMA = {
    **ANY,
    heads_in_another_order: ATTENTION,
    other_theta: ATTENTION,
    interleaved: ATTENTION,
    half_of_the_head: ATTENTION,
    turned_the_other_way: ATTENTION,
    only_queries_are_turned: ATTENTION,
    places_one_too_high_for_keys: ATTENTION,
    angles_in_double_precision: ATTENTION,
    swap_gate_and_up: "stack.layers.0.feedforward",
    mean_is_taken_off: NORM,
    normed_in_double_precision: NORM,
    new_tokens_start_at_0: ATTENTION,
    new_tokens_are_one_too_far: ATTENTION,
    padding_counts_for_new_tokens: ATTENTION,
    padding_is_forgotten: ATTENTION,
    values_in_another_order: ATTENTION,
    tied: "head",
}
LLAMA_3 = {
    no_scaling: ATTENTION, other_factor: ATTENTION, other_first_length: ATTENTION, other_bound: ATTENTION, untied: "head",
}  # fmt: skip
INVERSE = {"stack.pattern": [{"attention": {"scale": 8**-0.5}}, {"attention": {"scale": 8**-0.5 / 2}}]}
DYNAMIC = {"stack.block.attention.position.scaling": {"type": "dynamic", "factor": 2.0, "length": 8192}}
YARN = {"stack.block.attention.position.scaling": {"type": "yarn", "factor": 4.0, "length": 8192, "truncate": False}}
SMALL_GPT = {"stack.width": 24, "stack.block.attention.heads": 3, "stack.depth": 2}
CLASSES = {"head": {"type": "classifier", "bias": False, "classes": 5, "pool": {"type": "last-token", "padding": 3}}}
CASES = [
    *(("gpt2", {}, *each) for each in GPT2.items()),
    ("gpt2", {**SMALL_GPT, **INVERSE}, scale_of_another_layer, ATTENTION),
    *(("llama-3-8b", {}, *each) for each in LLAMA.items()),
    *(("llama-3.2-1b", {}, *each) for each in LLAMA_3.items()),
    *(("llama-3-8b", DYNAMIC, mutation, ATTENTION) for mutation in (no_scaling, other_factor, other_first_length)),
    *(("llama-3-8b", YARN, mutation, ATTENTION)
      for mutation in (no_scaling, other_factor, other_first_length, other_bound, no_attention_factor)),
    *(("mistral-7b", {}, mutation, ATTENTION)
      for mutation in (window_too_wide, window_too_narrow, no_window, not_causal, heads_in_another_order, interleaved,
                       ignore_mask, invert_mask, first_row_masks_all, other_scale, new_tokens_start_at_0,
                       new_tokens_are_one_too_far, padding_counts_for_new_tokens, padding_is_forgotten, keeps_one_too_few)),
    *(("qwen2.5-0.5b", {}, mutation, "stack.layers.0.attention") for mutation in (drop_query_bias, drop_value_bias)),
    *(("gpt2", CLASSES, mutation, "logits") for mutation in (pool_the_first_token, pool_the_last_place)),
]  # fmt: skip


@pytest.mark.parametrize(("preset", "overrides", "mutation", "name"), one_in_four(CASES))
@torch.no_grad()
def test_a_planted_mistake_is_caught_and_named(monkeypatch, preset, overrides, mutation, name):
    report = verified(monkeypatch, mutation, preset, overrides)
    assert not report.passed
    assert report.first_divergence == name, str(report)


@pytest.mark.parametrize(
    ("preset", "overrides"),
    [
        ("gpt2", {}), ("gpt2", {**SMALL_GPT, **INVERSE}), ("gpt2", CLASSES), ("llama-3-8b", {}), ("llama-3.2-1b", {}),
        ("llama-3-8b", DYNAMIC), ("llama-3-8b", YARN), ("mistral-7b", {}), ("qwen2.5-0.5b", {}),
    ],
)  # fmt: skip
def test_nothing_is_caught_where_nothing_is_planted(monkeypatch, preset, overrides):
    assert verified(monkeypatch, lambda model: None, preset, overrides).passed


def test_an_untied_head_is_seen_in_the_gradients(monkeypatch):
    """Equal values, but the scores no longer pull at the embedding."""

    def detach(model):
        model.head.weight = nn.Parameter(model.embedding.table.detach().clone())

    load = run.load_model
    monkeypatch.setattr(run, "load_model", lambda *arguments: detach(model := load(*arguments)) or model)
    monkeypatch.setattr(run, "_export", lambda *arguments: None)
    report = zoo.verify("gpt2", reference="transformers", tiny=True, training=False)
    assert not report.passed and report.first_divergence == "gradient of embedding.table"


@pytest.mark.parametrize(("preset", "overrides"), [
    ("gpt2", {"stack.block.norm.eps": 1e-3}), ("gpt2", {"stack.block.feedforward.activation": "gelu"}),
    ("gpt2", {"stack.block.attention.causal": False}), ("gpt2", {"stack.block.order": "parallel"}),
    ("llama-2-7b", {"stack.block.attention.position.order": "interleaved"}),
    ("llama-2-7b", {"stack.block.attention.position.theta": 500000.0}),
    ("llama-2-7b", {"stack.block.norm.precision": "same"}),
    ("llama-2-7b", {"stack.block.feedforward.activation": "gelu"}),
    ("mistral-7b", {"stack.block.attention.window": 4}), ("mistral-7b", {"stack.block.attention.window": 6}),
])  # fmt: skip
def test_the_field_at_fault_is_suspected(monkeypatch, preset, overrides):
    """A config read wrongly, field by field: the reference is built from the right one."""
    load = run.load_model
    monkeypatch.setattr(run, "load_model", lambda source, changes, device, dtype: load(source, overrides, device, dtype))
    monkeypatch.setattr(run, "_export", lambda *arguments: None)
    report = zoo.verify(preset, tiny=True, reference="transformers", training=False, gradients=False)
    (field,) = overrides
    assert any(field in suspect and "would agree" in suspect for suspect in report.comparisons[0].suspects), str(report)
