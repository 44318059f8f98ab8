"""Planted mistakes in an encoder and a decoder: each one is caught, and the module that it was planted in is named."""

import copy

import pytest
import torch
from planted import one_in_four, plant
from torch import nn

import zoo
import zoo.verification.run as run
from zoo.model.encoder_decoder import EncoderDecoder
from zoo.output import TransformerOutput


def read(model, number=1):
    return model.encoder.stack.layers[number]


def written(model, number=1):
    return model.decoder.stack.layers[number]


def encoder_eps(model):
    read(model).attention_norm.eps *= 3


def cross_eps(model):
    written(model).cross_attention_norm.eps *= 3


def decoder_eps(model):
    written(model).feedforward_norm.eps *= 3


def encoder_activation(model):
    read(model).feedforward.activation = "gelu-tanh"


def decoder_activation(model):
    written(model).feedforward.activation = "relu"


def decoder_is_pre_norm(model):
    written(model).order = "pre"


def encoder_is_pre_norm(model):
    read(model).order = "pre"


def norms_of_two_branches_swapped(model):
    one = written(model)
    one.attention_norm, one.cross_attention_norm = one.cross_attention_norm, one.attention_norm


def looks_across_before_it_looks_at_itself(model):
    one = written(model)
    forward, across = one.forward, one._look_across
    first = torch.nn.Identity()

    def changed(x, layout, *, weights=False):
        x, _ = across(x, layout, weights)
        one._look_across = lambda x, layout, weights: (first(x), None)
        try:
            return forward(x, layout, weights=weights)
        finally:
            one._look_across = across

    one.forward = changed


def never_looks_across(model):
    written(model)._look_across = lambda x, layout, weights: (x, None)


def looks_across_without_a_residual(model):
    one = written(model)
    one._look_across = lambda x, layout, weights: (
        one.cross_attention_norm(one.cross_attention(x, layout, memory=layout.memory)[0]), None
    )  # fmt: skip


def cross_keys_and_values_swapped(model):
    part = written(model).cross_attention
    part.key, part.value = part.value, part.key


def cross_attention_is_that_of_itself(model):
    one = written(model)
    for name in ("query", "key", "value", "output"):
        getattr(one.cross_attention, name).load_state_dict(getattr(one.attention, name).state_dict())


def other_cross_scale(model):
    written(model).cross_attention.scale *= 1.001


def drop_cross_query_bias(model):
    nn.init.zeros_(written(model, 0).cross_attention.query.bias)


def drop_cross_value_bias(model):
    nn.init.zeros_(written(model, 0).cross_attention.value.bias)


def transposed_cross_output(model):
    weight = written(model, 0).cross_attention.output.weight
    weight.data = weight.data.T.contiguous()


def decoder_sees_later_tokens(model):
    written(model).attention.causal = False


def encoder_sees_no_later_tokens(model):
    read(model).attention.causal = True


def with_mask(part, change):
    attend = part.attend
    part.attend = lambda q, k, v, layout, weights: attend(
        q, k, v, layout._replace(mask=None if layout.mask is None else change(layout.mask), shared={}), weights
    )


def encoder_ignores_padding(model):
    with_mask(read(model).attention, torch.ones_like)


def encoder_sees_padding_alone(model):
    with_mask(read(model).attention, lambda mask: ~mask)


def decoder_looks_at_padding(model):
    with_mask(written(model).cross_attention, torch.ones_like)


def decoder_looks_as_the_first_text_may(model):
    with_mask(written(model).cross_attention, lambda mask: mask[:1].expand_as(mask))


def decoder_ignores_its_own_padding(model):
    with_mask(written(model).attention, torch.ones_like)


def padding_is_forgotten(model):
    """The decoder's tokens in the cache are all real."""

    def changed(mask):
        mask = mask.clone()
        mask[..., :-1] = True
        return mask

    with_mask(written(model).attention, lambda mask: changed(mask) if mask.shape[2] == 1 and mask.shape[3] > 1 else mask)


def what_is_kept_across_is_backwards(model):
    """Of the encoder's tokens, in all calls but the first."""
    part = written(model).cross_attention
    remembered = part._remembered

    def changed(memory, layout):
        later = layout.cache is not None and layout.cache.across is not None
        key, value = remembered(memory, layout)
        return (key, value.flip(2)) if later else (key, value)

    part._remembered = changed


def what_is_kept_across_is_of_one_layer(model):
    """The keys and values of the layer before."""
    first, second = (written(model, number).cross_attention for number in (0, 1))
    second.key, second.value = first.key, first.value


