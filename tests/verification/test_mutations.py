"""Planted mistakes: each one is caught, and the module that it was planted in is named."""

import pytest
import torch
from planted import plant
from torch import nn

import zoo
import zoo.verification.run as run


def block(model, number=1):
    return model.stack.layers[number]


def set_eps(model):
    block(model).attention_norm.eps = 1e-5


def set_final_eps(model):
    model.stack.final_norm.eps = 1e-12


def tanh_gelu(model):
    block(model).feedforward.activation = "gelu-tanh"


def quick_gelu(model):
    block(model, 0).feedforward.activation = "quick-gelu"


def post_norm(model):
    block(model).order = "post"


def swap_query_and_key(model):
    attention = block(model, 0).attention
    attention.query, attention.key = attention.key, attention.query


def other_scale(model):
    block(model).attention.scale *= 1.001


def causal(model):
    block(model).attention.causal = True


def drop_value_bias(model):
    nn.init.zeros_(block(model, 0).attention.value.bias)


def drop_output_bias(model):
    nn.init.zeros_(block(model).attention.output.bias)


def swap_norms(model):
    one = block(model)
    one.attention_norm, one.feedforward_norm = one.feedforward_norm, one.attention_norm


def swap_layers(model):
    layers = model.stack.layers
    layers[0], layers[1] = layers[1], layers[0]


def interleave_heads(model):
    attention = block(model).attention
    attention._split = lambda x: x.unflatten(-1, (attention.head_size, -1)).permute(0, 3, 1, 2)


def transpose_output(model):
    weight = block(model, 0).attention.output.weight
    weight.data = weight.data.T.contiguous()


def ignore_mask(model):
    attend = block(model).attention.attend
    block(model).attention.attend = lambda q, k, v, layout, weights: attend(q, k, v, layout._replace(mask=None), weights)


def invert_mask(model):
    attend = block(model).attention.attend

    def inverted(q, k, v, layout, weights):
        return attend(q, k, v, layout._replace(mask=None if layout.mask is None else ~layout.mask), weights)

    block(model).attention.attend = inverted


def drop_residual(model):
    one = block(model)
    add = one._add
    one._add = lambda x, branch, scale, norm: add(torch.zeros_like(x), branch, scale, norm)


def mean_pool(model):
    model.head.pool.forward = lambda x, layout: x.mean(1)


def last_token_pool(model):
    model.head.pool.forward = lambda x, layout: x[:, -1]


def shift_positions(model):
    table = model.embedding.position.table
    table.data = table.data.roll(1, 0)


def patches_by_columns(model):
    join = model.embedding._join

    def by_columns(patches):
        square = patches.shape[1] == 25
        return join(patches.unflatten(1, (5, 5)).transpose(1, 2).flatten(1, 2) if square else patches)

    model.embedding._join = by_columns


def drop_class_token(model):
    nn.init.zeros_(model.embedding.class_token)


def class_token_last(model):
    join = model.embedding._join
    model.embedding._join = lambda patches: join(patches).roll(-1, 1)


def no_final_norm(model):
    model.stack.final_norm.forward = lambda x: x


MUTATIONS = {
    set_eps: "stack.layers.1.attention_norm",
    set_final_eps: "stack.final_norm",
    tanh_gelu: "stack.layers.1.feedforward",
    quick_gelu: "stack.layers.0.feedforward",
    post_norm: "stack.layers.1",
    swap_query_and_key: "stack.layers.0.attention",
    other_scale: "stack.layers.1.attention",
    causal: "stack.layers.1.attention",
    drop_value_bias: "stack.layers.0.attention",
    drop_output_bias: "stack.layers.1.attention",
    swap_norms: "stack.layers.1.attention_norm",
    swap_layers: "stack.layers.0.attention_norm",
    interleave_heads: "stack.layers.1.attention",
    transpose_output: "stack.layers.0.attention",
    ignore_mask: "stack.layers.1.attention",
    invert_mask: "stack.layers.1.attention",
    drop_residual: "stack.layers.1",
    mean_pool: "head",
    last_token_pool: "head",
    shift_positions: "embedding",
    patches_by_columns: "embedding",
    drop_class_token: "embedding",
    class_token_last: "embedding",
    no_final_norm: "stack.final_norm",
}
MASKS = (ignore_mask, invert_mask)  # timm's ViT takes no mask of tokens


def verified(monkeypatch, mutation, library, name="vit-tiny"):
    plant(monkeypatch, mutation, export=True)
    return zoo.verify(name, reference=library, tiny=True, training=False)


@pytest.mark.parametrize("library", ["transformers", "timm"])
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_a_planted_mistake_is_caught_and_named(monkeypatch, mutation, library):
    if library == "timm" and mutation in MASKS:
        report = verified(monkeypatch, mutation, library)
        assert report.passed  # nothing to see: no case has a mask
        return
    report = verified(monkeypatch, mutation, library)
    assert not report.passed
    assert report.first_divergence == MUTATIONS[mutation], str(report)


def test_nothing_is_caught_where_nothing_is_planted(monkeypatch):
    """The way in which mistakes are planted is none itself."""
    assert verified(monkeypatch, lambda model: None, "transformers").passed


@pytest.mark.parametrize("branch", ["attention_scale", "feedforward_scale"])
def test_a_dropped_layer_scale_is_caught(monkeypatch, branch):
    def drop(model):
        getattr(block(model), branch).forward = lambda x: x

    report = verified(monkeypatch, drop, "timm", "deit3-small")
    assert report.first_divergence == "stack.layers.1"


def test_a_wrong_gradient_is_caught(monkeypatch):
    """A forward pass that is right and a backward pass that is not."""

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * 1.000001

    def plant(model):
        forward = block(model, 0).feedforward.forward
        block(model, 0).feedforward.forward = lambda x: Wrong.apply(forward(x))

    report = verified(monkeypatch, plant, "transformers")
    assert not report.passed
    assert report.first_divergence.startswith("gradient of ")


def test_a_misplaced_dropout_is_caught(monkeypatch):
    """Dropout of the sum instead of the branch: seen in train mode only."""
    from zoo.block.residual import ResidualBlock

    def outside(self, x, branch, scale, norm):
        return self.dropout(x + self._scaled(branch, scale))

    monkeypatch.setattr(ResidualBlock, "_add", outside)
    report = zoo.verify("vit-tiny", reference="timm", tiny=True)
    assert all(layer.passed for layer in report.layers)
    assert not report.passed and report.first_divergence == "training"


@pytest.mark.parametrize("overrides", [
    {"stack.block.norm.eps": 1e-3}, {"stack.block.feedforward.activation": "gelu-tanh"}, {"stack.block.attention.causal": True},
    {"stack.block.order": "post"}, {"stack.final_norm.eps": 1e-3},
])  # fmt: skip
def test_the_field_at_fault_is_suspected(monkeypatch, overrides):
    """A config read wrongly, field by field: the reference is built from the right one."""
    load = run.load_model

    def misread(source, changes, device, dtype):
        return load(source, overrides, device, dtype)

    monkeypatch.setattr(run, "load_model", misread)
    monkeypatch.setattr(run, "_export", lambda *arguments: None)  # which would refuse some of these by name
    report = zoo.verify("vit-tiny", tiny=True, reference="transformers", training=False)
    (field,) = overrides
    assert any(field in suspect and "would agree" in suspect for suspect in report.comparisons[0].suspects), str(report)
