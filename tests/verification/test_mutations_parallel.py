"""Planted mistakes in parallel decoders: each one is caught, and the module that it was planted in is named."""

import pytest
import torch
from planted import one_in_four, verified
from torch import nn

from zoo.checkpoint.huggingface_falcon import ALIBI
from zoo.registry import make


def block(model, number=1):
    return model.stack.layers[number]


def set_eps(model):
    block(model).attention_norm.eps *= 3


def other_activation(model):
    block(model).feedforward.activation = "relu"


def one_after_another(model):
    """The feed-forward reads what the attention has added to."""
    one = block(model)
    one.feedforward_norm = one.feedforward_norm or one.attention_norm
    one.order = "pre"


def at_the_same_time(model):
    block(model).order = "parallel"


def swap_norms(model):
    one = block(model)
    one.attention_norm, one.feedforward_norm = one.feedforward_norm, one.attention_norm


def one_norm_for_both(model):
    block(model).feedforward_norm = None


def post_norm(model):
    block(model).order = "post"


def the_branch_reads_what_is_not_normed(model):
    part = block(model).feedforward
    forward, norm = part.forward, block(model).feedforward_norm or block(model).attention_norm
    part.forward = lambda x: forward((x - norm.bias) / norm.weight)


def swap_query_and_key(model):
    attention = block(model).attention
    attention.query, attention.key = attention.key, attention.query


def swap_key_and_value(model):
    attention = block(model).attention
    attention.key, attention.value = attention.value, attention.key


def mixed_rows(model):
    """Queries, keys and values one after another, where theirs stand head by head."""
    attention = block(model).attention
    parts = (attention.query, attention.key, attention.value)
    whole = torch.cat([part.weight.unflatten(0, (attention.kv_heads, -1)) for part in parts], 1).flatten(0, 1)
    for part, weight in zip(parts, whole.split([part.weight.shape[0] for part in parts])):
        part.weight.data = weight.clone()


def heads_in_another_order(model):
    attention = block(model).attention
    attend, groups = attention.attend, attention.heads // attention.kv_heads
    attention.attend = lambda q, k, v, layout, weights: attend(
        q, k.repeat(1, groups, 1, 1), v.repeat(1, groups, 1, 1), layout, weights
    )


def drop_value_bias(model):
    nn.init.zeros_(block(model).attention.value.bias)


def drop_output_bias(model):
    nn.init.zeros_(block(model).attention.output.bias)


def drop_inner_bias(model):
    nn.init.zeros_(block(model).feedforward.up.bias)


def drop_bias_of_scores(model):
    nn.init.zeros_(model.head.bias)


def untied(model):
    model.head.weight = nn.Parameter(model.embedding.table.detach() * 1.001)


def tied(model):
    model.head.weight = None


def other_scale(model):
    block(model).attention.scale *= 1.001


def scale_of_the_scores(model):
    model.head.scale *= 1.001


def not_causal(model):
    block(model).attention.causal = False


def ignore_mask(model):
    attend = block(model).attention.attend
    block(model).attention.attend = lambda q, k, v, layout, weights: attend(
        q, k, v, layout._replace(mask=None if layout.mask is None else torch.ones_like(layout.mask), shared={}), weights
    )


def position(model, **changes):
    attention = block(model).attention
    config = attention.position.config
    attention.position = make(
        type(config).model_validate({**config.model_dump(), **changes}), head_size=attention.head_size, heads=attention.heads
    )


def interleaved(model):
    position(model, order="interleaved")


def halves(model):
    position(model, order="halves")


def whole_heads(model):
    position(model, fraction=1.0)


def another_share(model):
    position(model, fraction=0.5)


def other_theta(model):
    position(model, theta=10100.0)


def last_features_are_turned(model):
    """Those behind the share, instead of those in front."""
    part = block(model).attention.position
    turned = part.turned
    part.turned = lambda q, k, layout: tuple(each.flip(-1) for each in turned(q.flip(-1), k.flip(-1), layout))


def angles_in_double_precision(model):
    part = block(model).attention.position
    part.name = (*part.name, "double")
    part._angles = lambda layout, tokens, device: (
        layout.places(tokens, device)[..., None].double() / part.config.theta ** (torch.arange(0, part.size, 2) / part.size)
    )


def new_tokens_start_at_0(model):
    part = block(model).attention.position
    turned = part.turned
    part.turned = lambda q, k, layout: turned(q, k, layout._replace(past=0, shared={}))


def slots_are_counted(model):
    position(model, count="all")


def not_rounded(model):
    position(model, rounding="float32")


def not_scaled(model):
    position(model, scaled=False)


def distances_are_rounded(model):
    position(model, form="distance")


def steeper(model):
    part = block(model).attention.position
    part.slopes = tuple(2 * slope for slope in part.slopes)
    part.name = (*part.name, "steeper")  # a bias of its own


