"""Every decoder equals its reference: the presets with each head, configs that no preset has, and unusual numbers."""

import pytest
import torch

import zoo
from zoo.errors import ConfigError
from zoo.verification.cases import calls

POOL = {"type": "last-token", "padding": 3}
HEADS = {
    "none": None,
    "language-model": {"type": "language-model", "tied": True},
    "untied": {"type": "language-model", "tied": False},
    "classifier": {"type": "classifier", "bias": False, "classes": 5, "pool": POOL},
    "one by one": {"type": "classifier", "bias": False, "classes": 5, "pool": "last-token"},
    "token-classifier": {"type": "token-classifier", "classes": 5, "dropout": 0.1},
    "span": "span",
}
PRESETS = ["gpt2", "llama-3.2-1b", "mistral-7b", "qwen2.5-0.5b"]
OTHERS = ["gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2", "llama-2-7b", "llama-3-8b"]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("preset", PRESETS)
def test_a_head_equals_its_reference(preset, head):
    overrides = {"head": HEADS[head]}
    if head == "classifier" and preset != "gpt2":
        overrides["embedding.padding"] = 3
    found = verified(preset, overrides)
    layers = {layer.name for layer in found.layers}
    assert head == "none" or layers & {"head", "head.output"}
    assert {f"stack.layers.1.{part}" for part in ("attention", "attention_norm", "feedforward", "feedforward_norm")} <= layers
    assert {"embedding", "stack.layers.0", "stack.layers.1", "stack.final_norm"} <= layers
    sites = {site for name in found.training for site in name.replace(" and ", " ").replace(",", "").split()}
    assert "attention" in sites and (preset != "gpt2" or {"embedding", "block"} <= sites)
    assert head != "token-classifier" or "head" in sites


@pytest.mark.parametrize("preset", OTHERS)
def test_a_preset_equals_its_reference(preset):
    verified(preset, {})


def verified(preset, overrides):
    report = zoo.verify(zoo.get_config(preset, overrides), tiny=True)
    assert report.passed, str(report)
    (found,) = report.comparisons
    assert found.library == "transformers" and found.exchanged == [] and found.export is not None and found.fresh == []
    assert found.worst("float64") <= 1e-10
    assert {"texts", "padded on the right", "padded on the left", "holes", "given positions"} <= set(found.cases)
    assert preset != "gpt2" or "segments" in found.cases
    head = zoo.get_config(preset, overrides).head
    cached = {"over a cache", "over a cache, padded on the left"} & set(found.cases)
    assert len(cached) == (2 if head is None or head.type == "language-model" else 0)
    return found


def test_a_case_over_a_cache_is_one_call_after_another():
    ids = torch.arange(14).reshape(2, 7)
    inputs = {"input_ids": ids, "attention_mask": ids % 2, "position_ids": ids + 1}
    assert [each.keys() for each in calls(inputs)] == [inputs.keys()]
    parts = calls({**inputs, "chunks": (4, 1, 2)})
    assert [part["input_ids"].tolist()[0] for part in parts] == [[0, 1, 2, 3], [4], [5, 6]]
    assert [part["position_ids"].tolist()[1] for part in parts] == [[8, 9, 10, 11], [12], [13, 14]]
    assert [part["attention_mask"].shape[1] for part in parts] == [4, 5, 7]


GPT2 = {
    "embedding.vocabulary": 61, "embedding.position.length": 40, "stack.width": 24, "stack.block.attention.heads": 3,
    "stack.depth": 2,
}  # fmt: skip
LLAMA = {
    "embedding.vocabulary": 61, "stack.width": 24, "stack.block.attention.heads": 6, "stack.block.attention.kv_heads": 3,
    "stack.depth": 2, "stack.block.feedforward.hidden": 40, "stack.block.attention.position.length": 20,
}  # fmt: skip
ROTARY = "stack.block.attention.position"
LOCAL = {"type": "local", "window": 3}


@pytest.mark.parametrize(
    ("preset", "overrides"),
    [
        ("gpt2", {"stack.block.attention.scale": 1.0}),
        ("gpt2", {"stack.pattern": [{"attention": {"scale": 1.0}}, {"attention": {"scale": 0.5}}]}),
        ("gpt2", {"stack.block.norm.eps": 1e-3, "stack.final_norm.eps": 1e-3}),
        ("gpt2", {"stack.block.attention.heads": 1, "stack.block.feedforward": {"hidden": 7, "activation": "relu"}}),
        ("gpt2", {"embedding.position.length": 5, "head": None}),
        ("llama-2-7b", {"stack.block.attention": {"head_size": 10, "kv_heads": 1}}),
        ("llama-2-7b", {"stack.block.attention": {"bias": True, "output_bias": True}, "stack.block.feedforward.bias": True}),
        ("llama-2-7b", {"embedding.padding": 60, "head.tied": True, ROTARY: {"theta": 3.7}}),
        ("llama-2-7b", {f"{ROTARY}.scaling": {"type": "linear", "factor": 2.5}}),
        ("llama-2-7b", {f"{ROTARY}.scaling": {"type": "dynamic", "factor": 3.3, "length": 20}}),
        ("llama-2-7b", {f"{ROTARY}.scaling": {"type": "llama3", "factor": 3.3, "length": 8, "slow": 0.4, "fast": 7.0}}),
        ("llama-2-7b", {f"{ROTARY}.scaling": {"type": "yarn", "factor": 9.0, "length": 8, "slow": 0.4, "attention": 0.7}}),
        ("llama-2-7b", {f"{ROTARY}.scaling": {"type": "yarn", "factor": 9.0, "length": 8, "fast": 2.0, "truncate": False}}),
        ("mistral-7b", {"stack.block.attention.window": 0}),
        ("mistral-7b", {"stack.block.attention.window": 4095}),
        ("mistral-7b", {"stack.block.attention": {"window": 30, "kv_heads": 1, "head_size": 6}}),
        ("qwen2.5-0.5b", {"stack.pattern": [{}, {"attention": LOCAL}]}),
        ("qwen2.5-0.5b", {"stack.pattern": [{"attention": LOCAL}, {}, {}], "stack.depth": 4}),
        ("qwen2.5-0.5b", {"stack.block.attention": LOCAL}),
    ],
    ids=str,
)
def test_configs_that_no_preset_has(preset, overrides):
    """Each is the reference's own, not an exchange."""
    small = GPT2 if preset == "gpt2" else LLAMA
    report = zoo.verify(zoo.get_config(preset, {**small, **overrides}), reference="transformers")
    assert report.passed, str(report)
    assert report.comparisons[0].exchanged == []


@pytest.mark.parametrize("preset", ["gpt2", "llama-2-7b", "qwen2.5-0.5b"])
def test_local_attention_in_one_layer_is_named(preset):
    report = zoo.verify(preset, {"stack.pattern": [{}, {"attention": LOCAL}]}, tiny=True)
    assert report.first_divergence == "stack.layers.1.attention"


def test_what_the_reference_has_no_model_for_is_refused():
    with pytest.raises(ConfigError, match="no reference to verify it against"):
        zoo.verify(zoo.get_config("llama-2-7b", {**LLAMA, f"{ROTARY}.fraction": 0.5}), reference="transformers")
