"""Switch Transformers: the preset equals its reference, small here, and planted mistakes are caught and named."""

import pytest
import torch
from planted import one_in_four, plant

import zoo

SMALL = {
    f"{side}.stack.block.{part}.head_size": 8
    for side, part in (("encoder", "attention"), ("decoder", "attention"), ("decoder", "cross_attention"))
}


def test_the_preset_has_the_published_number_of_parameters():
    from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration

    from zoo.checkpoint.save import family_for

    ours = zoo.build("switch-base-8", device="meta")
    assert ours.num_parameters() == 619_339_008
    _, values = family_for(ours.config, "transformers")
    with torch.device("meta"):
        theirs = SwitchTransformersForConditionalGeneration(SwitchTransformersConfig.from_dict(values))
    assert theirs.num_parameters() == 619_339_008
    layer = ours.encoder.stack.layers[1].feedforward
    assert layer.idle_parameters == 7 * 2 * 768 * 3072  # of eight experts, a token meets one


def test_the_preset_equals_its_reference():
    """Heads are small here; what the experts of the preset are stays."""
    report = zoo.verify(zoo.get_config("switch-base-8", SMALL), tiny=True)
    assert report.passed, str(report)
    (comparison,) = report.comparisons
    assert comparison.worst("float64") <= 1e-10 and comparison.export is not None
    assert "encoder.stack.layers.1.feedforward.router.weight" in comparison.gradients
    names = {layer.name for layer in comparison.layers}
    assert {"encoder.stack.layers.1.feedforward", "decoder.stack.layers.1.cross_attention", "logits"} <= names
    assert {"encoder_router_logits.0", "decoder_router_logits.0"} <= names


@pytest.mark.parametrize("change", [{"capacity": 2}, {"experts": 1}, {"router_bias": True}, {"experts": 16}])
def test_other_mixtures(change):
    fields = zoo.get_config("switch-base-8", SMALL).plain()
    for side in ("encoder", "decoder"):
        fields[side]["stack"]["pattern"][1]["feedforward"].update(change)
    report = zoo.verify(zoo.get_config(fields), tiny=True, gradients=False, training=False)
    assert report.passed and report.comparisons[0].exchanged == [], str(report)


def mixture(model, side="encoder"):
    return getattr(model, side).stack.layers[1].feedforward


def changed(part, **fields):
    part.config = part.config.model_copy(update=fields)


def no_capacity(model):
    changed(mixture(model), capacity=None)


def one_token_fewer(model):
    changed(mixture(model, "decoder"), capacity=mixture(model, "decoder").config.capacity - 1)


def shares_divided_by_their_sum(model):
    changed(mixture(model), normalise=True)


def two_experts(model):
    changed(mixture(model), top_k=2)


def routed_in_double_precision(model):
    changed(mixture(model), precision="same")


def experts_in_another_order(model):
    experts = mixture(model, "decoder").experts
    for parameter in experts.parameters():
        parameter.data = parameter.data.roll(1, 0)


def last_experts_exchanged(model):
    experts = mixture(model).experts
    experts.up.weight.data = experts.up.weight.data.flip(0)


def overflow_keeps_the_token(model):
    """As earlier versions of the reference had it."""
    part = mixture(model)
    forward = part.forward

    def kept(x, layout=None):
        mixed = forward(x, layout)
        return torch.where((mixed == 0).all(-1, keepdim=True), x, mixed)

    part.forward = kept


def capacity_of_the_batch(model):
    part = mixture(model)
    within = part._within_capacity
    part._within_capacity = lambda chosen, x, layout: within(chosen, x.flatten(0, -2)[None], None)


def last_tokens_first(model):
    part = mixture(model)
    within = part._within_capacity

    def reversed_order(chosen, x, layout):
        texts = chosen.view(x.shape[0], -1, chosen.shape[1])
        return within(texts.flip(1).reshape(chosen.shape), x, layout).view(texts.shape).flip(1).reshape(chosen.shape)

    part._within_capacity = reversed_order


def other_activation(model):
    mixture(model).experts.__dict__["plan"].activation = "gelu"


def dense_layer_is_another(model):
    model.encoder.stack.layers[0].feedforward.activation = "gelu"


ENCODER = "encoder.stack.layers.1.feedforward"
MISTAKES = {
    no_capacity: ENCODER,
    one_token_fewer: "decoder.stack.layers.1.feedforward",
    shares_divided_by_their_sum: ENCODER,
    two_experts: ENCODER,
    routed_in_double_precision: ENCODER,
    experts_in_another_order: "decoder.stack.layers.1.feedforward",
    last_experts_exchanged: ENCODER,
    overflow_keeps_the_token: ENCODER,
    capacity_of_the_batch: ENCODER,
    last_tokens_first: ENCODER,
    other_activation: ENCODER,
    dense_layer_is_another: "encoder.stack.layers.0.feedforward",
}


@pytest.mark.parametrize(("mutation", "name"), one_in_four(MISTAKES.items()))
@torch.no_grad()
def test_a_planted_mistake_is_caught_and_named(monkeypatch, mutation, name):
    """With room for few tokens, so that some come too late."""
    plant(monkeypatch, mutation)
    fields = zoo.get_config("switch-base-8", SMALL).plain()
    for side in ("encoder", "decoder"):
        fields[side]["stack"]["pattern"][1]["feedforward"]["capacity"] = 4
    report = zoo.verify(zoo.get_config(fields), tiny=True, training=False, gradients=False)
    assert not report.passed
    assert report.first_divergence == name, str(report)