def shift(model, change):
    shifted = EncoderDecoder.shifted
    model.shifted = lambda labels: change(model, labels, shifted(model, labels))


def labels_are_not_shifted(model):
    shift(model, lambda model, labels, right: labels.clamp(min=0))


def texts_start_with_another_token(model):
    shift(model, lambda model, labels, right: torch.cat([torch.zeros_like(right[:, :1]), right[:, 1:]], 1))


def ignored_labels_become_the_start(model):
    def changed(model, labels, right):
        right = right.clone()
        right[:, 1:][labels[:, :-1] == -100] = 5
        return right

    shift(model, changed)


def other_positions(side, change):
    """Another layout for the positions of a side."""

    def mutation(model):
        position = getattr(model, side).embedding.position
        at = position.at
        position.at = lambda layout, *others: at(change(layout), *others)

    return mutation


new_tokens_start_at_0 = other_positions("decoder", lambda layout: layout._replace(past=0))
new_tokens_are_one_too_far = other_positions(
    "decoder", lambda layout: layout._replace(past=layout.past + 1) if layout.past else layout
)


def positions_have_nothing_before_them(model):
    model.decoder.embedding.position.unused = 0


def encoder_positions_are_one_too_far(model):
    model.encoder.embedding.position.unused = 1


def padding_has_no_position(model):
    position = model.encoder.embedding.position
    at = position.at

    def changed(layout, *others):
        real = (layout.ids != 1).long()
        return at(layout._replace(positions=(real.cumsum(1) - 1).clamp(min=0)), *others)

    position.at = changed


def no_embedding_norm(model):
    model.decoder.embedding.norm = None


def embedding_eps(model):
    model.encoder.embedding.norm.eps *= 3


def embedding(model, side, **changes):
    part = getattr(model, side).embedding
    part.config = part.config.model_copy(update=changes)


def no_scale(model):
    embedding(model, "encoder", scale=None)


def scale_of_the_decoder(model):
    embedding(model, "decoder", scale=model.decoder.embedding.config.scale * 1.001)


def positions_are_scaled_too(model):
    part = model.decoder.embedding
    scale = part.config.scale
    embedding(model, "decoder", scale=None)
    at = part.position.forward
    part.position.forward = lambda x, layout: at(x, layout) * scale


def sines(model, **changes):
    position = model.encoder.embedding.position
    position.config = position.config.model_copy(update=changes)


def sines_beside_cosines(model):
    sines(model, order="interleaved")


def slower_sines(model):
    sines(model, base=10010.0)


def tables_apart(model):
    """The decoder's tokens have vectors of their own, which were not updated."""
    forward = model.decoder.embedding.forward
    model.decoder.embedding.forward = lambda *given, **named: forward(
        *given, **{**named, "table": model.encoder.embedding.table * 1.001}
    )


def table_of_the_other_side(model):
    model.decoder.embedding.table = nn.Parameter(model.encoder.embedding.table.detach().clone())


def scores_of_their_own(model):
    model.decoder.head.weight = nn.Parameter(model.encoder.embedding.table.detach() * 1.001)


def no_bias(model):
    model.decoder.head.bias = None


def reads_what_the_first_block_gave(model):
    """The decoder looks at the tokens behind the encoder's first block, though each module is right."""
    encoded = EncoderDecoder._encoded

    def changed(given, mask, outputs, continues, kept):
        seen = encoded(model, given, mask, outputs, continues, {**kept, "output_hidden_states": True})
        inner = seen.hidden_states[1] if seen is not None and seen.hidden_states else None
        return seen if inner is None else TransformerOutput(last_hidden_state=inner)

    model._encoded = changed


