"""Every preset of CLIP equals its references, small here, and has the published number of parameters."""

import pytest
from planted import one_of_each
from torch import nn

import zoo
from zoo.checkpoint.save import family_for

PUBLISHED = {
    "clip-vit-b32": 151_277_313,
    "clip-vit-b16": 149_620_737,
    "clip-vit-l14": 427_616_513,
    "clip-vit-l14-336": 427_944_193,  # that of 224 pixels, and 24 x 24 positions instead of 16 x 16
}
NAMES = {"clip-vit-b32": "ViT-B-32", "clip-vit-b16": "ViT-B-16", "clip-vit-l14": "ViT-L-14", "clip-vit-l14-336": "ViT-L-14-336"}


def test_every_preset_is_counted():
    assert set(zoo.list_models("clip*")) == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts(name):
    model = zoo.build(name, device="meta")
    assert model.num_parameters() == PUBLISHED[name]
    assert PUBLISHED["clip-vit-l14-336"] - PUBLISHED["clip-vit-l14"] == (24 * 24 - 16 * 16) * 1024


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_says_what_its_published_config_says(name):
    """transformers' defaults are those of ViT-B/32; open_clip has a config of each by name."""
    import open_clip
    from transformers import CLIPConfig

    _, values = family_for(zoo.get_config(name), "transformers")
    if name == "clip-vit-b32":
        defaults = CLIPConfig().to_dict()
        defaults["text_config"]["eos_token_id"] = 2  # as the published file has it
        for tower in ("text_config", "vision_config"):
            own, theirs = values.pop(tower), defaults.pop(tower)
            assert own == {field: theirs[field] for field in own}
        assert values == {**{field: defaults.get(field) for field in values}, "architectures": ["CLIPModel"]}
    _, values = family_for(zoo.get_config(name), "open_clip")
    theirs = open_clip.get_model_config(f"{NAMES[name]}-quickgelu")
    own = values["model_cfg"]
    assert own["quick_gelu"] is theirs["quick_gelu"] is True and own["embed_dim"] == theirs["embed_dim"]
    for tower in ("vision_cfg", "text_cfg"):
        assert {field: own[tower].get(field, 4.0) for field in theirs[tower]} == theirs[tower]


@pytest.mark.parametrize("name", one_of_each(list(PUBLISHED)))
def test_a_preset_equals_its_references(name):
    """Forward, gradients, train mode and export, in float64 to 1e-10 and in float32 to the reference's own noise."""
    report = zoo.verify(name, tiny=True)
    assert report.passed, str(report)
    assert [each.library for each in report.comparisons] == ["transformers", "open_clip"] and not report.unavailable
    theirs, other = report.comparisons
    for each in report.comparisons:
        assert each.worst("float64") <= 1e-10 and len(each.gradients) > 60 and each.export is not None
        names = {layer.name for layer in each.layers}
        assert {"vision.embedding", "vision.stack.layers.1.attention", "text.stack.layers.0", "text.stack.final_norm"} <= names
        assert {"logits_per_image", "logits_per_text", "image_embeds", "text_embeds"} <= names
    assert set(theirs.training) == {"attention dropout of texts", "attention dropout of images"}
    assert {"no end and images", "padded with what ends texts and images", "another image size"} <= set(theirs.cases)
    assert "text_model_output.last_hidden_state" in {layer.name for layer in theirs.layers}
    # open_clip draws the weights of texts as ours, and leaves their inner biases and images to torch's defaults
    assert all(name.startswith("vision.") or (".feedforward." in name and name.endswith("bias")) for name in other.fresh)
    # transformers scales the projections into an attention by the depth, and not the one behind it
    assert not any("feedforward" in name for name in theirs.fresh)


@pytest.mark.parametrize("tower", ["text", "vision"])
@pytest.mark.parametrize("head", ["projection", "pooler"])
def test_a_tower_alone_equals_its_reference(tower, head):
    config = getattr(zoo.get_config("clip-vit-b32"), tower)
    fields = config.model_dump()
    if head == "pooler":
        fields["head"] = {"type": "pooler", "projection": False, "pool": fields["head"]["pool"], "norm": fields["head"]["norm"]}
    report = zoo.verify(fields, tiny=True, reference="transformers")
    assert report.passed, str(report)
    answers = {"pooler_output"} if head == "pooler" else {"text_embeds" if tower == "text" else "image_embeds"}
    assert {*answers, "last_hidden_state", "embedding"} <= {layer.name for layer in report.layers}


@pytest.mark.parametrize("overrides", [
    {"text.head.pool.id": 49407},
    {"text.head.pool.id": 7, "text.stack.block.feedforward.activation": "gelu"},
    {"vision.stack.block.feedforward.activation": "relu", "vision.embedding.channels": 1},
    {"text.stack.depth": 1, "vision.stack.depth": 3, "text.head.size": 9, "vision.head.size": 9},
])  # fmt: skip
def test_other_configs_of_hugging_face(overrides):
    report = zoo.verify(zoo.get_config("clip-vit-b32", overrides), tiny=True, reference="transformers")
    assert report.passed and report.comparisons[0].exchanged == [], str(report)


GELU = {f"{tower}.stack.block.feedforward.activation": "gelu" for tower in ("text", "vision")}


@pytest.mark.parametrize("overrides", [
    {"text.head.pool.id": 49407},
    {**GELU, "logit_bias": -10.0},
    {"vision.embedding.image_size": [224, 288], "vision.stack.depth": 3},
    {"text.stack.block.feedforward.hidden": 1000, "vision.stack.block.feedforward.hidden": 1001},
])  # fmt: skip
def test_other_configs_of_open_clip(overrides):
    report = zoo.verify(zoo.get_config("clip-vit-b32", overrides), tiny=True, reference="open_clip")
    assert report.passed and report.comparisons[0].exchanged == [], str(report)


def test_an_exchanged_part_of_a_tower_is_found():
    """A LAION model read as one of OpenAI's: the activation, of which no tensor tells."""
    change = {"text.stack.block.feedforward.activation": "gelu"}
    report = zoo.verify("clip-vit-b32", change, tiny=True, reference="transformers")
    assert not report.passed
    assert report.first_divergence == "text.stack.layers.0.feedforward"
    inner = [layer.name for layer in report.layers if layer.diverges and layer.name.count(".") == 4]
    assert inner == [f"text.stack.layers.{layer}.feedforward" for layer in range(2)]


def test_fresh_weights_have_the_published_deviations():
    model = zoo.build("clip-vit-b32", {"vision.stack.depth": 2, "text.stack.depth": 2, "text.embedding.vocabulary": 999})
    block, width = model.text.stack.layers[0], 512
    expected = {
        model.text.embedding.table: 0.02, model.text.embedding.position.table: 0.01, block.attention.query.weight: width**-0.5,
        block.attention.output.weight: (4 * width) ** -0.5, block.feedforward.up.weight: (2 * width) ** -0.5,
        block.feedforward.down.weight: (4 * width) ** -0.5, model.text.head.output.weight: width**-0.5,
        model.vision.embedding.class_token: 768**-0.5, model.vision.embedding.position.table: 768**-0.5,
    }  # fmt: skip
    for tensor, std in expected.items():
        assert tensor.std().item() == pytest.approx(std, rel=0.1)
    assert not block.attention.query.bias.any() and (block.attention_norm.weight == 1).all()
    assert model.logit_scale.item() == pytest.approx(2.6592) and isinstance(model.logit_scale, nn.Parameter)
