"""Every preset equals its references: small here, at full size in the slow run."""

import pytest
from planted import one_of_each

import zoo

TIMM_ONLY = {"deit3-small": "embedding.prefix_position", "vit-base-registers": "embedding.class_token"}


@pytest.mark.parametrize("name", one_of_each([n for n in zoo.list_models() if zoo.get_config(n).type == "transformer"]))
def test_a_preset_equals_its_references(name):
    """Forward, gradients, train mode and export, in float64 to 1e-10 and in float32 to the reference's own noise."""
    report = zoo.verify(name, tiny=True)
    assert report.passed, str(report)
    text = zoo.get_config(name).embedding.type == "tokens"
    expected = {"transformers"} if text else {"timm"} if name in TIMM_ONLY else {"timm", "transformers"}
    assert {each.library for each in report.comparisons} == expected
    for each in report.comparisons:
        assert each.worst("float64") <= 1e-10
        assert len(each.gradients) >= 18 and each.training and each.export is not None
        head = getattr(zoo.get_config(name).head, "type", None)
        answer = "last_hidden_state" if head in (None, "pooler") else "logits"
        assert {"embedding", "stack.layers.0.attention", "stack.layers.1", answer} <= {layer.name for layer in each.layers}
    # fresh biases of Swin are drawn, as in its paper's own code; Hugging Face's start at zero
    recipe = "timm" if name in TIMM_ONLY or name.startswith("swin") else "transformers"
    otherwise = next(each.fresh for each in report.comparisons if each.library == recipe)
    # the paper of DeiT draws tokens and positions, which Hugging Face's starts at zero
    tokens = ["embedding.class_token", "embedding.register_tokens", "embedding.position.table"]
    assert otherwise == (tokens if name == "deit-small" else [])
    if name in TIMM_ONLY:
        assert TIMM_ONLY[name] in report.unavailable["transformers"]


def test_another_recipe_for_fresh_weights_is_seen():
    """timm draws tokens and the projection of patches otherwise than Hugging Face, whose recipe vit-tiny follows."""
    report = zoo.verify("vit-tiny", tiny=True, reference="timm")
    assert report.passed
    assert report.comparisons[0].fresh == ["embedding.class_token", "embedding.weight", "embedding.bias"]


@pytest.mark.parametrize("overrides", [
    {"embedding.image_size": [12, 25], "embedding.patch_size": [4, 5], "embedding.channels": 1,
     "embedding.position": {"type": "learned", "square": True}},
    {"stack.block.attention.bias": False, "head.classes": 3},
    {"stack.block.feedforward.activation": "quick-gelu", "stack.block.norm.eps": 1e-3, "stack.final_norm.eps": 1e-3},
    {"head": {"type": "pooler", "size": 9, "activation": "relu"}},
    {"head": None},
    {"stack.block.attention": {"heads": 2, "head_size": 5}},
])  # fmt: skip
def test_hugging_face_configs(overrides, tmp_path):
    """Configs of Hugging Face's ViT that no preset has; each is the reference's own, not an exchange."""
    config = zoo.get_config("vit-tiny", {"stack.depth": 2, "embedding.image_size": 32, "stack.width": 24, **overrides})
    report = zoo.verify(config, reference="transformers")
    assert report.passed, str(report)
    assert report.comparisons[0].exchanged == []


@pytest.mark.parametrize("overrides", [
    {"embedding.class_token": False, "embedding.registers": 2, "head.pool": "mean-max"},
    {"embedding.flexible": True, "embedding.edges": "refuse", "embedding.position.resample": "bicubic-antialias"},
    {"embedding.flexible": True, "embedding.edges": "pad", "embedding.position.resample": "bicubic-antialias"},
    {"embedding.position": None, "head.pool": {"type": "max", "prefix": True}},
    {"embedding.output_norm": {"type": "layer-norm", "eps": 1e-6}, "embedding.bias": False},
    {"stack.block.attention.qk_norm": {"type": "layer-norm", "eps": 1e-6}, "stack.block.layer_scale": 0.1},
    {"stack.block.attention.output_norm": {"type": "layer-norm", "eps": 1e-6},
     "stack.block.feedforward.norm": {"type": "layer-norm", "eps": 1e-6}},
    {"stack.block.feedforward": {"type": "gated", "hidden": 20, "activation": "silu"}, "stack.block.layer_scale": 0.1},
    {"stack.block.order": "branch"},
    {"head.pool": {"type": "attention", "attention": {"heads": 3}, "norm": {"eps": 1e-6}, "feedforward": {"ratio": 4}}},
    {"head.pool": "none"},
    {"head.pool": "mean", "head.norm": {"type": "layer-norm", "eps": 1e-6}, "stack.final_norm": None},
    {"head.classes": 0},
])  # fmt: skip
def test_timm_configs(overrides):
    """Configs of timm's VisionTransformer that no preset has."""
    config = zoo.get_config("vit-tiny", {"stack.depth": 2, "embedding.image_size": 32, "stack.width": 24, **overrides})
    report = zoo.verify(config, reference="timm")
    assert report.passed, str(report)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit-tiny", "vit-small", "deit-small", "deit3-small", "vit-base", "vit-base-registers"])
def test_a_preset_equals_its_references_at_full_size(name):
    """The published sizes; larger ones are certified by `make certificates`."""
    report = zoo.verify(name, training=False)
    assert report.passed, str(report)
