"""Every preset of T5 equals its reference, small here, and has the published number of parameters."""

import pytest
import torch
from planted import one_of_each

import zoo
from zoo.checkpoint.save import family_for

PUBLISHED = {
    "t5-small": 60_506_624,
    "t5-base": 222_903_552,
    "t5-large": 737_668_096,
    "flan-t5-small": 76_961_152,
    "flan-t5-base": 247_577_856,
}


def test_every_preset_is_counted():
    assert {*zoo.list_models("t5*"), *zoo.list_models("flan*")} == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts(name):
    """Which transformers, without weights, has too; there, vectors of scores of their own come with the file."""
    from transformers import T5Config, T5ForConditionalGeneration

    ours = zoo.build(name, device="meta")
    assert ours.num_parameters() == PUBLISHED[name]
    _, values = family_for(ours.config, "transformers")
    with torch.device("meta"):
        theirs = T5ForConditionalGeneration(T5Config.from_dict(values))
    own = 0 if ours.config.decoder.head.tied else ours.encoder.embedding.table.numel()
    assert theirs.num_parameters() + own == PUBLISHED[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_says_what_its_published_config_says(name):
    """What transformers means by no config is T5 small; the others differ in these fields alone."""
    from transformers import T5Config

    sizes = {
        "t5-small": {},
        "t5-base": {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_decoder_layers": 12, "num_heads": 12},
        "t5-large": {"d_model": 1024, "d_ff": 4096, "num_layers": 24, "num_decoder_layers": 24, "num_heads": 16},
        "flan-t5-small": {"d_ff": 1024, "num_layers": 8, "num_decoder_layers": 8, "num_heads": 6},
        "flan-t5-base": {"d_model": 768, "d_ff": 2048, "num_layers": 12, "num_decoder_layers": 12, "num_heads": 12},
    }
    _, values = family_for(zoo.get_config(name), "transformers")
    flan = {"feed_forward_proj": "gated-gelu", "scale_decoder_outputs": False, "tie_word_embeddings": False}
    expected = {
        **T5Config().to_dict(), "architectures": ["T5ForConditionalGeneration"], "decoder_start_token_id": 0, **sizes[name],
        **(flan if name.startswith("flan") else {}),
    }  # fmt: skip
    assert values == {field: expected[field] for field in values}


@pytest.mark.parametrize("name", one_of_each(list(PUBLISHED)))
def test_a_preset_equals_its_reference(name):
    """Forward, gradients and export, in float64 to 1e-10 and in float32 to the reference's own noise."""
    report = zoo.verify(name, tiny=True)
    assert report.passed, str(report)
    (comparison,) = report.comparisons
    assert comparison.worst("float64") <= 1e-10 and comparison.export is not None and comparison.fresh == []
    assert len(comparison.gradients) > 45 and "decoder.stack.position.table" in comparison.gradients
    names = {layer.name for layer in comparison.layers}
    assert {"encoder.embedding", "encoder.stack.layers.1.attention", "decoder.stack.layers.1.cross_attention"} <= names
    assert {"decoder.stack.final_norm", "decoder.head", "logits", "encoder_last_hidden_state"} <= names
    assert {"labels", "over a cache", "padded on the left", "a source of padding alone"} <= set(comparison.cases)


@pytest.mark.parametrize("overrides", [
    {"decoder.head": None},
    {"decoder.stack.depth": 3, "encoder.stack.depth": 1, "start": 5, "padding": 9},
    {f"{side}.stack.position.buckets": 12 for side in ("encoder", "decoder")},
    {f"{side}.stack.position.distance": 17 for side in ("encoder", "decoder")},
    {f"{side}.stack.block.feedforward.activation": "gelu" for side in ("encoder", "decoder")},
    {"decoder.head.tied": False},
])  # fmt: skip
def test_other_configs_of_the_family(overrides):
    report = zoo.verify(zoo.get_config("t5-small", overrides), tiny=True, gradients=False, training=False)
    assert report.passed and report.comparisons[0].exchanged == [], str(report)


@pytest.mark.parametrize("preset", ["t5-small", "flan-t5-small"])
def test_the_encoder_alone_equals_its_reference(preset):
    config = zoo.get_config(preset).encoder
    report = zoo.verify(config, tiny=True, reference="transformers")
    assert report.passed, str(report)
    assert {"embedding", "stack.layers.1", "stack.final_norm", "last_hidden_state"} <= {layer.name for layer in report.layers}
    _, values = family_for(config, "transformers")
    assert values["architectures"] == ["T5EncoderModel"]


def test_local_attention_in_the_encoder_finds_the_same_where_its_window_reaches_all():
    window = {"encoder.stack.block.attention.type": "local", "encoder.stack.block.attention.window": 50}
    wide = zoo.verify("t5-small", {**window}, tiny=True)  # made small, it reaches five tokens
    assert not wide.passed and wide.first_divergence == "encoder.stack.layers.0.attention"
    config = zoo.get_config("t5-small", {"encoder.stack.width": 64, "encoder.stack.depth": 2, "decoder.stack.width": 64})
    whole = zoo.build(config, {"decoder.stack.depth": 2}).eval()
    local = zoo.build(config, {"decoder.stack.depth": 2, **window}).eval()
    local.load_state_dict(whole.state_dict())
    ids, written = torch.arange(60).view(2, 30), torch.arange(8).view(2, 4)
    expected = whole(ids, decoder_input_ids=written).logits
    assert (local(ids, decoder_input_ids=written).logits - expected).abs().max() < 1e-4 * expected.abs().max()


def test_fresh_weights_have_the_published_deviations():
    """Those of Mesh TensorFlow's T5: scores are not scaled, so that queries are small instead."""
    small = {f"{side}.stack.depth": 1 for side in ("encoder", "decoder")}
    model = zoo.build("t5-small", {**small, "encoder.embedding.vocabulary": 999, "decoder.embedding.vocabulary": 999})
    block = model.decoder.stack.layers[0]
    expected = {
        model.encoder.embedding.table: 1.0, model.encoder.stack.position.table: 512**-0.5,
        block.attention.query.weight: (512 * 64) ** -0.5, block.cross_attention.query.weight: (512 * 64) ** -0.5,
        block.attention.key.weight: 512**-0.5, block.cross_attention.value.weight: 512**-0.5,
        block.attention.output.weight: 512**-0.5, block.feedforward.up.weight: 512**-0.5,
        block.feedforward.down.weight: 2048**-0.5,
    }  # fmt: skip
    for tensor, std in expected.items():
        assert tensor.std().item() == pytest.approx(std, rel=0.1)
    assert (block.attention_norm.weight == 1).all() and (model.encoder.stack.final_norm.weight == 1).all()
    doubled = zoo.build("t5-small", {**small, "encoder.init.factor": 2.0})
    assert doubled.encoder.embedding.table.std().item() == pytest.approx(2.0, rel=0.1)
    assert (doubled.encoder.stack.final_norm.weight == 2).all()
