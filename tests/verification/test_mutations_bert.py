"""Planted mistakes in models of texts: each one is caught, and the module that it was planted in is named."""

import pytest
import torch
from planted import one_in_four, plant
from torch import nn

import zoo
import zoo.verification.run as run


def block(model, number=1):
    return model.stack.layers[number]


def language(model):
    return getattr(model.head, "language", model.head)


def set_eps(model):
    block(model).attention_norm.eps = 3e-5


def set_embedding_eps(model):
    model.embedding.norm.eps = 3e-5


def tanh_gelu(model):
    block(model).feedforward.activation = "gelu-tanh"


def pre_norm(model):
    block(model).order = "pre"


def swap_norms(model):
    one = block(model)
    one.attention_norm, one.feedforward_norm = one.feedforward_norm, one.attention_norm


def swap_query_and_key(model):
    attention = block(model, 0).attention
    attention.query, attention.key = attention.key, attention.query


def other_scale(model):
    block(model).attention.scale *= 1.001


def causal(model):
    block(model).attention.causal = True


def drop_value_bias(model):
    nn.init.zeros_(block(model, 0).attention.value.bias)


def with_mask(model, change):
    attend = block(model).attention.attend
    block(model).attention.attend = lambda q, k, v, layout, weights: attend(
        q, k, v, layout._replace(mask=None if layout.mask is None else change(layout.mask)), weights
    )


def ignore_mask(model):
    with_mask(model, lambda mask: torch.ones_like(mask))


def invert_mask(model):
    with_mask(model, lambda mask: ~mask)


def first_row_masks_all(model):
    with_mask(model, lambda mask: mask[:1].expand_as(mask))


def mask_lets_a_little_through(model):
    """Scores lowered by 20 instead of infinitely."""
    with_mask(model, lambda mask: torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, -20.0))


def drop_residual(model):
    one = block(model)
    add = one._add
    one._add = lambda x, branch, scale, norm: add(torch.zeros_like(x), branch, scale, norm)


def no_embedding_norm(model):
    model.embedding.norm.forward = lambda x: x


def drop_segments(model):
    nn.init.zeros_(model.embedding.segment)


def only_the_first_segment(model):
    embedding = model.embedding
    forward = embedding.forward
    embedding.forward = lambda input_ids, token_type_ids=None, **others: forward(input_ids, **others)


def padding_row_is_zero(model):
    nn.init.zeros_(model.embedding.table[model.config.embedding.padding])


def shift_positions(model):
    table = model.embedding.position.table
    table.data = table.data.roll(1, 0)


def ignore_given_positions(model):
    forward = model.embedding.forward
    model.embedding.forward = lambda input_ids, position_ids=None, **others: forward(input_ids, **others)


def count_all(model):
    """RoBERTa's positions as BERT counts them."""
    model.embedding.config = model.embedding.config.model_copy(update={"count": "all"})


def count_from_padding(model):
    """RoBERTa's positions, each one too low."""
    positions = model.embedding._positions
    model.embedding._positions = lambda *given: (positions(*given) - 1).clamp(min=0)


def padding_counts_on(model):
    """RoBERTa's positions, where padding has those of a token."""
    model.embedding._positions = lambda ids, *_: torch.arange(ids.shape[1]).expand_as(ids) + 2


def pool_the_last_token(model):
    model.head.pool.forward = lambda x, layout: x[:, -1]


def pool_the_mean(model):
    model.head.pool.forward = lambda x, layout: x.mean(1)


def pooler_without_tanh(model):
    model.head.activation = "identity"


def classifier_without_dense(model):
    model.head.dense.forward = lambda x: x


def untied(model):
    """Scores by a copy of the vectors that was not updated."""
    language(model).weight = nn.Parameter(model.embedding.table.detach() * 1.001)


def no_language_bias(model):
    nn.init.zeros_(language(model).bias)


def no_language_norm(model):
    language(model).norm.forward = lambda x: x


def other_language_activation(model):
    language(model).activation = "relu"


def swap_start_and_end(model):
    output = model.head.output
    output.weight.data, output.bias.data = output.weight.data.flip(0), output.bias.data.flip(0)


def swap_sentences(model):
    output = model.head.sentence.output
    output.weight.data, output.bias.data = output.weight.data.flip(0), output.bias.data.flip(0)


