"""Decoders with parallel blocks equal their references: presets with each head, and configs that no preset has."""

import pytest

import zoo
from zoo.checkpoint.huggingface_falcon import ALIBI
from zoo.checkpoint.save import family_for

POOL = {"type": "last-token", "padding": 3}
HEADS = {
    "none": None,
    "classifier": {"type": "classifier", "bias": False, "classes": 5, "pool": POOL},
    "one by one": {"type": "classifier", "bias": False, "classes": 5, "pool": "last-token"},
    "token-classifier": {"type": "token-classifier", "classes": 5, "dropout": 0.1},
    "span": "span",
}
PRESETS = ["falcon-7b", "gpt-j-6b", "pythia-70m", "palm-8b"]
OTHERS = ["falcon-40b", "gpt-neox-20b", "pythia-410m", "palm-62b", "palm-540b"]
CASES = {"texts", "padded on the right", "padded on the left", "holes", "given positions"}
POSITION, BIAS = "stack.block.attention.position", "stack.block.attention.bias"
BIASES = {BIAS: True, "stack.block.attention.output_bias": True, "stack.block.feedforward.bias": True}
SEQUENTIAL = {"stack.block.order": "pre", "stack.block.shared_norm": False}


def verified(preset, overrides, tiny=True):
    report = zoo.verify(zoo.get_config(preset, overrides), tiny=tiny, reference="transformers")
    assert report.passed, str(report)
    (found,) = report.comparisons
    assert found.exchanged == [] and found.export is not None and found.fresh == [] and found.training
    assert found.worst("float64") <= 1e-10 and set(found.cases) >= CASES
    return found


@pytest.mark.parametrize(
    ("preset", "head"),
    [
        (preset, head)
        for preset in PRESETS
        for head in HEADS
        if head == "none" or (preset != "palm-8b" and (preset, head) != ("gpt-j-6b", "token-classifier"))
    ],
)
def test_a_head_equals_its_reference(preset, head):
    layers = {layer.name for layer in verified(preset, {"head": HEADS[head]}).layers}
    norms = {"attention_norm"} | ({"feedforward_norm"} if preset == "pythia-70m" else set())
    assert {f"stack.layers.1.{part}" for part in ("attention", "feedforward", *norms)} <= layers
    assert {"embedding", "stack.layers.0", "stack.layers.1", "stack.final_norm"} <= layers
    assert head == "none" or "head.output" in layers


@pytest.mark.parametrize("preset", PRESETS + OTHERS)
def test_a_preset_equals_its_reference(preset):
    found = verified(preset, {})
    assert {"over a cache", "over a cache, padded on the left"} <= set(found.cases)
    assert preset != "gpt-j-6b" or "segments" in found.cases


@pytest.mark.parametrize(
    ("preset", "overrides"),
    [
        ("falcon-7b", {POSITION: {**ALIBI, "length": 2048}}),
        ("falcon-7b", {POSITION: {**ALIBI, "length": 2048}, **BIASES, **SEQUENTIAL, "stack.block.attention.kv_heads": 71}),
        ("falcon-40b", {POSITION: {**ALIBI, "length": 2048}, "head": HEADS["classifier"]}),
        ("falcon-40b", {**BIASES, "stack.block.shared_norm": True}),
        ("falcon-40b", {"stack.block.attention.kv_heads": 1}),
        ("falcon-7b", SEQUENTIAL),
        ("falcon-7b", {"stack.block.attention.kv_heads": None, "head.tied": False}),
        ("falcon-7b", {f"{POSITION}.scaling": {"type": "dynamic", "factor": 2.0, "length": 2048}}),
        ("gpt-neox-20b", {"stack.block.order": "pre", BIAS: False, "stack.block.attention.output_bias": False}),
        ("gpt-neox-20b", {f"{POSITION}.fraction": 1.0, "head.tied": True}),
        ("gpt-neox-20b", {f"{POSITION}.scaling": {"type": "linear", "factor": 2.5}}),
        ("gpt-neox-20b", {f"{POSITION}.scaling": {"type": "yarn", "factor": 9.0, "length": 8}}),
        ("gpt-j-6b", {f"{POSITION}.fraction": 1.0, "head.tied": True, "stack.block.feedforward.hidden": 70}),
        ("palm-8b", {BIAS: True, "stack.block.attention.output_bias": True, "embedding.padding": 0, "head.scale": None}),
    ],
    ids=str,
)
def test_configs_that_no_preset_has(preset, overrides):
    """Each is the reference's own, not an exchange."""
    verified(preset, overrides)


def test_alibi_is_compared_beyond_the_places_that_bfloat16_has():
    found = verified("falcon-7b", {POSITION: {**ALIBI, "length": 2048}})
    assert found.worst("float64") < 1e-13


@pytest.mark.parametrize("preset", ["falcon-7b", "gpt-j-6b", "pythia-70m"])
def test_local_attention_in_one_layer_is_named(preset):
    report = zoo.verify(preset, {"stack.pattern": [{}, {"attention": {"type": "local", "window": 3}}]}, tiny=True)
    assert report.first_divergence == "stack.layers.1.attention"


PALM = {"palm-8b": (4096, 32, 16, 8.63), "palm-62b": (8192, 64, 32, 62.50), "palm-540b": (18432, 118, 48, 540.35)}


@pytest.mark.parametrize("name", PALM)
def test_palm_has_the_numbers_of_its_paper(name):
    """Table 1: width, layers, heads of size 256, and billions of parameters, which leave out the scales of the norms."""
    width, depth, heads, billions = PALM[name]
    model = zoo.build(name, device="meta")
    config, scales = model.config, (depth + 1) * width
    block = config.stack.block
    assert (config.stack.width, config.stack.depth, block.attention.heads, block.attention.kv_heads) == (width, depth, heads, 1)
    assert block.feedforward.hidden == 4 * width and block.attention.head_size == 256 and config.embedding.vocabulary == 256_000
    kernels = depth * (2 * width * heads * 256 + 2 * width * 256 + 12 * width**2) + 256_000 * width
    assert model.num_parameters() == kernels + scales and round(kernels / 1e9, 2) == billions
    assert not any(name.endswith("bias") for name, _ in model.named_parameters())
    assert config.head.scale == width**-0.5


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("falcon-7b", {"multi_query": True, "parallel_attn": True, "new_decoder_architecture": False, "bias": False}),
        ("falcon-40b", {"num_kv_heads": 8, "new_decoder_architecture": True, "num_ln_in_parallel_attn": 2, "alibi": False}),
        ("gpt-j-6b", {"rotary_dim": 64, "n_positions": 2048, "n_inner": None, "tie_word_embeddings": False}),
        ("gpt-neox-20b", {"use_parallel_residual": True, "rope_parameters": {
            "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}}),
        ("pythia-70m", {"hidden_act": "gelu", "intermediate_size": 2048, "num_attention_heads": 8, "vocab_size": 50304}),
    ],
)  # fmt: skip
def test_a_preset_says_what_its_published_config_says(name, values):
    _, written = family_for(zoo.get_config(name), "transformers")
    assert {field: written[field] for field in values} == values
