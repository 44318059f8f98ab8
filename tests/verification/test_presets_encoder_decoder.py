"""Every preset of an encoder and a decoder equals its reference, small here, and has the published number of parameters."""

import pytest
import torch

import zoo
from zoo.errors import ConfigError
from zoo.verification.cases import calls
from zoo.verification.run import verify
from zoo.verification.shrink import shrink

PUBLISHED = {
    "bart-base": 139_420_416,
    "bart-large": 406_291_456,
    "opus-mt-en-de": 74_410_496 - 2 * 512 * 512,  # of which the sines of two tables are not learned
}
PAPER = {"transformer-base": (65e6, 63_082_496), "transformer-big": (213e6, 214_245_376)}
HALVES = {f"{side}.embedding.position.order": "halves" for side in ("encoder", "decoder")}
APART = {
    "share_embeddings": False, "decoder.embedding.vocabulary": 50, "start": 48,
    "encoder.embedding.padding": 49, "decoder.embedding.padding": 49,
}  # fmt: skip
OTHER = {
    "bart-base": {},
    "bart-large": {"decoder.head.bias": True},
    "opus-mt-en-de": {},
    "transformer-base": HALVES,
    "transformer-big": HALVES,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts(name):
    assert zoo.build(name, device="meta").num_parameters() == PUBLISHED[name]


@pytest.mark.parametrize("name", PAPER)
def test_the_parameter_counts_of_the_first_transformer(name):
    """The paper gives 65 and 213 million and about 37000 tokens, of which no number gives both.

    With 37000, ours are 3 % below the one and 0.6 % above the other.
    """
    published, exact = PAPER[name]
    count, width = zoo.build(name, device="meta").num_parameters(), {"transformer-base": 512, "transformer-big": 1024}[name]
    assert count == exact and abs(count - published) <= 0.031 * published
    per_block = 4 * (width * width + width) + 2 * width, 8 * width * width + 5 * width + 2 * width
    attention, feedforward = per_block
    assert count == 37000 * width + 6 * (attention + feedforward) + 6 * (2 * attention + feedforward)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_says_what_its_published_config_says(name):
    """Beside the sizes, what transformers' classes say, whose defaults are those of BART large."""
    from transformers import BartConfig, MarianConfig

    from zoo.checkpoint.save import family_for

    _, values = family_for(zoo.get_config(name), "transformers")
    defaults = (MarianConfig if name.startswith("opus") else BartConfig)().to_dict()
    differing = {field for field in values if field in defaults and values[field] != defaults[field]} - {"architectures"}
    sizes = {f"{side}_{each}" for side in ("encoder", "decoder") for each in ("layers", "attention_heads", "ffn_dim")}
    expected = {
        "bart-large": {"attention_dropout", "activation_dropout"},
        "bart-base": {"attention_dropout", "activation_dropout", "d_model", *sizes},
        "opus-mt-en-de": {"activation_function", "max_position_embeddings", "scale_embedding", "d_model", *sizes},
    }
    assert differing == expected[name]


@pytest.mark.parametrize("name", OTHER)
def test_a_preset_equals_its_reference(name):
    """Forward, gradients, train mode and export, in float64 to 1e-10 and in float32 to the reference's own noise."""
    report = verify(name if not OTHER[name] else zoo.get_config(name, OTHER[name]), tiny=True, reference="transformers")
    assert report.passed, str(report)
    (found,) = report.comparisons
    assert found.exchanged == [] and found.export is not None and found.fresh == []
    assert found.worst("float64") <= 1e-10 and len(found.gradients) > 60
    assert found.cases[0] == "texts" and {
        "padded on the right", "padded on the left", "holes", "a source of padding alone", "decoder padded on the right",
        "decoder holes", "labels", "over a cache", "over a cache, decoder holes",
    } <= set(found.cases)  # fmt: skip
    assert ("nothing to write" in found.cases) is name.startswith("bart")
    names = {layer.name for layer in found.layers}
    for side, parts in {"encoder": ("attention",), "decoder": ("attention", "cross_attention")}.items():
        inside = {f"{part}{end}" for part in (*parts, "feedforward") for end in ("", "_norm")}
        assert {f"{side}.embedding", *(f"{side}.stack.layers.{n}.{part}" for n in range(2) for part in inside)} <= names
    assert {"logits", "encoder_last_hidden_state"} <= names and ("decoder.head" in names) is (name != "bart-large")
    assert set(found.training) == {
        "embedding and block dropout of both sides", "attention dropout of both sides", "feed-forward dropout of both sides",
    }  # fmt: skip


@pytest.mark.parametrize(("name", "overrides"), [
    ("bart-base", {"decoder.head": None}),
    ("opus-mt-en-de", {"decoder.head": None}),
    ("opus-mt-en-de", APART),
    ("bart-base", {"share_embeddings": False, "decoder.head.tied": False}),
    ("bart-base", {"encoder.stack.block.attention.heads": 2, "encoder.stack.depth": 1, "decoder.stack.depth": 3,
                   "encoder.stack.block.feedforward.hidden": 100}),
    ("bart-base", {"start": 0, "encoder.embedding.padding": 4, "decoder.embedding.padding": 4,
                   **{f"{side}.embedding.scale": 768**0.5 for side in ("encoder", "decoder")}}),
])  # fmt: skip
def test_other_configs(name, overrides):
    report = verify(zoo.get_config(name, overrides), tiny=True, training=False)
    assert report.passed and report.comparisons[0].exchanged == [], str(report)


def test_the_first_transformer_has_no_reference_for_its_sines():
    """A frequency's sine and cosine stand side by side in the paper, all sines before all cosines in transformers."""
    with pytest.raises(ConfigError, match=r"embedding\.position\.order: Hugging Face's Marian has no model with 'interleaved'"):
        verify("transformer-base", tiny=True)


def test_an_exchanged_part_of_a_side_is_found():
    report = verify("bart-base", {"decoder.stack.block.feedforward.activation": "relu"}, tiny=True)
    assert not report.passed and report.first_divergence == "decoder.stack.layers.0.feedforward"
    assert all(layer.passed for layer in report.layers if layer.name.startswith("encoder."))


def test_the_reference_leaves_the_head_out_too():
    report = verify("bart-base", {"decoder.head": None}, tiny=True, training=False, gradients=False)
    assert report.passed and report.comparisons[0].exchanged == [], str(report)
    assert "last_hidden_state" in {layer.name for layer in report.layers}


def test_a_shrunken_model_has_everything_of_the_large_one():
    config = zoo.get_config("opus-mt-en-de")
    small = shrink(config)
    assert small.start == small.decoder.embedding.padding == 60 and small.encoder.embedding.vocabulary == 61
    assert small.encoder.embedding.scale == small.encoder.stack.width**0.5
    uneven = shrink(zoo.get_config("bart-base", {"encoder.stack.block.attention.heads": 3}))
    assert uneven.encoder.stack.width == uneven.decoder.stack.width == 96
    assert uneven.encoder.stack.block.attention.heads == 3 and uneven.decoder.stack.block.cross_attention.heads == 4


def test_a_case_over_a_cache_reads_once_and_writes_piece_by_piece():
    read, written = torch.arange(10).view(2, 5), torch.arange(14).view(2, 7)
    given = {"input_ids": read, "attention_mask": read, "decoder_input_ids": written, "decoder_attention_mask": written}
    found = calls({**given, "chunks": (4, 2, 1)})
    assert [set(call) for call in found] == [set(given), *[set(given) - {"input_ids"}] * 2]
    assert all(call["attention_mask"] is read for call in found)
    assert torch.equal(torch.cat([call["decoder_input_ids"] for call in found], 1), written)
    assert [call["decoder_attention_mask"].shape[1] for call in found] == [4, 6, 7]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_source_of_padding_alone_gives_finite_scores(dtype):
    model = zoo.build(shrink(zoo.get_config("bart-base")), dtype=dtype).eval()
    ids, mask = torch.randint(0, 60, (2, 6)), torch.zeros(2, 6, dtype=torch.long)
    out = model(ids, attention_mask=mask, decoder_input_ids=ids)
    assert out.logits.isfinite().all() and out.encoder_last_hidden_state.isfinite().all()
