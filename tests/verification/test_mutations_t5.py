"""Planted mistakes in T5: each one is caught, and the module that it was planted in is named."""

import pytest
import torch
from planted import one_in_four, plant
from torch.nn import functional

import zoo
import zoo.verification.run as run


def block(model, side="encoder", number=1):
    return getattr(model, side).stack.layers[number]


def set_eps(model):
    block(model).attention_norm.eps *= 3


def set_eps_of_the_norm_before_cross_attention(model):
    block(model, "decoder").cross_attention_norm.eps *= 3


def set_final_eps(model):
    model.encoder.stack.final_norm.eps *= 3


def normed_in_double_precision(model):
    block(model).feedforward_norm.precision = "same"


def normed_in_single_precision(model):
    """As Llama's: not only the mean of squares is of float32."""
    block(model).feedforward_norm.precision = "float32"


def mean_taken_off(model):
    norm = block(model).attention_norm
    forward = norm.forward
    norm.forward = lambda x: forward(x - x.mean(-1, keepdim=True))


def scaled_scores(model):
    block(model).attention.scale = block(model).attention.head_size ** -0.5


def scaled_scores_across(model):
    block(model, "decoder").cross_attention.scale = 8**-0.5


def encoder_counts_one_way(model):
    model.encoder.stack.position.causal = True


def decoder_counts_both_ways(model):
    model.decoder.stack.position.causal = False


def other_distance(model):
    position = model.encoder.stack.position
    position.config = position.config.model_copy(update={"distance": 256})


def other_buckets(model):
    position = model.encoder.stack.position
    position.config = position.config.model_copy(update={"buckets": 30})


def directions_swapped(model):
    position = model.encoder.stack.position
    bucket = position.bucket
    position.bucket = lambda apart: bucket(-apart)


def one_bucket_further(model):
    position = model.decoder.stack.position
    bucket = position.bucket
    position.bucket = lambda apart: (bucket(apart) + 1).clamp(max=position.config.buckets - 1)


def bias_of_each_head_rolled(model):
    position = model.decoder.stack.position
    bias = position.bias
    position.bias = lambda query_at, key_at: bias(query_at, key_at).roll(1, 1)


def new_tokens_start_at_0(model):
    position = model.decoder.stack.position
    bias = position.bias
    position.bias = lambda query_at, key_at: bias(query_at - query_at[:, :1], key_at)


def with_layout(part, change):
    attend = part.attend
    part.attend = lambda q, k, v, layout, weights: attend(q, k, v, change(layout), weights)


def bias_in_the_first_layer_alone(model):
    with_layout(block(model).attention, lambda layout: layout._replace(position=None, shared={}))


def bias_across_too(model):
    part, position = block(model, "decoder").cross_attention, model.encoder.stack.position
    with_layout(part, lambda layout: layout._replace(position=position, shared={}))


def bias_of_the_other_stack(model):
    model.decoder.stack.position.table.data.copy_(model.encoder.stack.position.table.data)


def masked(change):
    return lambda layout: layout._replace(mask=None if layout.mask is None else change(layout.mask), shared={})


def encoder_ignores_padding(model):
    with_layout(block(model).attention, masked(torch.ones_like))


def source_padding_is_seen(model):
    with_layout(block(model, "decoder").cross_attention, masked(torch.ones_like))


def first_row_masks_all_sources(model):
    with_layout(block(model, "decoder").cross_attention, masked(lambda mask: mask[:1].expand_as(mask)))


def decoder_ignores_padding(model):
    with_layout(block(model, "decoder").attention, masked(torch.ones_like))


def decoder_sees_what_follows(model):
    block(model, "decoder").attention.causal = False


def encoder_sees_only_what_precedes(model):
    block(model).attention.causal = True


def across_sees_only_what_precedes(model):
    block(model, "decoder").cross_attention.causal = True


def swap(first, second):
    first.data, second.data = second.data.clone(), first.data.clone()


def swap_query_and_key(model):
    part = block(model, "decoder", 0).attention
    swap(part.query.weight, part.key.weight)


def swap_key_and_value_across(model):
    part = block(model, "decoder").cross_attention
    swap(part.key.weight, part.value.weight)


def swap_attentions(model):
    own = block(model, "decoder")
    for name in ("query", "key", "value", "output"):
        swap(getattr(own.attention, name).weight, getattr(own.cross_attention, name).weight)


