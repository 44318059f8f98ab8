"""Mixtures of experts: routing, capacity, shared experts and any kind of expert, against loops over tokens."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoo
from zoo.config.base import Slot
from zoo.errors import ConfigError
from zoo.layout import Layout
from zoo.model.routing import balance_loss, z_loss
from zoo.registry import make

MLP: dict[str, Any] = {"type": "mlp", "hidden": 12, "activation": "relu"}
GATED: dict[str, Any] = {"type": "gated", "hidden": 12, "bias": False}
NORMED: dict[str, Any] = {"type": "gated", "hidden": 12, "norm": {"type": "layer-norm"}}
WIDTH = 8


def part(**fields: Any) -> Any:
    """A redrawn part in float64."""
    config = Slot("feedforward").validate({"type": "mixture-of-experts", "experts": 5, "precision": "same", **fields})
    module = make(config, width=WIDTH).double()
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.5
    return module.eval()


def alone(module: Any, expert: int) -> Callable[[Tensor], Tensor]:
    """One of the experts, as a feed-forward by itself."""
    single = make(module.config.expert, width=WIDTH).double().eval()
    own = {name: value[expert] for name, value in module.experts.named_parameters()}
    return lambda token: torch.func.functional_call(single, own, (token,))


def expected(module: Any, x: Tensor) -> Tensor:
    """Token by token."""
    config, found = module.config, torch.zeros_like(x)
    experts = [alone(module, number) for number in range(config.experts)]
    for row, text in enumerate(x):
        taken, plans = [0] * config.experts, []
        for token in text:
            logits = module.router(token)
            best = (logits if config.routing == "top-k-then-softmax" else logits.softmax(0)).topk(config.top_k)
            shares = best.values / (best.values.sum() if config.normalise else 1.0)
            shares = best.values.softmax(0) if config.routing == "top-k-then-softmax" else shares
            plans.append(list(zip(best.indices.tolist(), shares)))
        for choice in range(config.top_k):
            for place, plan in enumerate(plans):
                expert, share = plan[choice]
                taken[expert] += 1
                if config.capacity is None or taken[expert] <= config.capacity:
                    found[row, place] = found[row, place] + share * experts[expert](text[place])
    return found if module.shared is None else found + module.shared(x)


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


CONFIGS: list[dict[str, Any]] = [
    {"expert": MLP},
    {"expert": GATED, "top_k": 1},
    {"expert": GATED, "top_k": 1, "normalise": False},
    {"expert": GATED, "top_k": 5},
    {"expert": GATED, "top_k": 3, "normalise": False, "router_bias": True},
    {"expert": MLP, "routing": "top-k-then-softmax", "top_k": 3},
    {"expert": GATED, "shared": {"type": "mlp", "hidden": 9}},
    {"expert": NORMED},
    {"expert": {**MLP, "norm": {"type": "rms-norm"}}, "capacity": 3},
    {"expert": MLP, "capacity": 2},
    {"expert": GATED, "capacity": 1, "top_k": 1, "normalise": False},
    {"expert": GATED, "capacity": 100},
    {"expert": GATED, "experts": 1, "top_k": 1},
]


@pytest.mark.parametrize("fields", CONFIGS, ids=str)
def test_it_equals_a_loop_over_tokens_and_so_do_its_gradients(fields: dict[str, Any]) -> None:
    module, x, direction = part(**fields), tokens(3, 7), tokens(3, 7, seed=1)
    x.requires_grad_(True)
    found = []
    for answer in (module(x), expected(module, x)):
        wanted = [x, *module.parameters()]
        gradients = torch.autograd.grad((answer * direction).sum(), wanted, allow_unused=True)
        gradients = [torch.zeros_like(of) if each is None else each for of, each in zip(wanted, gradients)]
        found.append([answer, *gradients])
    for mine, other in zip(*found):
        assert mine.shape == other.shape and (mine - other).abs().max() < 1e-12
    with torch.no_grad():
        assert (module(x) - found[1][0]).abs().max() < 1e-12


@pytest.mark.parametrize("expert", [MLP, GATED, NORMED])
def test_one_expert_takes_all_tokens_and_others_none(expert: dict[str, Any]) -> None:
    module, x = part(expert=expert, top_k=1, router_bias=True), tokens(2, 6)
    module.router.bias.data = torch.tensor([0.0, 0.0, 100.0, 0.0, 0.0], dtype=torch.float64)
    x.requires_grad_(True)
    answer = module(x)
    assert (answer - alone(module, 2)(x)).abs().max() < 1e-13
    answer.sum().backward()
    for parameter in module.experts.parameters():
        assert parameter.grad is not None and not parameter.grad[[0, 1, 3, 4]].any() and parameter.grad[2].any()


def test_ties_choose_different_experts_of_equal_shares() -> None:
    module, x = part(expert=GATED, top_k=2), tokens(2, 6)
    module.router.weight.data.zero_()
    weights, chosen = module._choice(module._scores(x.flatten(0, 1)))
    assert torch.equal(weights, torch.full_like(weights, 0.5)) and bool((chosen[:, 0] != chosen[:, 1]).all())
    assert (module(x) - expected(module, x)).abs().max() < 1e-13


def test_what_comes_too_late_gets_zero_and_padding_counts() -> None:
    """As in Switch: the first tokens of each text are taken, whatever else is in the batch."""
    module, x = part(expert=MLP, top_k=1, normalise=False, capacity=2, router_bias=True), tokens(3, 5)
    module.router.bias.data = torch.tensor([0.0, 100.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    answer = module(x)
    assert not answer[:, 2:].any() and bool((answer[:, :2].abs().sum(-1) > 0).all())
    # texts that stand one after another in a row are counted each for itself
    packed = module(x.flatten(0, 1)[None], Layout(lengths=(5, 5, 5)))
    assert torch.equal(packed[0], answer.flatten(0, 1))
    short = module(x.flatten(0, 1)[None], Layout(lengths=(1, 14)))
    assert bool(short[0, :3].any(-1).all()) and not short[0, 3:].any()


def test_jitter_changes_training_alone() -> None:
    module, x = part(expert=GATED, jitter=0.2), tokens(2, 5)
    assert torch.equal(module(x), module(x))
    module.train()
    torch.manual_seed(0)
    first, second = module(x), module(x)
    assert not torch.equal(first, second) and (first - second).abs().max() < 5
    module.config = module.config.model_copy(update={"jitter": 0.0})
    assert torch.equal(module(x), module(x))


@pytest.mark.parametrize(
    ("precision", "dtype"), [("same", torch.float64), ("softmax", torch.float32), ("router", torch.float32)]
)
def test_shares_are_computed_in_the_type_that_is_asked_for(precision: str, dtype: Any) -> None:
    module, x = part(expert=GATED, precision=precision), tokens(2, 5).flatten(0, 1)
    scores = module._scores(x)
    assert scores.dtype == (torch.float32 if precision == "router" else torch.float64)
    weights, _ = module._choice(scores)
    assert weights.dtype == dtype and module(x[None]).dtype == torch.float64
    exact, _ = module._choice(module.router(x).double())
    assert (weights - exact).abs().max() < 1e-6


def test_dropout_of_experts_acts_in_training() -> None:
    module, x = part(expert={**MLP, "dropout": 0.5}), tokens(2, 50)
    assert torch.equal(module(x), module(x))
    module.train()
    assert not torch.equal(module(x), module(x))


class Own(nn.Module):
    """A feed-forward of a user's own, with a parameter of its own."""

    def __init__(self, config: Any, *, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.inside = nn.Sequential(nn.Linear(width, 5), nn.Tanh(), nn.Linear(5, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.inside(x)


def test_an_expert_of_any_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    from typing import Literal

    from zoo.feedforward.base import FeedForwardConfig

    class Config(FeedForwardConfig):
        """Config of one's own."""

        type: Literal["own-expert"] = "own-expert"

    Own.Config = Config  # type: ignore[attr-defined]
    zoo.register("feedforward", "own-expert")(Own)
    module, x = part(expert={"type": "own-expert"}, top_k=3), tokens(2, 6)
    assert {name for name, _ in module.experts.named_parameters()} == {
        "scale", "inside.0.weight", "inside.0.bias", "inside.2.weight", "inside.2.bias",
    }  # fmt: skip
    assert module.experts.get_parameter("inside.0.weight").shape == (5, 5, WIDTH)
    assert (module(x) - expected(module, x)).abs().max() < 1e-13
    copied = copy.deepcopy(module)
    assert torch.equal(copied(x), module(x))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"top_k": 6}, "top_k: 6 of 5 experts cannot be chosen"),
        ({"experts": 0}, "experts"),
        ({"routing": "top-k-then-softmax", "normalise": False}, "normalise: shares of the chosen experts alone"),
        ({"expert": {"type": "mixture-of-experts", "experts": 2, "expert": "mlp"}}, "an expert is one feed-forward"),
        ({"expert": {"type": "mlp", "hiden": 3}}, "hiden"),
        ({"expert": {"type": "mlp", "ratio": 1e-9}}, "expert.ratio"),
        ({"capacity": 0}, "capacity"),
        ({"jitter": 1.0}, "jitter"),
        ({"hidden": 4}, "hidden"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, Any], words: str) -> None:
    given = {"type": "mixture-of-experts", "experts": 5, "expert": GATED, **fields}
    with pytest.raises(ConfigError, match=words):
        zoo.get_config("gpt2", {"stack.block.feedforward": given})


