"""Planted mistakes in models of two towers: each one is caught, and the module that it was planted in is named."""

import pytest
import torch
from planted import one_in_four, plant
from torch import nn
from torch.nn import functional

import zoo
import zoo.verification.run as run
from zoo.model.dual_encoder import unit


def block(model, tower="text", number=1):
    return getattr(model, tower).stack.layers[number]


def set_eps(model):
    block(model).attention_norm.eps *= 3


def set_final_eps(model):
    model.text.stack.final_norm.eps *= 3


def set_embedding_eps(model):
    model.vision.embedding.output_norm.eps *= 3


def set_pooled_eps(model):
    model.vision.head.norm.eps *= 3


def exact_gelu(model):
    """What LAION's models have, in one of OpenAI's."""
    block(model).feedforward.activation = "gelu"


def exact_gelu_of_images(model):
    block(model, "vision", 0).feedforward.activation = "gelu"


def texts_see_what_follows(model):
    block(model).attention.causal = False


def images_see_only_what_precedes(model):
    block(model, "vision").attention.causal = True


def with_mask(model, change):
    attend = block(model).attention.attend
    block(model).attention.attend = lambda q, k, v, layout, weights: attend(
        q, k, v, layout._replace(mask=None if layout.mask is None else change(layout.mask), shared={}), weights
    )


def ignore_mask(model):
    with_mask(model, torch.ones_like)


def first_row_masks_all(model):
    with_mask(model, lambda mask: mask[:1].expand_as(mask))


def no_norm_before_the_first_block(model):
    model.vision.embedding.output_norm = None


def norm_before_positions(model):
    embedding = model.vision.embedding
    place, embedding.moved, embedding.output_norm = embedding._place, embedding.output_norm, None
    embedding._place = lambda x, layout: place(embedding.moved(x), layout)


def norm_of_all_tokens(model):
    """As where the last norm stands before the pool: equal vectors, but another last hidden state."""
    model.vision.stack.final_norm, model.vision.head.norm = model.vision.head.norm, None


def no_norm_behind_the_pool(model):
    model.vision.head.norm.forward = lambda x: x


def pool_the_mean(model):
    model.vision.head.pool.forward = lambda x, layout: x[:, 1:].mean(1)


def pool_the_last_token(model):
    model.text.head.pool.forward = lambda x, layout: x[:, -1]


def pool_the_last_end(model):
    def last(x, layout):
        ends = layout.ids == layout.ids.amax(1, keepdim=True)
        return x[torch.arange(len(x)), (torch.arange(x.shape[1]) * ends).argmax(1)]

    model.text.head.pool.forward = last


def pool_the_last_end_of_that_id(model):
    end = model.text.head.pool.id

    def last(x, layout):
        return x[torch.arange(len(x)), (torch.arange(x.shape[1]) * (layout.ids == end)).argmax(1)]

    model.text.head.pool.forward = last


def pool_the_highest_token(model):
    model.text.head.pool.id = None


def pool_the_last_word(model):
    model.text.head.pool.id = model.config.text.embedding.vocabulary - 1


def pool_the_last_token_where_nothing_ends(model):
    end, forward = model.text.head.pool.id, model.text.head.pool.forward
    model.text.head.pool.forward = lambda x, layout: torch.where(
        (layout.ids == end).any(1, keepdim=True), forward(x, layout), x[:, -1]
    )


def pool_one_too_far(model):
    forward = model.text.head.pool.forward
    model.text.head.pool.forward = lambda x, layout: forward(x.roll(-1, 1), layout)


def pool_the_last_real_token(model):
    forward = model.text.head.pool.forward

    def by_mask(x, layout):
        if layout.real is None:
            return forward(x, layout)
        return x[torch.arange(len(x)), (torch.arange(x.shape[1]) * layout.real).argmax(1)]

    model.text.head.pool.forward = by_mask


