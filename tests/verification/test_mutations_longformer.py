"""Planted mistakes in Longformer: each one is caught, and the module that it was planted in is named."""

import pytest
import torch
from planted import one_in_four, plant
from torch import nn

import zoo
import zoo.verification.run as run


def block(model, number=1):
    return model.stack.layers[number]


def attention(model):
    return block(model).attention


def with_layout(model, change):
    part = attention(model)
    forward = part.forward
    part.forward = lambda x, layout, **options: forward(x, layout._replace(**change(layout), shared={}), **options)


def window_too_wide(model):
    attention(model).window += 1


def window_too_narrow(model):
    attention(model).window -= 1


def no_window(model):
    attention(model).window = 1000


def causal(model):
    attention(model).causal = True


def global_tokens_are_ignored(model):
    with_layout(model, lambda layout: {"global_tokens": None})


def global_tokens_of_the_first_text_for_all(model):
    with_layout(
        model, lambda layout: {"global_tokens": layout.global_tokens[:1].expand_as(layout.global_tokens)}
        if layout.global_tokens is not None else {}
    )  # fmt: skip


def first_token_is_always_global(model):
    attention(model).global_tokens = 1


def first_token_is_never_global(model):
    attention(model).global_tokens = 0


def global_tokens_are_not_seen(model):
    """They see all, but are seen by their neighbours alone."""
    part = attention(model)
    attend = part.attend

    def changed(query, key, value, layout, weights):
        rows = layout.global_tokens
        if rows is None:
            return attend(query, key, value, layout, weights)
        alone = attend(query, key, value, layout._replace(global_tokens=None), weights)[0]
        return torch.where(rows.which[:, None, :, None], attend(query, key, value, layout, weights)[0], alone), None

    part.attend = changed


def global_tokens_see_their_neighbours_alone(model):
    attention(model)._with_rows = lambda found, *others: found


def global_tokens_are_weighed_twice(model):
    """Among the first keys and among the neighbours."""
    part = attention(model)
    rows = part._rows

    def twice(x, layout):
        found = rows(x, layout)
        return found and found._replace(tokens=found.tokens._replace(which=torch.zeros_like(found.which)))

    part._rows = twice


def no_projections_of_their_own(model):
    part = attention(model)
    part.global_query = part.global_key = part.global_value = None


def swap_global_query_and_key(model):
    part = attention(model)
    part.global_query, part.global_key = part.global_key, part.global_query


def swap_global_key_and_value(model):
    part = attention(model)
    part.global_key, part.global_value = part.global_value, part.global_key


def swap_global_and_plain_query(model):
    part = attention(model)
    part.global_query, part.query = part.query, part.global_query


def all_see_global_tokens_by_their_own_keys(model):
    """The projections are those by which global tokens see, not by which they are seen."""
    part = attention(model)
    attend = part.attend

    def changed(query, key, value, layout, weights):
        rows = layout.global_tokens
        if rows is not None:
            which = rows.which[:, None, :, None]
            key, value = torch.where(which, rows.key, key), torch.where(which, rows.value, value)
        return attend(query, key, value, layout, weights)

    part.attend = changed


def drop_a_global_bias(model):
    nn.init.zeros_(attention(model).global_value.bias)


def ignore_mask(model):
    with_layout(model, lambda layout: {"mask": None})


def invert_mask(model):
    with_layout(model, lambda layout: {"mask": None if layout.mask is None else ~layout.mask})


def mask_lets_a_little_through(model):
    """Scores lowered by 20 instead of infinitely."""

    def lowered(mask):
        return torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, -20.0)

    with_layout(model, lambda layout: {"mask": None if layout.mask is None else lowered(layout.mask)})


def padding_is_not_zeroed(model):
    attention(model).zeroes_padding = False


def other_scale(model):
    attention(model).scale *= 1.001


def scale_left_out_for_global_tokens(model):
    weight, bias = attention(model).global_query.weight, attention(model).global_query.bias
    weight.data, bias.data = weight.data * 8**0.5, bias.data * 8**0.5


def swap_query_and_key(model):
    part = attention(model)
    part.query, part.key = part.key, part.query


def set_eps(model):
    block(model).attention_norm.eps = 3e-4


def set_embedding_eps(model):
    model.embedding.norm.eps = 3e-4


def tanh_gelu(model):
    block(model).feedforward.activation = "gelu-tanh"