def ignore_segments(model):
    forward = model.embedding.forward
    model.embedding.forward = lambda input_ids, token_type_ids=None, **others: forward(input_ids, **others)


def no_final_norm(model):
    model.stack.final_norm.forward = lambda x: x


ATTENTION, NORM, FEEDFORWARD, WHOLE = (
    f"stack.layers.1{part}" for part in (".attention", ".attention_norm", ".feedforward", "")
)
ANY = {
    set_eps: NORM, other_activation: FEEDFORWARD, other_scale: ATTENTION, not_causal: ATTENTION, ignore_mask: ATTENTION,
    no_final_norm: "stack.final_norm",
}  # fmt: skip
ROTARY = {other_theta: ATTENTION, angles_in_double_precision: ATTENTION, new_tokens_start_at_0: ATTENTION}
FALCON = {
    **ANY, **ROTARY, one_after_another: WHOLE, swap_key_and_value: ATTENTION, interleaved: ATTENTION, another_share: ATTENTION,
    untied: "head", the_branch_reads_what_is_not_normed: FEEDFORWARD,
}  # fmt: skip
FALCON_40B = {
    one_after_another: WHOLE, swap_norms: NORM, one_norm_for_both: WHOLE, heads_in_another_order: ATTENTION,
    mixed_rows: ATTENTION, swap_key_and_value: ATTENTION,
}  # fmt: skip
FALCON_ALIBI = {
    slots_are_counted: ATTENTION, not_rounded: ATTENTION, not_scaled: ATTENTION, distances_are_rounded: ATTENTION,
    steeper: ATTENTION, ignore_mask: ATTENTION,
}  # fmt: skip
GPTJ = {
    **ANY, **ROTARY, one_after_another: WHOLE, swap_query_and_key: ATTENTION, halves: ATTENTION,
    whole_heads: ATTENTION, another_share: ATTENTION, last_features_are_turned: ATTENTION, drop_inner_bias: FEEDFORWARD,
    drop_bias_of_scores: "head", tied: "head", ignore_segments: "embedding",
}  # fmt: skip
NEOX = {
    **ANY, **ROTARY, one_after_another: WHOLE, swap_norms: NORM, one_norm_for_both: WHOLE, mixed_rows: ATTENTION,
    swap_query_and_key: ATTENTION, drop_value_bias: ATTENTION, drop_output_bias: ATTENTION, drop_inner_bias: FEEDFORWARD,
    interleaved: ATTENTION, whole_heads: ATTENTION, last_features_are_turned: ATTENTION, tied: "head",
}  # fmt: skip
PALM = {**ANY, halves: ATTENTION, one_after_another: WHOLE, scale_of_the_scores: "logits", untied: "logits"}
SEQUENTIAL = {"stack.block.order": "pre", "stack.block.shared_norm": False}
ALIBI_OF_FALCON = {"stack.block.attention.position": {**ALIBI, "length": 2048}}
CASES = [
    *(("falcon-7b", {}, *each) for each in FALCON.items()),
    *(("falcon-7b", SEQUENTIAL, *each) for each in {at_the_same_time: WHOLE, swap_norms: NORM, post_norm: WHOLE}.items()),
    *(("falcon-7b", ALIBI_OF_FALCON, *each) for each in FALCON_ALIBI.items()),
    *(("falcon-40b", {}, *each) for each in FALCON_40B.items()),
    *(("gpt-j-6b", {}, *each) for each in GPTJ.items()),
    *(("gpt-neox-20b", {}, *each) for each in NEOX.items()),
    *(("gpt-neox-20b", SEQUENTIAL, *each) for each in {at_the_same_time: WHOLE, swap_norms: NORM}.items()),
    *(("palm-62b", {}, *each) for each in PALM.items()),
]


@pytest.mark.parametrize(("preset", "overrides", "mutation", "name"), one_in_four(CASES))
@torch.no_grad()
def test_a_planted_mistake_is_caught_and_named(monkeypatch, preset, overrides, mutation, name):
    report = verified(monkeypatch, mutation, preset, overrides)
    assert not report.passed
    assert report.first_divergence == name, str(report)


@pytest.mark.parametrize(
    ("preset", "overrides"),
    [
        ("falcon-7b", {}), ("falcon-7b", SEQUENTIAL), ("falcon-7b", ALIBI_OF_FALCON), ("falcon-40b", {}), ("gpt-j-6b", {}),
        ("gpt-neox-20b", {}), ("gpt-neox-20b", SEQUENTIAL), ("palm-62b", {}),
    ],
)  # fmt: skip
def test_nothing_is_caught_where_nothing_is_planted(monkeypatch, preset, overrides):
    assert verified(monkeypatch, lambda model: None, preset, overrides).passed
