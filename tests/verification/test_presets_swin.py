"""Swins that no preset has, and how many sizes of images the presets are compared on."""

import pytest

import zoo

TINY = {
    "embedding.image_size": 48, "stack.width": 12, "stack.block.attention.window": 3, "head.classes": 5,
    "stack.stages": [{"depth": 2, "heads": 3}, {"depth": 2, "heads": 3}, {"depth": 2, "heads": 6}],
}  # fmt: skip
ANY_SIZE = {"stack.block.attention.small": "shift", "stack.block.attention.fill": "after-shift", "embedding.edges": "refuse"}


def config(**overrides):
    given = {name: value for name, value in TINY.items() if not (name == "head.classes" and "head" in overrides)}
    return zoo.get_config("swin-tiny", {**given, **overrides})


def compared(overrides, library):
    report = zoo.verify(config(**overrides), reference=library, training=False)
    assert report.passed, str(report)
    assert report.comparisons[0].exchanged == []
    return report.comparisons[0]


@pytest.mark.parametrize("overrides", [
    {"head": {"type": "pooler", "pool": "mean", "projection": False}},
    {"embedding.position": {"type": "learned", "square": True}, "embedding.flexible": False},
    {"embedding.flexible": False, "stack.block.attention.fill": "after-shift", "embedding.edges": "cut"},
    {"stack.block.norm.eps": 1e-3, "stack.final_norm.eps": 1e-3, "stack.block.attention.bias": False},
    {"stack.stages": [{"depth": 1, "heads": 2}, {"depth": 3, "heads": 4}], "stack.block.feedforward.ratio": 2.5},
    {"embedding.image_size": [64, 36], "embedding.patch_size": [4, 2], "embedding.channels": 1},
])  # fmt: skip
def test_hugging_face_configs(overrides):
    compared(overrides, "transformers")


def test_a_backbone_of_hugging_face():
    head = {"type": "feature-maps", "features": ["stem", "stage2", "stage3"], "norm": {"type": "layer-norm", "eps": 1e-5}}
    found = compared({"head": head, "stack.final_norm": None, "stack.block.attention.small": "shift"}, "transformers")
    assert {"feature_maps.stem", "feature_maps.stage2", "feature_maps.stage3"} <= {layer.name for layer in found.layers}
    assert len(found.cases) == 9 and any(int(name.split()[0]) < 12 for name in found.cases[1:])  # smaller than a window


@pytest.mark.parametrize("overrides", [
    {},
    ANY_SIZE,
    {**ANY_SIZE, "stack.block.attention.window": [3, 5]},
    {"stack.block.attention.window": [2, 3], "stack.block.attention.head_size": 5, "embedding.image_size": [48, 72],
     "stack.stages": [{"depth": 2, "heads": 3}, {"depth": 2, "heads": 3}]},
    {"stack.stages": [{"depth": 2, "heads": 3, "block": {"attention": {"window": 4}, "feedforward": {"ratio": 3}}},
                      {"depth": 3, "heads": 2}]},
    {"head.pool": "max", "head.classes": 0},
])  # fmt: skip
def test_timm_configs(overrides):
    found = compared(overrides, "timm")
    assert len(found.cases) == (9 if "embedding.edges" in overrides else 1)


@pytest.mark.parametrize("name", [name for name in zoo.list_models() if name.startswith("swin")])
def test_a_preset_is_compared_on_eight_more_sizes(name):
    from zoo.verification.cases import cases
    from zoo.verification.shrink import shrink

    sizes = [tuple(each["pixel_values"].shape[2:]) for each in cases(shrink(zoo.get_config(name)), "transformers", 0).values()]
    assert len(set(sizes)) == 9 and sizes[0] == (96, 96)
    assert sum(bool(high % 4 or wide % 4) for high, wide in sizes) == 8  # none of them is whole patches