def swap_norms(model):
    own = block(model, "decoder")
    swap(own.attention_norm.weight, own.cross_attention_norm.weight)


def heads_in_another_order(model):
    weight = block(model).attention.output.weight
    weight.data = weight.data.unflatten(1, (-1, 8)).roll(1, 1).flatten(1)


def no_cross_attention(model):
    block(model, "decoder").cross_attention.output.weight.data.zero_()


def other_activation(model):
    block(model).feedforward.activation = "silu"


def exact_gelu(model):
    block(model, "decoder").feedforward.activation = "gelu"


def swap_gate(model):
    part = block(model).feedforward
    swap(part.gate.weight, part.up.weight)


def not_scaled_before_scoring(model):
    model.decoder.head.scale = None


def scaled_before_scoring(model):
    model.decoder.head.scale = model.decoder.stack.width**-0.5


def scored_by_the_embedding(model):
    model.decoder.head.weight.data.copy_(model.encoder.embedding.table.data)


def embedding_scaled(model):
    part = model.decoder.embedding
    part.config = part.config.model_copy(update={"scale": 2.0})


def decoder_reads_one_token_too_far(model):
    forward = model.decoder.embedding.forward

    def moved(input_ids, *args, **named):
        return forward((input_ids + 1) % model.config.decoder.embedding.vocabulary, *args, **named)

    model.decoder.embedding.forward = moved


def reads_the_encoder_before_its_last_norm(model):
    kept = {}
    model.encoder.stack.final_norm.register_forward_pre_hook(lambda module, args: kept.update(x=args[0]))
    forward = model.decoder.forward

    def changed(*args, encoder_hidden_states=None, **named):
        return forward(*args, encoder_hidden_states=None if encoder_hidden_states is None else kept["x"], **named)

    model.decoder.forward = changed


def starts_with_another_token(model):
    model.config = model.config.model_copy(update={"start": 5})


def fills_up_with_another_token(model):
    model.config = model.config.model_copy(update={"padding": 7})


def reads_unshifted_labels(model):
    model.shifted = lambda labels: labels.masked_fill(labels == -100, 0)


def keeps_the_first_source_for_all(model):
    part = block(model, "decoder").cross_attention
    remembered = part._remembered

    def first(memory, layout):
        kept = layout.cache is not None and layout.cache.across is not None
        key, value = remembered(memory, layout)
        return (key[:1].expand_as(key), value[:1].expand_as(value)) if kept else (key, value)

    part._remembered = first


ENCODER, DECODER = "encoder.stack.layers.1", "decoder.stack.layers.1"
T5 = {
    set_eps: f"{ENCODER}.attention_norm",
    set_eps_of_the_norm_before_cross_attention: f"{DECODER}.cross_attention_norm",
    set_final_eps: "encoder.stack.final_norm",
    normed_in_double_precision: f"{ENCODER}.feedforward_norm",
    normed_in_single_precision: f"{ENCODER}.feedforward_norm",
    mean_taken_off: f"{ENCODER}.attention_norm",
    scaled_scores: f"{ENCODER}.attention",
    scaled_scores_across: f"{DECODER}.cross_attention",
    encoder_counts_one_way: "encoder.stack.layers.0.attention",
    decoder_counts_both_ways: "decoder.stack.layers.0.attention",
    other_distance: "encoder.stack.layers.0.attention",
    other_buckets: "encoder.stack.layers.0.attention",
    directions_swapped: "encoder.stack.layers.0.attention",
    one_bucket_further: "decoder.stack.layers.0.attention",
    bias_of_each_head_rolled: "decoder.stack.layers.0.attention",
    new_tokens_start_at_0: "decoder.stack.layers.0.attention",
    bias_in_the_first_layer_alone: f"{ENCODER}.attention",
    bias_across_too: f"{DECODER}.cross_attention",
    bias_of_the_other_stack: "decoder.stack.layers.0.attention",
    encoder_ignores_padding: f"{ENCODER}.attention",
    source_padding_is_seen: f"{DECODER}.cross_attention",
    first_row_masks_all_sources: f"{DECODER}.cross_attention",
    decoder_ignores_padding: f"{DECODER}.attention",
    decoder_sees_what_follows: f"{DECODER}.attention",
    encoder_sees_only_what_precedes: f"{ENCODER}.attention",
    across_sees_only_what_precedes: f"{DECODER}.cross_attention",
    swap_query_and_key: "decoder.stack.layers.0.attention",
    swap_key_and_value_across: f"{DECODER}.cross_attention",
    swap_attentions: f"{DECODER}.attention",
    swap_norms: f"{DECODER}.attention_norm",
    heads_in_another_order: f"{ENCODER}.attention",
    no_cross_attention: f"{DECODER}.cross_attention",
    other_activation: f"{ENCODER}.feedforward",
    not_scaled_before_scoring: "decoder.head",
    embedding_scaled: "decoder.embedding",
    decoder_reads_one_token_too_far: "decoder.embedding",
    reads_the_encoder_before_its_last_norm: "decoder.stack.layers.0.cross_attention",
    starts_with_another_token: "decoder.embedding",
    fills_up_with_another_token: "decoder.embedding",
    reads_unshifted_labels: "decoder.embedding",
    keeps_the_first_source_for_all: f"{DECODER}.cross_attention",
}
FLAN = {
    other_activation: f"{ENCODER}.feedforward",
    exact_gelu: f"{DECODER}.feedforward",
    swap_gate: f"{ENCODER}.feedforward",
    scaled_before_scoring: "decoder.head",
    scored_by_the_embedding: "decoder.head",
    scaled_scores: f"{ENCODER}.attention",
}
CASES = [*(("t5-small", *each) for each in T5.items()), *(("flan-t5-small", *each) for each in FLAN.items())]
SMALL = {
    f"{side}.stack.block.{part}.head_size": 8
    for side, part in (("encoder", "attention"), ("decoder", "attention"), ("decoder", "cross_attention"))
}