BODY = {
    set_eps: "stack.layers.1.attention_norm",
    set_embedding_eps: "embedding",
    tanh_gelu: "stack.layers.1.feedforward",
    pre_norm: "stack.layers.1",
    swap_norms: "stack.layers.1.attention_norm",
    swap_query_and_key: "stack.layers.0.attention",
    other_scale: "stack.layers.1.attention",
    causal: "stack.layers.1.attention",
    drop_value_bias: "stack.layers.0.attention",
    ignore_mask: "stack.layers.1.attention",
    invert_mask: "stack.layers.1.attention",
    first_row_masks_all: "stack.layers.1.attention",
    mask_lets_a_little_through: "stack.layers.1.attention",
    drop_residual: "stack.layers.1",
    no_embedding_norm: "embedding",
    shift_positions: "embedding",
    ignore_given_positions: "embedding",
    padding_row_is_zero: "embedding",
}
SEGMENTS = {drop_segments: "embedding", only_the_first_segment: "embedding"}
ROBERTA = {count_all: "embedding", count_from_padding: "embedding", padding_counts_on: "embedding"}
LANGUAGE = {untied: "head", no_language_bias: "head", no_language_norm: "head", other_language_activation: "head"}
POOLER = {pool_the_last_token: "head", pool_the_mean: "head", pooler_without_tanh: "head"}
CASES = [
    *(("bert-tiny", "pooler", *each) for each in {**BODY, **SEGMENTS, **POOLER}.items()),
    *(("roberta-base", "pooler", *each) for each in ROBERTA.items()),
    *(("distilbert-base", None, *each) for each in list(BODY.items())[::2]),
    *(("roberta-base", "pooler", *each) for each in list(BODY.items())[1::2]),
    *((preset, "masked-language-model", *each) for preset in ("bert-tiny", "roberta-base", "distilbert-base")
      for each in LANGUAGE.items()),
    *(("bert-tiny", "pretraining", *each) for each in LANGUAGE.items()),
    ("bert-tiny", "pretraining", swap_sentences, "seq_relationship_logits"),
    ("bert-tiny", "span", swap_start_and_end, "head.output"),
    ("bert-tiny", {"type": "classifier", "dense": "tanh"}, classifier_without_dense, "head"),
    ("bert-tiny", {"type": "classifier", "dense": "tanh"}, pool_the_mean, "head"),
]  # fmt: skip


def verified(monkeypatch, mutation, preset, head):
    plant(monkeypatch, mutation)
    return zoo.verify(preset, {"head": head}, reference="transformers", tiny=True, training=False, gradients=False)


@pytest.mark.parametrize(("preset", "head", "mutation", "name"), one_in_four(CASES))
@torch.no_grad()
def test_a_planted_mistake_is_caught_and_named(monkeypatch, preset, head, mutation, name):
    report = verified(monkeypatch, mutation, preset, head)
    assert not report.passed
    assert report.first_divergence == name, str(report)


@pytest.mark.parametrize("preset", ["bert-tiny", "roberta-base", "distilbert-base"])
def test_nothing_is_caught_where_nothing_is_planted(monkeypatch, preset):
    assert verified(monkeypatch, lambda model: None, preset, "masked-language-model").passed


def test_an_untied_head_is_seen_in_the_gradients(monkeypatch):
    """Equal values, but the scores no longer pull at the embedding."""

    def detach(model):
        language(model).weight = nn.Parameter(model.embedding.table.detach().clone())

    load = run.load_model
    monkeypatch.setattr(run, "load_model", lambda *arguments: detach(model := load(*arguments)) or model)
    monkeypatch.setattr(run, "_export", lambda *arguments: None)
    report = zoo.verify("bert-tiny", {"head": "masked-language-model"}, reference="transformers", tiny=True, training=False)
    assert not report.passed and report.first_divergence == "gradient of embedding.table"


@pytest.mark.parametrize(("preset", "overrides"), [
    ("bert-tiny", {"stack.block.norm.eps": 1e-3}), ("bert-tiny", {"embedding.norm.eps": 1e-3}),
    ("bert-tiny", {"stack.block.order": "pre"}), ("roberta-base", {"embedding.count": "all"}),
    ("distilbert-base", {"stack.block.feedforward.activation": "gelu-tanh"}),
    ("bert-tiny", {"stack.block.attention.causal": True}), ("bert-tiny", {"head.activation": "relu"}),
])  # fmt: skip
def test_the_field_at_fault_is_suspected(monkeypatch, preset, overrides):
    """A config read wrongly, field by field: the reference is built from the right one."""
    load = run.load_model
    monkeypatch.setattr(run, "load_model", lambda source, changes, device, dtype: load(source, overrides, device, dtype))
    monkeypatch.setattr(run, "_export", lambda *arguments: None)
    report = zoo.verify(preset, tiny=True, reference="transformers", training=False, gradients=False)
    (field,) = overrides
    assert any(field in suspect and "would agree" in suspect for suspect in report.comparisons[0].suspects), str(report)
