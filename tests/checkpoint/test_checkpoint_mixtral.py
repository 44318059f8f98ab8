"""Hugging Face's Mixtral: loading, exporting, every field honoured or refused, experts stacked, routers and their loss."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bert_helpers import edit, given_and_given_back, rewrite
from parallel_helpers import WITHOUT_INFLUENCE, agree, check_absent, check_broken, check_field, inputs, opened, save
from safetensors.torch import load_file

import zoo
from zoo.checkpoint.huggingface_mixtral import HuggingFaceMixtral
from zoo.checkpoint.rules import Rule, Stacked
from zoo.errors import ConfigError, WeightsError

Make = Callable[..., Any]
ENDS = ("Model", "ForCausalLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
ROUTER = "model.layers.{}.block_sparse_moe.gate.weight"


@pytest.fixture
def saved(redraw: Make, tmp_path: Path) -> Make:
    """A function that makes a model of transformers, in float64, and the folder that it saved itself into."""

    def make(end: str = "ForCausalLM", **fields: Any) -> tuple[Any, Path]:
        folder = tmp_path / f"hf-{len(list(tmp_path.iterdir()))}"
        return save(f"Mixtral{end}", folder, redraw, **fields), folder

    return make


@torch.no_grad()
def routed_alike(ours: Any, theirs: Any) -> None:
    """The routers' scores and their loss, with padding and without."""
    for batch in inputs(theirs):
        own, other = ours(**batch, output_router_logits=True), theirs(**batch, output_router_logits=True)
        assert len(own.router_logits) == len(other.router_logits) == len(ours.stack.layers)
        for mine, answer in zip(own.router_logits, other.router_logits):
            assert mine.shape == answer.shape and (mine - answer).abs().max() < 1e-12
        if other.get("aux_loss") is not None:
            assert float((own.aux_loss - other.aux_loss).abs()) < 1e-12


@pytest.mark.parametrize("end", ENDS)
def test_a_folder_of_theirs_gives_their_outputs_and_is_given_back(saved: Make, tmp_path: Path, end: str) -> None:
    theirs, folder = saved(end)
    given_and_given_back(theirs, folder, tmp_path / "out", agree)
    if end in ("Model", "ForCausalLM"):
        routed_alike(zoo.load(folder), theirs)
    names, written = ({name.removeprefix("model.") for name in load_file(place / "model.safetensors")}
                      for place in (folder, tmp_path / "out"))  # fmt: skip
    assert names == written
    assert any(name.endswith("block_sparse_moe.experts.3.w1.weight") for name in names)


HONOURED: dict[str, list[Any]] = {
    "vocab_size": [37],
    "hidden_size": [36],
    "intermediate_size": [50, 1],
    "num_hidden_layers": [1, 3],
    "num_attention_heads": [12, 3],
    "num_key_value_heads": [1, 6],
    "head_dim": [6, 10],
    "hidden_act": ["relu", "gelu"],
    "max_position_embeddings": [7, 64],
    "initializer_range": [0.5],
    "rms_norm_eps": [1e-3, 0.5],
    "pad_token_id": [3],
    "tie_word_embeddings": [True],
    "sliding_window": [1, 2, 20],
    "attention_dropout": [0.3],
    "num_experts_per_tok": [1, 3, 4],
    "num_local_experts": [2, 9],
    "output_router_logits": [True],
    "router_aux_loss_coef": [0.3, 0.0],
    "router_jitter_noise": [0.2],
    "rope_parameters": [{"rope_type": "default", "rope_theta": 100.0}],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in HONOURED.items() for value in values])
def test_every_field_is_honoured_both_ways(saved: Make, tmp_path: Path, field: str, value: Any) -> None:
    theirs, folder = saved(**{field: value})
    ours = check_field(theirs, folder, tmp_path / "out")
    routed_alike(ours, theirs)
    part = ours.config.stack.block.feedforward
    assert (part.balance, part.jitter) == (
        value if field == "router_aux_loss_coef" else 0.001, value if field == "router_jitter_noise" else 0.0
    )  # fmt: skip