SMALL: dict[str, Any] = {
    "embedding.vocabulary": 61, "stack.width": 16, "stack.depth": 3, "stack.block.attention.heads": 4,
    "stack.block.attention.kv_heads": 2, "stack.block.feedforward": {
        "type": "mixture-of-experts", "experts": 4, "expert": {"type": "gated", "hidden": 20, "bias": False},
        "balance": 0.3, "z_loss": 0.1,
    },
}  # fmt: skip


def model(**overrides: Any) -> Any:
    torch.manual_seed(0)
    return zoo.build("llama-2-7b", {**SMALL, **overrides})


def test_losses_ignore_padding_and_are_those_of_their_papers() -> None:
    made, mask = model().double().eval(), torch.ones(2, 9, dtype=torch.long)
    ids = torch.randint(0, 61, (2, 9), generator=torch.Generator().manual_seed(1))
    mask[1, 5:] = 0
    answer = made(ids, attention_mask=mask, output_router_logits=True)
    assert len(answer.router_logits) == 3 and answer.router_logits[0].shape == (18, 4) and answer.router_loss is None
    real = mask.flatten().bool()
    kept = torch.cat([logits[real] for logits in answer.router_logits])
    shares, chosen = kept.softmax(-1), kept.topk(2).indices
    counts = torch.stack([(chosen == expert).any(-1).double().mean() for expert in range(4)])
    assert float(answer.aux_loss) == pytest.approx(float((counts * shares.mean(0)).sum() * 4), abs=1e-6)
    assert float(z_loss(list(answer.router_logits), mask.bool())) == pytest.approx(
        float(kept.logsumexp(-1).square().mean()), 1e-6
    )
    other = made(ids.masked_fill(mask == 0, 7), attention_mask=mask, output_router_logits=True)
    assert torch.equal(answer.aux_loss, other.aux_loss)
    trained = made.train()(ids, attention_mask=mask)
    assert trained.router_logits is None
    expected = 0.3 * answer.aux_loss + 0.1 * z_loss(list(answer.router_logits), mask.bool())
    assert float(trained.router_loss) == pytest.approx(float(expected), rel=1e-6)