def pool_before_the_norm(model):
    """The state before the last norm is pooled."""
    norm, pool = model.text.stack.final_norm, model.text.head.pool.forward
    before = {}
    norm.register_forward_pre_hook(lambda module, args: before.update(x=args[0]))
    model.text.head.pool.forward = lambda x, layout: pool(before["x"], layout)


def swap_projections(model):
    model.text.head.output, model.vision.head.output = model.vision.head.output, model.text.head.output


def transposed_projection(model):
    weight = model.text.head.output.weight
    weight.data = weight.data.T.contiguous()


def shift_positions(model):
    model.text.embedding.position.table.data = model.text.embedding.position.table.data.roll(1, 0)


def ignore_given_positions(model):
    forward = model.text.embedding.forward
    model.text.embedding.forward = lambda input_ids, position_ids=None, **others: forward(input_ids, **others)


def class_token_behind(model):
    join = model.vision.embedding._join
    model.vision.embedding._join = lambda patches: join(patches).roll(-1, 1)


def bilinear_positions(model):
    table = model.vision.embedding.position
    at, resampled = table.at, functional.interpolate

    def changed(layout, tokens):
        if layout.grid == table.grid:
            return at(layout, tokens)
        old = table.table[1:].reshape(1, *table.grid, -1).permute(0, 3, 1, 2)
        new = resampled(old, size=layout.grid, mode="bilinear", align_corners=False).permute(0, 2, 3, 1).flatten(0, 2)
        return torch.cat([table.table[:1], new])

    table.at = changed


def antialiased_positions(model):
    position = model.vision.embedding.position
    position.config = position.config.model_copy(update={"resample": "bicubic-antialias"})


def swap_query_and_key(model):
    attention = block(model, "vision", 0).attention
    attention.query, attention.key = attention.key, attention.query


def other_scale(model):
    block(model, "vision").attention.scale *= 1.001


def scale_is_not_exponential(model):
    model.scores = lambda texts, images: texts @ images.t() * model.logit_scale


def other_fresh_scale(model):
    """The scale of the config instead of the one that was learned."""
    model.logit_scale = nn.Parameter(torch.full_like(model.logit_scale, 2.6592))


def scores_of_unnormed_vectors(model):
    vectors = {}
    model.text.head.register_forward_hook(lambda module, args, output: vectors.update(output))
    model.scores = lambda texts, images: vectors["text_embeds"] @ images.t() * model.logit_scale.exp()


def not_normed(model):
    forward = model.forward

    def changed(*inputs, **named):
        output = forward(*inputs, **named)
        return output._replace(text_embeds=output.text_model_output.text_embeds)

    model.forward = changed


def normed_twice_in_the_tower(model):
    """The tower's own vector is to be of any length."""
    forward = model.text.head.forward
    model.text.head.forward = lambda x, layout: {name: unit(value) for name, value in forward(x, layout).items()}


def scores_transposed(model):
    """Where there are as many texts as images, no shape tells."""
    forward = model.forward

    def changed(*inputs, **named):
        output = forward(*inputs, **named)
        return output._replace(logits_per_image=output.logits_per_text)

    model.forward = changed