READ, WRITTEN = "encoder.stack.layers.1", "decoder.stack.layers.1"
ATTENTION, ACROSS = f"{WRITTEN}.attention", f"{WRITTEN}.cross_attention"
ANY = {
    encoder_eps: f"{READ}.attention_norm",
    cross_eps: f"{WRITTEN}.cross_attention_norm",
    decoder_eps: f"{WRITTEN}.feedforward_norm",
    encoder_activation: f"{READ}.feedforward",
    decoder_activation: f"{WRITTEN}.feedforward",
    encoder_is_pre_norm: READ,
    decoder_is_pre_norm: WRITTEN,
    norms_of_two_branches_swapped: f"{WRITTEN}.attention_norm",
    cross_keys_and_values_swapped: ACROSS,
    cross_attention_is_that_of_itself: ACROSS,
    transposed_cross_output: "decoder.stack.layers.0.cross_attention",
    decoder_sees_later_tokens: ATTENTION,
    encoder_sees_no_later_tokens: f"{READ}.attention",
    encoder_ignores_padding: f"{READ}.attention",
    decoder_looks_at_padding: ACROSS,
    decoder_ignores_its_own_padding: ATTENTION,
    what_is_kept_across_is_backwards: ACROSS,
    labels_are_not_shifted: "decoder.embedding",
    texts_start_with_another_token: "decoder.embedding",
    ignored_labels_become_the_start: "decoder.embedding",
    new_tokens_start_at_0: "decoder.embedding",
    scores_of_their_own: "decoder.head",
    reads_what_the_first_block_gave: "decoder.stack.layers.0.cross_attention",  # the first that goes astray
}
BART = {
    **ANY,
    looks_across_before_it_looks_at_itself: WRITTEN,
    never_looks_across: WRITTEN,
    looks_across_without_a_residual: WRITTEN,
    other_cross_scale: ACROSS,
    drop_cross_query_bias: "decoder.stack.layers.0.cross_attention",
    drop_cross_value_bias: "decoder.stack.layers.0.cross_attention",
    encoder_sees_padding_alone: f"{READ}.attention",
    decoder_looks_as_the_first_text_may: ACROSS,
    padding_is_forgotten: ATTENTION,
    what_is_kept_across_is_of_one_layer: ACROSS,
    new_tokens_are_one_too_far: "decoder.embedding",
    positions_have_nothing_before_them: "decoder.embedding",
    encoder_positions_are_one_too_far: "encoder.embedding",
    padding_has_no_position: "encoder.embedding",
    no_embedding_norm: "decoder.embedding",
    embedding_eps: "encoder.embedding",
    tables_apart: "decoder.embedding",
}
MARIAN = {
    **ANY,
    no_scale: "encoder.embedding",
    scale_of_the_decoder: "decoder.embedding",
    positions_are_scaled_too: "decoder.embedding",
    sines_beside_cosines: "encoder.embedding",
    slower_sines: "encoder.embedding",
}
APART = {"share_embeddings": False}
BIASED = {"decoder.head.bias": True}
CASES = [
    *(("bart-base", {}, *each) for each in BART.items()),
    *(("opus-mt-en-de", {}, *each) for each in MARIAN.items()),
    ("opus-mt-en-de", APART, table_of_the_other_side, "decoder.embedding"),
    ("bart-base", BIASED, no_bias, "logits"),
]


def verified(monkeypatch, mutation, preset, overrides):
    """By float64 and one scale of weights alone, which is enough for each of these, and takes half the time."""
    plant(monkeypatch, mutation)
    monkeypatch.setattr(run, "SCALES", run.SCALES[:1])
    monkeypatch.setattr(run, "_single", lambda *arguments: None)
    config = zoo.get_config(preset, overrides)
    return zoo.verify(config, reference="transformers", tiny=True, training=False, gradients=False)


@pytest.mark.parametrize(("preset", "overrides", "mutation", "name"), one_in_four(CASES))
@torch.no_grad()
def test_a_planted_mistake_is_caught_and_named(monkeypatch, preset, overrides, mutation, name):
    report = verified(monkeypatch, mutation, preset, overrides)
    assert not report.passed
    assert report.first_divergence == name, str(report)


@pytest.mark.parametrize(("preset", "overrides"), [("bart-base", {}), ("bart-base", BIASED), ("opus-mt-en-de", APART)])
def test_nothing_is_found_where_nothing_is_planted(monkeypatch, preset, overrides):
    report = verified(monkeypatch, copy.copy, preset, overrides)
    assert report.passed, str(report)


@pytest.mark.parametrize(("mutation", "field"), [
    (decoder_activation, "decoder.stack.block.feedforward.activation is 'gelu'"),
    (cross_eps, "decoder.stack.block.norm (layer-norm)"),
    (other_cross_scale, "decoder.stack.block.cross_attention (full)"),
    (encoder_is_pre_norm, "encoder.stack.block"),
    (no_embedding_norm, "decoder.embedding (tokens)"),
])  # fmt: skip
def test_the_field_at_fault_is_suspected(monkeypatch, mutation, field):
    report = verified(monkeypatch, mutation, "bart-base", {})
    assert any(field in suspect for suspect in report.comparisons[0].suspects), report.comparisons[0].suspects