def test_no_field_of_theirs_is_untested() -> None:
    from transformers import MixtralConfig

    ignored = {*WITHOUT_INFLUENCE, "id2label", "experts_implementation", "num_experts"}
    assert set(MixtralConfig().to_dict()) <= {*HONOURED, *ignored}, "transformers has a new field"


def test_what_an_absent_field_means() -> None:
    from transformers import MixtralConfig

    check_absent(HuggingFaceMixtral(), MixtralConfig(), "MixtralForCausalLM")


def test_what_version_4_wrote_loads(saved: Make) -> None:
    theirs, folder = saved(rope_parameters={"rope_type": "default", "rope_theta": 50.0})
    edit(folder, rope_parameters=..., rope_theta=50.0, torch_dtype="float64", dtype=..., head_dim=..., router_jitter_noise=...)
    agree(zoo.load(folder), theirs)


@pytest.mark.parametrize("case", ["ties", "one takes all", "some take nothing", "two ties in one token"])
@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_routing_at_its_edges(saved: Make, case: str, top_k: int) -> None:
    """Equal scores are broken as there, and experts without a token, or with all, give what they give there."""
    _, folder = saved(num_experts_per_tok=top_k)

    def change(tensors: dict[str, Any]) -> None:
        for layer in range(2):
            weight = tensors[ROUTER.format(layer)]
            if case == "ties":
                weight.zero_()
            elif case == "one takes all":  # whatever the tokens are: the norm's weight makes the first feature constant
                tensors[f"model.layers.{layer}.post_attention_layernorm.weight"].fill_(1e-9)
                weight.copy_(torch.tensor([0.0, 0.0, 1.0, 0.0], dtype=torch.float64)[:, None] * weight.abs())
            elif case == "some take nothing":
                weight[1] = weight[0] * 1e-9
                weight[3] = weight[2]
            else:
                weight[1] = weight[0]

    rewrite(folder, change)
    theirs = opened(folder, "MixtralForCausalLM")
    ours = zoo.load(folder)
    agree(ours, theirs)
    routed_alike(ours, theirs)
    report = zoo.verify(str(folder), reference="transformers", gradients=True)
    assert report.passed, str(report)