TEXT, IMAGE = "text.stack.layers.1", "vision.stack.layers.1"
HIGHEST = {
    set_eps: f"{TEXT}.attention_norm",
    set_final_eps: "text.stack.final_norm",
    set_embedding_eps: "vision.embedding",
    set_pooled_eps: "vision.head.norm",
    exact_gelu: f"{TEXT}.feedforward",
    exact_gelu_of_images: "vision.stack.layers.0.feedforward",
    texts_see_what_follows: f"{TEXT}.attention",
    images_see_only_what_precedes: f"{IMAGE}.attention",
    ignore_mask: f"{TEXT}.attention",
    first_row_masks_all: f"{TEXT}.attention",
    no_norm_before_the_first_block: "vision.embedding",
    norm_before_positions: "vision.embedding",
    no_norm_behind_the_pool: "vision.head.norm",
    norm_of_all_tokens: "vision_model_output.last_hidden_state",
    pool_the_mean: "vision.head.norm",
    pool_the_last_token: "text.head",
    pool_the_last_end: "text.head",
    pool_the_last_word: "text.head",
    pool_one_too_far: "text.head",
    pool_the_last_real_token: "text.head",
    pool_before_the_norm: "text.head",
    swap_projections: "text.head",
    shift_positions: "text.embedding",
    ignore_given_positions: "text.embedding",
    class_token_behind: "vision.embedding",
    bilinear_positions: "vision.embedding",
    antialiased_positions: "vision.embedding",
    swap_query_and_key: "vision.stack.layers.0.attention",
    other_scale: f"{IMAGE}.attention",
    scale_is_not_exponential: "logits_per_image",
    other_fresh_scale: "logits_per_image",
    scores_of_unnormed_vectors: "logits_per_image",
    not_normed: "text_embeds",
    normed_twice_in_the_tower: "text.head",
    scores_transposed: "logits_per_image",
}
BY_ID = {
    pool_the_highest_token: "text.head",
    pool_the_last_word: "text.head",
    pool_the_last_end_of_that_id: "text.head",
    pool_the_last_token_where_nothing_ends: "text.head",
}
CASES = [
    *(({}, *each) for each in HIGHEST.items()),
    ({"text.stack.width": 384, "text.stack.block.attention.heads": 3}, transposed_projection, "text.head"),  # a square one
    *(({"text.head.pool.id": 7}, *each) for each in BY_ID.items()),
]


def verified(monkeypatch, mutation, overrides, **options):
    plant(monkeypatch, mutation)
    config = zoo.get_config("clip-vit-b32", overrides)
    return zoo.verify(config, reference="transformers", tiny=True, training=False, **{"gradients": False, **options})


@pytest.mark.parametrize(("overrides", "mutation", "name"), one_in_four(CASES))
@torch.no_grad()
def test_a_planted_mistake_is_caught_and_named(monkeypatch, overrides, mutation, name):
    report = verified(monkeypatch, mutation, overrides)
    assert not report.passed
    assert report.first_divergence == name, str(report)


@pytest.mark.parametrize("overrides", [{}, {"text.head.pool.id": 7}])
def test_nothing_is_caught_where_nothing_is_planted(monkeypatch, overrides):
    assert verified(monkeypatch, lambda model: None, overrides, gradients=True).passed


def test_a_scale_that_is_not_learned_is_seen_in_the_gradients(monkeypatch):
    def freeze(model):
        model.scores = lambda texts, images: texts @ images.t() * model.logit_scale.detach().exp()

    report = verified(monkeypatch, freeze, {}, gradients=True)
    assert not report.passed and report.first_divergence == "gradient of logit_scale"


@pytest.mark.parametrize("overrides", [
    {"text.stack.block.feedforward.activation": "gelu"}, {"vision.stack.block.norm.eps": 1e-3},
    {"vision.stack.block.attention.causal": True}, {"text.stack.block.attention.causal": False},
    {"vision.embedding.output_norm.eps": 1e-3}, {"vision.head.norm.eps": 1e-3},
])  # fmt: skip
def test_the_field_at_fault_is_suspected(monkeypatch, overrides):
    """A config read wrongly, field by field: the reference is built from the right one."""
    load = run.load_model
    monkeypatch.setattr(run, "load_model", lambda source, changes, device, dtype: load(source, overrides, device, dtype))
    monkeypatch.setattr(run, "_export", lambda *arguments: None)
    report = zoo.verify("clip-vit-b32", tiny=True, reference="transformers", training=False, gradients=False)
    (field,) = overrides
    assert any(field in suspect and "would agree" in suspect for suspect in report.comparisons[0].suspects), str(report)