def pre_norm(model):
    block(model).order = "pre"


def shift_positions(model):
    table = model.embedding.position.table
    table.data = table.data.roll(1, 0)


def count_all(model):
    model.embedding.config = model.embedding.config.model_copy(update={"count": "all"})


def language_gelu(model):
    model.head.activation = "gelu-tanh"


ATTENTION, NORM = "stack.layers.1.attention", "stack.layers.1.attention_norm"
BODY = {
    **dict.fromkeys((
        window_too_wide, window_too_narrow, no_window, causal, global_tokens_are_ignored,
        global_tokens_of_the_first_text_for_all, first_token_is_always_global, global_tokens_are_not_seen,
        global_tokens_see_their_neighbours_alone, global_tokens_are_weighed_twice, no_projections_of_their_own,
        swap_global_query_and_key, swap_global_key_and_value, swap_global_and_plain_query,
        all_see_global_tokens_by_their_own_keys, drop_a_global_bias, ignore_mask, invert_mask, mask_lets_a_little_through,
        padding_is_not_zeroed, other_scale, scale_left_out_for_global_tokens, swap_query_and_key,
    ), ATTENTION),
    set_eps: NORM,
    set_embedding_eps: "embedding",
    tanh_gelu: "stack.layers.1.feedforward",
    pre_norm: "stack.layers.1",
    shift_positions: "embedding",
    count_all: "embedding",
}  # fmt: skip
LANGUAGE = {"head": "masked-language-model"}
CLASSIFIER = {"head": {"type": "classifier", "dense": "tanh", "classes": 5}, "stack.block.attention.global_tokens": 1}
CASES = [
    *(({}, *each) for each in BODY.items()),
    (LANGUAGE, language_gelu, "head"),
    (CLASSIFIER, first_token_is_never_global, ATTENTION),
    (CLASSIFIER, window_too_wide, ATTENTION),
]


def verified(monkeypatch, mutation, overrides):
    plant(monkeypatch, mutation)
    config = zoo.get_config("longformer-base", overrides)
    return zoo.verify(config, reference="transformers", tiny=True, training=False, gradients=False)


@pytest.mark.parametrize(("overrides", "mutation", "name"), one_in_four(CASES))
@torch.no_grad()
def test_a_planted_mistake_is_caught_and_named(monkeypatch, overrides, mutation, name):
    report = verified(monkeypatch, mutation, overrides)
    assert not report.passed
    assert report.first_divergence == name, str(report)


@pytest.mark.parametrize("overrides", [{}, LANGUAGE, CLASSIFIER], ids=str)
def test_nothing_is_caught_where_nothing_is_planted(monkeypatch, overrides):
    assert verified(monkeypatch, lambda model: None, overrides).passed


@pytest.mark.parametrize("swapped", ["query", "key", "value"])
def test_untrained_projections_are_seen_in_the_gradients(monkeypatch, swapped):
    """Equal values, but the projections of global tokens are not learned."""

    def detach(model):
        linear = getattr(attention(model), f"global_{swapped}")
        forward = linear.forward
        linear.forward = lambda x: forward(x).detach()

    load = run.load_model
    monkeypatch.setattr(run, "load_model", lambda *arguments: detach(model := load(*arguments)) or model)
    monkeypatch.setattr(run, "_export", lambda *arguments: None)
    report = zoo.verify("longformer-base", reference="transformers", tiny=True, training=False)
    assert not report.passed and report.first_divergence.startswith("gradient of ")


@pytest.mark.parametrize("overrides", [
    {"stack.block.attention.window": 4}, {"stack.block.attention.window": 6}, {"stack.block.attention.padding": "compute"},
    {"stack.block.attention.global_tokens": 1}, {"stack.block.attention.causal": True},
])  # fmt: skip
def test_the_field_at_fault_is_suspected(monkeypatch, overrides):
    """A config read wrongly, field by field: the reference is built from the right one."""
    load = run.load_model
    monkeypatch.setattr(run, "load_model", lambda source, changes, device, dtype: load(source, overrides, device, dtype))
    monkeypatch.setattr(run, "_export", lambda *arguments: None)
    report = zoo.verify("longformer-base", tiny=True, reference="transformers", training=False, gradients=False)
    (field,) = overrides
    assert any(field in suspect and "would agree" in suspect for suspect in report.comparisons[0].suspects), str(report)