def test_balance_has_its_bounds() -> None:
    even = torch.eye(4).repeat(3, 1) * 50
    assert float(balance_loss([even], 1)) == pytest.approx(1.0)
    assert float(balance_loss([even[:1].repeat(9, 1)], 1)) == pytest.approx(4.0)
    assert float(balance_loss([torch.zeros(8, 4)], 4)) == pytest.approx(4.0)


def test_nothing_is_said_where_nothing_is_routed_or_asked() -> None:
    ids = torch.zeros(1, 4, dtype=torch.long)
    plain = zoo.build("llama-2-7b", {**SMALL, "stack.block.feedforward": {"type": "gated", "hidden": 8}})
    answer = plain(ids, output_router_logits=True)
    assert answer.router_logits is None and answer.aux_loss is None and answer.router_loss is None
    made = model(**{"stack.block.feedforward.balance": 0.0, "stack.block.feedforward.z_loss": 0.0})
    assert made.train()(ids).router_loss is None and made(ids).aux_loss is None


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_routers_learn_from_their_losses(checkpointing: bool) -> None:
    made, ids = model(), torch.randint(0, 61, (2, 9), generator=torch.Generator().manual_seed(1))
    made.gradient_checkpointing(checkpointing)
    made.train()(ids).router_loss.backward()
    router = made.stack.layers[2].feedforward.router.weight
    assert router.grad is not None and router.grad.abs().max() > 0
    assert made.head.weight.grad is None


