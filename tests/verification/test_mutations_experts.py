"""Planted mistakes in mixtures of experts: each one is caught, and the module that it was planted in is named."""

from types import MethodType

import pytest
import torch
from planted import one_in_four, plant

import zoo
from zoo.registry import make

LAYER = "stack.layers.1"
FEEDFORWARD, ROUTER = f"{LAYER}.feedforward", f"{LAYER}.feedforward.router"


def sparse(model):
    return model.stack.layers[1].feedforward


def configured(model, **changes):
    part = sparse(model)
    part.config = part.config.model_copy(update=changes)


def not_normalised(model):
    configured(model, normalise=False)


def softmax_in_double_precision(model):
    configured(model, precision="same")


def router_in_single_precision(model):
    configured(model, precision="router")


def one_expert_less(model):
    configured(model, top_k=1)


def one_expert_more(model):
    configured(model, top_k=3)


def a_capacity(model):
    configured(model, capacity=4)


def swap_experts(model):
    for parameter in sparse(model).experts.parameters():
        parameter.data[[0, 1]] = parameter.data[[1, 0]]


def swap_rows_of_the_router(model):
    weight = sparse(model).router.weight
    weight.data[[0, 1]] = weight.data[[1, 0]]


def swap_gate_and_up(model):
    experts = sparse(model).experts
    experts.gate, experts.up = experts.up, experts.gate


def one_expert_is_another(model):
    sparse(model).experts.down.weight.data[3] = sparse(model).experts.down.weight.data[2]


def other_activation(model):
    sparse(model).experts.plan.activation = "gelu"


def with_choice(model, change):
    part = sparse(model)
    choice = part._choice
    part._choice = MethodType(lambda self, logits: change(*choice(logits)), part)


def weights_in_another_order(model):
    with_choice(model, lambda weights, chosen: (weights.flip(-1), chosen))


def equal_weights(model):
    with_choice(model, lambda weights, chosen: (torch.full_like(weights, 1 / weights.shape[-1]), chosen))


def the_worst_are_chosen(model):
    part = sparse(model)
    choice = part._choice
    part._choice = MethodType(lambda self, logits: choice(-logits), part)


def weights_a_little_too_large(model):
    with_choice(model, lambda weights, chosen: (weights * (1 + 1e-6), chosen))


def a_shared_expert(model):
    part = sparse(model)
    part.shared = make(part.config.expert, width=model.stack.width).double()
    for parameter in part.shared.parameters():
        torch.nn.init.constant_(parameter, 0.01)


def jitter_stays_on(model):
    part = sparse(model)
    forward = part.forward
    part.forward = lambda x, *layout: forward(x * 1.01, *layout)


def rows_go_back_to_other_tokens(model):
    part = sparse(model)
    forward = part.forward
    part.forward = lambda x, *layout: forward(x, *layout).roll(1, -2)


def losses_count_padding(model):
    import zoo.model.transformer as owner

    wanted = owner.router_answers
    return owner, lambda layout, *others: wanted(layout._replace(real=None), *others)


MUTATIONS = {
    not_normalised: FEEDFORWARD, softmax_in_double_precision: FEEDFORWARD, one_expert_less: FEEDFORWARD,
    one_expert_more: FEEDFORWARD, a_capacity: FEEDFORWARD, swap_experts: FEEDFORWARD, swap_rows_of_the_router: ROUTER,
    swap_gate_and_up: FEEDFORWARD, one_expert_is_another: FEEDFORWARD, other_activation: FEEDFORWARD,
    weights_in_another_order: FEEDFORWARD, equal_weights: FEEDFORWARD, the_worst_are_chosen: FEEDFORWARD,
    weights_a_little_too_large: FEEDFORWARD, a_shared_expert: FEEDFORWARD, jitter_stays_on: ROUTER,
    rows_go_back_to_other_tokens: FEEDFORWARD,
}  # fmt: skip


def verified(monkeypatch, mutation):
    plant(monkeypatch, mutation)
    return zoo.verify("mixtral-8x7b", reference="transformers", tiny=True, training=False, gradients=False)


@pytest.mark.parametrize(("mutation", "name"), one_in_four(MUTATIONS.items()))
@torch.no_grad()
def test_a_planted_mistake_is_caught_and_named(monkeypatch, mutation, name):
    report = verified(monkeypatch, mutation)
    assert not report.passed
    # what a router is given in another way is seen where it scores, or in what the experts then give
    assert report.first_divergence in (name, FEEDFORWARD), str(report)


def test_nothing_is_caught_where_nothing_is_planted(monkeypatch):
    report = verified(monkeypatch, lambda model: None)
    assert report.passed
    layers = {layer.name for layer in report.comparisons[0].layers}
    assert {ROUTER, FEEDFORWARD, "router_logits.0", "router_logits.1", "aux_loss", "logits"} <= layers


def test_losses_that_count_padding_are_caught(monkeypatch):
    owner, changed = losses_count_padding(None)
    monkeypatch.setattr(owner, "router_answers", changed)
    report = verified(monkeypatch, lambda model: None)
    assert report.first_divergence == "aux_loss", str(report)


HEADS = {
    "none": None,
    "classifier": {"type": "classifier", "bias": False, "classes": 5, "pool": {"type": "last-token", "padding": 3}},
    "token-classifier": {"type": "token-classifier", "classes": 5},
    "span": "span",
}


@pytest.mark.parametrize("head", HEADS)
def test_a_head_equals_its_reference(head):
    overrides = {"head": HEADS[head], **({"embedding.padding": 3} if head == "classifier" else {})}
    report = zoo.verify(zoo.get_config("mixtral-8x7b", overrides), tiny=True)
    assert report.passed, str(report)


@pytest.mark.parametrize("overrides", [
    {"top_k": 1}, {"top_k": 8}, {"experts": 1, "top_k": 1}, {"experts": 3, "top_k": 3}, {"routing": "top-k-then-softmax"},
])  # fmt: skip
def test_numbers_of_experts(overrides):
    """Also all of them, and shares of the chosen alone, which are the same."""
    fields = {f"stack.block.feedforward.{name}": value for name, value in overrides.items()}
    config = zoo.get_config("mixtral-8x7b", fields)
    report = zoo.verify(config, tiny=True, training=False)
    assert report.passed, str(report)