def test_one_expert_takes_all_in_their_own_block(saved: Make) -> None:
    """Module against module: all tokens to one expert, and the other three without a token."""
    theirs, folder = saved(num_experts_per_tok=1)
    ours = zoo.load(folder)
    x = torch.rand(3, 7, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.1
    there, here = theirs.model.layers[0].mlp, ours.stack.layers[0].feedforward
    for expert in range(4):
        with torch.no_grad():
            for weight in (there.gate.weight, here.router.weight):
                weight.fill_(-1.0)
                weight[expert] = 1.0
            assert bool((here._choice(here._scores(x.flatten(0, 1)))[1] == expert).all())
            assert (there(x) - here(x)).abs().max() < 1e-12


def test_gradients_are_those_of_their_loss_with_its_share(saved: Make) -> None:
    """What a step of training pulls at: the loss of the scores and the routers'."""
    theirs, folder = saved(router_aux_loss_coef=0.5, output_router_logits=True)
    ours = zoo.load(folder)
    ids = torch.randint(0, 31, (3, 9), generator=torch.Generator().manual_seed(2))
    answer = theirs(ids, labels=ids)
    answer.loss.backward()
    own = ours.train()(ids)
    costs = torch.nn.functional.cross_entropy(own.logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
    loss = costs + own.router_loss
    assert float((loss - answer.loss).detach().abs()) < 1e-6
    loss.backward()
    expected = theirs.model.layers[1].mlp.gate.weight.grad
    assert (ours.stack.layers[1].feedforward.router.weight.grad - expected).abs().max() < 1e-5 * expected.abs().max()


def test_experts_are_stacked_by_the_rule_table() -> None:
    entry = Rule(("a", "b", "c"), ("whole",), Stacked())
    parts = [torch.randn(2, 5) for _ in range(3)]
    (whole,) = entry.operation.read(parts, [(3, 2, 5)])
    assert torch.equal(whole, torch.stack(parts)) and entry.operation.shapes([(3, 2, 5)]) == [(2, 5)] * 3
    assert all(torch.equal(mine, part) for mine, part in zip(entry.operation.write([whole]), parts))


@pytest.mark.parametrize(("change", "words"), [
    (lambda t: t.pop("model.layers.1.block_sparse_moe.experts.2.w2.weight"), r"missing.*experts\.2\.w2"),
    (lambda t: t.update({"model.layers.0.block_sparse_moe.experts.4.w1.weight": torch.zeros(40, 24)}), r"experts\.4\.w1"),
    (lambda t: t.update({"model.layers.0.block_sparse_moe.experts.1.w3.weight": torch.zeros(41, 24)}), r"experts\.1\.w3"),
])  # fmt: skip
def test_an_expert_that_is_missing_unknown_or_misshapen_is_named(saved: Make, change: Any, words: str) -> None:
    _, folder = saved()
    rewrite(folder, lambda tensors: (change(tensors), None)[1])
    with pytest.raises(WeightsError, match=words):
        zoo.load(folder)


@pytest.mark.parametrize(("fields", "words"), [
    ({"num_experts_per_tok": 5}, "top_k: 5 of 4 experts cannot be chosen"),
    ({"num_local_experts": 0}, "experts"),
    ({"num_local_experts": "4"}, "num_local_experts: expected a whole number"),
    ({"router_jitter_noise": 1.5}, "jitter"),
    ({"router_aux_loss_coef": None}, "router_aux_loss_coef: expected a number"),
    ({"attention_bias": True}, "attention_bias"),
    ({"sliding_window": 0}, "sliding_window: expected 1 or more"),
])  # fmt: skip
def test_a_broken_or_unknown_field_is_refused_by_name(saved: Make, fields: dict[str, Any], words: str) -> None:
    check_broken(saved()[1], fields, words)


def test_what_is_gated_alone_is_no_mixtral_and_what_has_experts_no_mistral(saved: Make) -> None:
    _, folder = saved()
    out = zoo.export(zoo.load(folder), folder / "out")
    assert json.loads((out / "config.json").read_text())["model_type"] == "mixtral"


FEEDFORWARD = "stack.block.feedforward"


@pytest.mark.parametrize(("overrides", "place"), [
    ({f"{FEEDFORWARD}.normalise": False}, "normalise"),
    ({f"{FEEDFORWARD}.router_bias": True}, "router_bias"),
    ({f"{FEEDFORWARD}.capacity": 3}, "capacity"),
    ({f"{FEEDFORWARD}.precision": "same"}, "precision"),
    ({f"{FEEDFORWARD}.shared": "mlp"}, "shared"),
    ({f"{FEEDFORWARD}.expert": "mlp"}, "feedforward.expert"),
    ({f"{FEEDFORWARD}.expert.bias": True}, "feedforward.bias"),
    ({FEEDFORWARD: {"type": "gated", "hidden": 40, "bias": False}}, FEEDFORWARD),
    ({"stack.pattern": [{}, {"feedforward": {"top_k": 1}}]}, "stack.pattern"),
])  # fmt: skip
def test_what_transformers_cannot_say_is_refused_with_our_field(overrides: dict[str, Any], place: str) -> None:
    with pytest.raises(ConfigError, match=place):
        HuggingFaceMixtral().write_config(zoo.get_config("mixtral-8x7b", overrides))


def test_the_preset_says_what_its_published_config_says() -> None:
    values = {
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2,
        "rms_norm_eps": 1e-5, "max_position_embeddings": 32768, "sliding_window": None, "router_aux_loss_coef": 0.02,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}, "tie_word_embeddings": False,
    }  # fmt: skip
    written = HuggingFaceMixtral().write_config(zoo.get_config("mixtral-8x7b"))
    assert {name: written[name] for name in values} == values