def test_a_training_step_adds_them_to_its_loss() -> None:
    task = make(Slot("task").validate({"type": "causal-language"}))
    batch = {"input_ids": torch.randint(0, 61, (2, 9), generator=torch.Generator().manual_seed(1))}
    made = model()
    with torch.no_grad():
        added = made.train()(**batch).router_loss
        assert float(task.step(made, batch).loss - task.step(made.eval(), batch).loss) == pytest.approx(float(added), abs=1e-6)


def test_leaving_padding_out_changes_neither_answers_nor_losses() -> None:
    ids, mask = torch.randint(0, 61, (3, 9), generator=torch.Generator().manual_seed(1)), torch.ones(3, 9, dtype=torch.long)
    mask[1, 4:], mask[2, 7:] = 0, 0
    made, other = model().double().eval(), model(**{"stack.padding": "skip"}).double().eval()
    other.load_state_dict(made.state_dict())
    given = {"attention_mask": mask, "output_router_logits": True}
    first, second = made(ids, **given), other(ids, **given)
    real = mask.bool()
    assert (first.logits - second.logits)[real].abs().max() < 1e-12
    assert second.router_logits[0].shape == (int(real.sum()), 4)
    assert (first.aux_loss - second.aux_loss).abs() < 1e-6


def test_decoding_over_a_cache_routes_each_token_as_before() -> None:
    made, ids = model().double().eval(), torch.randint(0, 61, (2, 9), generator=torch.Generator().manual_seed(1))
    whole = made(ids).logits
    first = made(ids[:, :5], use_cache=True)
    second = made(ids[:, 5:], past_key_values=first.past_key_values, output_router_logits=True)
    assert (second.logits - whole[:, 5:]).abs().max() < 1e-12 and second.router_logits[0].shape == (8, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_it_compiles_whole(dtype: Any) -> None:
    made, ids = model().to(dtype).eval(), torch.randint(0, 61, (2, 9), generator=torch.Generator().manual_seed(1))
    compiled = torch.compile(made, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        apart = (compiled(ids).logits - made(ids).logits).abs().max()
    assert float(apart) <= {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 5e-2}[dtype]


def test_fresh_experts_are_drawn_as_one_alone() -> None:
    experts = model(**{"stack.width": 64, "init": {"type": "width-scaled"}}).stack.layers[0].feedforward.experts
    for name, width in (("up.weight", 64), ("down.weight", 20)):
        deviations = experts.get_parameter(name).std((1, 2))
        assert len(set(deviations.tolist())) == 4 and deviations.sub(width**-0.5).abs().max() < 0.15 * width**-0.5


def test_active_parameters_and_cost() -> None:
    made, dense = zoo.build("mixtral-8x7b", device="meta"), zoo.build("mistral-7b", device="meta")
    assert made.num_parameters() == 46_702_792_704 and made.num_parameters(active=True) == 12_879_925_248
    assert dense.num_parameters(active=True) == dense.num_parameters() == 7_241_732_096
    small = zoo.cost("llama-2-7b", SMALL, tokens=8)
    block = next(each for each in small.walk() if each.name == "stack.layers.0.feedforward")
    mixing = 2 * 16
    assert block.flops == 2 * 8 * (16 * 4 + 2 * 3 * 16 * 20 + mixing) and block.parameters == 16 * 4 + 4 * 3 * 16 * 20