def verified(monkeypatch, mutation, preset, **options):
    plant(monkeypatch, mutation)
    return zoo.verify(zoo.get_config(preset, SMALL), tiny=True, training=False, **{"gradients": False, **options})


@pytest.mark.parametrize(("preset", "mutation", "name"), one_in_four(CASES))
@torch.no_grad()
def test_a_planted_mistake_is_caught_and_named(monkeypatch, preset, mutation, name):
    report = verified(monkeypatch, mutation, preset)
    assert not report.passed
    assert report.first_divergence == name, str(report)


@pytest.mark.parametrize("preset", ["t5-small", "flan-t5-small"])
def test_nothing_is_caught_where_nothing_is_planted(monkeypatch, preset):
    report = verified(monkeypatch, lambda model: None, preset, gradients=True)
    assert report.passed and report.comparisons[0].worst("float64") <= 1e-10


def test_a_table_that_only_the_first_layer_pulls_at_is_seen_in_the_gradients(monkeypatch):
    """Equal values, but the other layers' share of the gradient is lost."""

    def cut(model):
        part = model.encoder.stack.layers[1].attention
        scored = part._scored
        part._scored = lambda layout, query, keys: scored(layout, query, keys).detach()

    report = verified(monkeypatch, cut, "t5-small", gradients=True)
    assert not report.passed and report.first_divergence == "gradient of encoder.stack.position.table"


def test_scores_that_do_not_pull_at_the_embedding_are_seen_in_the_gradients(monkeypatch):
    def freeze(model):
        head = model.decoder.head
        head.scores = lambda x, layout: functional.linear(x * head.scale, layout.table.detach())

    report = verified(monkeypatch, freeze, "t5-small", gradients=True)
    assert not report.passed and report.first_divergence == "gradient of encoder.embedding.table"


@pytest.mark.parametrize(("preset", "field", "value"), [
    ("t5-small", "encoder.stack.block.norm.eps", 1e-3),
    ("t5-small", "encoder.stack.block.norm.precision", "same"),
    ("t5-small", "encoder.stack.block.feedforward.activation", "gelu"),
    ("t5-small", "decoder.stack.block.cross_attention.scale", None),
    ("flan-t5-small", "decoder.stack.block.feedforward.activation", "gelu"),
])  # fmt: skip
def test_the_field_at_fault_is_suspected(monkeypatch, preset, field, value):
    """A config read wrongly, field by field: the reference is built from the right one."""
    load = run.load_model
    changed = {field: value}
    monkeypatch.setattr(run, "load_model", lambda source, changes, device, dtype: load(source, changed, device, dtype))
    monkeypatch.setattr(run, "_export", lambda *arguments: None)
    report = zoo.verify(zoo.get_config(preset, SMALL), tiny=True, training=False, gradients=False)
    assert any(field in suspect and "would agree" in suspect for suspect in report.comparisons[0].suspects), str(report)
