"""Hugging Face's T5 and mT5: loading, exporting, every field of their config honoured or refused, and files of old versions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bert_helpers import edit, given_and_given_back, opened, rewrite
from t5_helpers import CLASSES, SIZES, TOKENS, agree, inputs, same, save

import zoo
from zoo.checkpoint.save import family_for
from zoo.errors import ConfigError, WeightsError, ZooError

Make = Callable[..., Any]
GENERATION, ENCODER = "T5ForConditionalGeneration", "T5EncoderModel"


@pytest.fixture
def saved(redraw: Make, tmp_path: Path) -> Make:
    """A function that makes a model of transformers, in float64, and the folder that it saved itself into."""

    def make(cls: str = GENERATION, **fields: Any) -> tuple[Any, Path]:
        folder = tmp_path / f"hf-{len(list(tmp_path.iterdir()))}"
        return save(cls, folder, redraw, **fields), folder

    return make


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("spelling", ["relu", "gated-gelu", "gated-silu"])
def test_a_folder_of_theirs_gives_their_outputs_and_is_given_back(saved: Make, tmp_path: Path, cls: str, spelling: str) -> None:
    theirs, folder = saved(cls, feed_forward_proj=spelling)
    if not cls.startswith("MT5"):
        given_and_given_back(theirs, folder, tmp_path / "out", agree)
        return
    ours = zoo.load(folder)
    agree(ours, theirs)
    zoo.export(ours, tmp_path / "out")  # mT5 is a T5 of another config
    again = zoo.load(tmp_path / "out")
    assert again.config == ours.config
    agree(opened_by_name(tmp_path / "out"), theirs)


def opened_by_name(folder: Path) -> Any:
    """What transformers makes of a folder by the class that its config names, called as ours is."""
    return opened(folder, json.loads((folder / "config.json").read_text())["architectures"][0])


def test_scores_of_their_own_are_read_and_given_back(saved: Make, tmp_path: Path) -> None:
    """As T5 v1.1 and Flan have them, whose tokens are not scaled before they are scored."""
    for scaled in (False, True):
        theirs, folder = saved(own_scores=True, tie_word_embeddings=False, scale_decoder_outputs=scaled)
        head = zoo.load(folder).config.decoder.head
        assert not head.tied and head.scale == (24**-0.5 if scaled else None)
        given_and_given_back(theirs, folder, tmp_path / f"out-{scaled}", agree)
        agree(zoo.load(folder), opened(folder, GENERATION))
        values = json.loads((tmp_path / f"out-{scaled}" / "config.json").read_text())
        assert values["tie_word_embeddings"] is False and values["scale_decoder_outputs"] is scaled


@pytest.mark.parametrize(("fields", "scaled"), [
    ({}, True),
    ({"tie_word_embeddings": True}, True),
    ({"tie_word_embeddings": None}, True),
    ({"tie_word_embeddings": False}, False),
    ({"tie_word_embeddings": True, "scale_decoder_outputs": False}, False),
    ({"tie_word_embeddings": False, "scale_decoder_outputs": True}, True),
])  # fmt: skip
def test_whether_tokens_are_scaled_is_said_in_either_spelling(saved: Make, fields: dict[str, Any], scaled: bool) -> None:
    _, folder = saved()
    edit(folder, **{"tie_word_embeddings": ..., "scale_decoder_outputs": ..., **fields})
    ours = zoo.load(folder)
    assert ours.config.decoder.head.tied and ours.config.decoder.head.scale == (24**-0.5 if scaled else None)
    agree(ours, opened(folder, GENERATION))


HONOURED: dict[str, list[Any]] = {
    "vocab_size": [40],
    "d_model": [15, 20],
    "d_kv": [8, 1],
    "d_ff": [33],
    "num_layers": [1, 3],
    "num_decoder_layers": [1, 3],
    "num_heads": [1, 4],
    "relative_attention_num_buckets": [4, 9, 20],
    "relative_attention_max_distance": [9, 128],
    "dropout_rate": [0.0, 0.25],
    "layer_norm_epsilon": [1e-3, 0.5],
    "initializer_factor": [0.5],
    "feed_forward_proj": ["gelu", "gelu_new", "silu", "swish", "gated-relu", "gated-gelu", "gated-gelu_new", "gated-silu",
                          "gated-gelu_python", "gated-quick_gelu", "tanh"],
    "pad_token_id": [3, None],
    "decoder_start_token_id": [4],
    "is_gated_act": [True],
    "dense_act_fn": ["gelu", "silu"],
    "tie_word_embeddings": [False],
    "scale_decoder_outputs": [False],
}  # fmt: skip
WITHOUT_INFLUENCE = {
    "architectures", "model_type", "transformers_version", "_name_or_path", "dtype", "label2id", "id2label", "problem_type",
    "return_dict", "output_hidden_states", "output_attentions", "chunk_size_feed_forward", "bos_token_id", "eos_token_id",
    "is_encoder_decoder", "is_decoder", "use_cache", "classifier_dropout",
}  # fmt: skip


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in HONOURED.items() for value in values])
def test_every_field_is_honoured_both_ways(saved: Make, tmp_path: Path, field: str, value: Any) -> None:
    decoder_alone = ("num_decoder_layers", "pad_token_id", "decoder_start_token_id", "tie_word_embeddings")
    for cls in (GENERATION,) if field in (*decoder_alone, "scale_decoder_outputs") else (GENERATION, ENCODER):
        theirs, folder = saved(cls, **{field: value})
        ours = zoo.load(folder)
        agree(ours, theirs)
        again = zoo.load(zoo.export(ours, tmp_path / f"out-{cls}"))
        agree(again, theirs)
        if field == "pad_token_id" and value is None:
            assert again.config.padding == ours.config.start  # which is what ours fills up with
            continue
        assert again.config == ours.config
        written = json.loads((tmp_path / f"out-{cls}" / "config.json").read_text())
        if field in ("is_gated_act", "dense_act_fn"):  # which follow from the first field
            assert field not in written
        elif field == "tie_word_embeddings":  # which the file is the judge of
            assert written[field] is True and written["scale_decoder_outputs"] is False
        elif field != "feed_forward_proj":
            assert written[field] == value
        else:
            agree(opened(tmp_path / f"out-{cls}", cls), theirs)


def test_no_field_of_theirs_is_untested() -> None:
    import transformers

    for config in (transformers.T5Config(), transformers.MT5Config()):
        known = {*HONOURED, *SIZES, *WITHOUT_INFLUENCE}
        assert set(config.to_dict()) <= known, "transformers has a new field"


@pytest.mark.parametrize("kind", ["T5", "MT5"])
def test_absent_fields_mean_what_they_mean_there(kind: str) -> None:
    import transformers

    from zoo.checkpoint.huggingface_t5 import HuggingFaceT5
    from zoo.config.resolve import validate

    values = getattr(transformers, f"{kind}Config")().to_dict()
    shown = {"model_type": kind.lower(), "architectures": [f"{kind}Model"]}
    absent, stated = (HuggingFaceT5().read_config({**each, **shown}, []) for each in ({}, values))
    assert validate(absent) == validate(stated)


def test_a_text_begins_with_padding_where_nothing_else_is_said(saved: Make) -> None:
    """Their class has no default, so that it cannot shift labels then; all published configs say it."""
    _, folder = saved(pad_token_id=7)
    for value in (..., None):
        edit(folder, decoder_start_token_id=value)
        config = zoo.load(folder).config
        assert config.start == config.padding == 7
    edit(folder, pad_token_id=None)
    with pytest.raises(ConfigError, match="decoder_start_token_id: missing, and no pad_token_id to begin with instead"):
        zoo.load(folder)
    edit(folder, pad_token_id=...)
    assert zoo.load(folder).config.start == 0


@pytest.mark.parametrize("fields", [{}, {"decoder_start_token_id": 5}, {"decoder_start_token_id": 5, "pad_token_id": 9}])
def test_labels_are_shifted_as_there(saved: Make, fields: dict[str, Any]) -> None:
    theirs, folder = saved(**fields)
    ours = zoo.load(folder)
    labels = torch.randint(1, 31, (3, 8), generator=torch.Generator().manual_seed(0))
    labels[1, 5:] = labels[2, 2:] = -100
    assert torch.equal(ours.shifted(labels), theirs._shift_right(labels))
    ids = next(inputs(theirs))["input_ids"]
    with torch.no_grad():
        same(ours(input_ids=ids, labels=labels), theirs(input_ids=ids, labels=labels))


@torch.no_grad()
def test_decoding_over_a_cache_gives_what_theirs_gives(saved: Make) -> None:
    """With the encoder run once, its padding remembered, and only new tokens given."""
    from transformers import DynamicCache, EncoderDecoderCache

    theirs, folder = saved()
    ours = zoo.load(folder)
    for batch in inputs(theirs):
        mask = batch.get("attention_mask")
        read = ours.encoder(batch["input_ids"], attention_mask=mask)
        other = theirs.encoder(input_ids=batch["input_ids"], attention_mask=mask)
        own_cache, cache = ours.new_cache(), EncoderDecoderCache(DynamicCache(), DynamicCache())
        for number, some in enumerate(batch["decoder_input_ids"].tensor_split([4, 5, 6], 1)):
            given = {"encoder_outputs": read, "attention_mask": mask} if number == 0 else {}
            mine = ours(decoder_input_ids=some, past_key_values=own_cache, **given)
            value = theirs(
                decoder_input_ids=some, past_key_values=cache, encoder_outputs=other, attention_mask=mask, use_cache=True
            )
            assert (mine.logits - value.logits).abs().max() < 1e-12 * float(value.logits.abs().max())


@torch.no_grad()
def test_hidden_states_and_weights_of_attention_are_theirs(saved: Make) -> None:
    theirs, folder = saved(num_decoder_layers=3)
    ours = zoo.load(folder)
    theirs.set_attn_implementation("eager")
    kept = {"output_hidden_states": True, "output_attentions": True}
    for batch in inputs(theirs):
        mine, value = ours(**batch, **kept), theirs(**batch, **kept)
        for name in ("encoder_attentions", "decoder_attentions", "cross_attentions"):
            own, other = getattr(mine, name), value[name]
            assert len(own) == len(other) == (2 if name == "encoder_attentions" else 3)
            assert all((a - b).abs().max() < 1e-12 for a, b in zip(own, other))
        for name in ("encoder_hidden_states", "decoder_hidden_states"):
            own, other = getattr(mine, name), value[name]
            assert len(own) == len(other)
            assert all((a - b).abs().max() < 1e-12 * b.abs().max() for a, b in zip(own[:-1], other[:-1]))


@pytest.mark.parametrize("cls", [GENERATION, ENCODER])
def test_dropout_drops_the_same_values(saved: Make, cls: str) -> None:
    """One share stands for every site; drawn from the same random state, in the same order, it drops the same."""
    theirs, folder = saved(cls, dropout_rate=0.3)
    ours = zoo.load(folder).train()
    theirs.train()
    for batch in inputs(theirs):
        torch.manual_seed(5)
        mine = ours(**batch)
        torch.manual_seed(5)
        same(mine, theirs(**batch))


def test_a_file_of_the_hub(saved: Make) -> None:
    """Copies of the embedding beside it, a table that nothing reads, and what configs of 2020 and of Flan say."""
    theirs, folder = saved(feed_forward_proj="gated-gelu", own_scores=True, tie_word_embeddings=False)
    old = {
        "n_positions": 512, "output_past": True, "task_specific_params": {"summarization": {"max_length": 200}},
        "dense_act_fn": "gelu_new", "is_gated_act": True, "use_cache": True, "architectures": ["T5WithLMHeadModel"],
        "scale_decoder_outputs": ..., "tie_word_embeddings": False, "tokenizer_class": "T5Tokenizer", "eos_token_id": 1,
        "num_decoder_layers": 2,
    }  # fmt: skip
    edit(folder, **old)

    def more(tensors: dict[str, Any]) -> None:
        for side in ("encoder", "decoder"):
            tensors[f"{side}.embed_tokens.weight"] = tensors["shared.weight"].clone()
        tensors["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = torch.randn(8, 3)

    rewrite(folder, more)
    ours = zoo.load(folder)
    agree(ours, theirs)
    agree(ours, opened(folder, GENERATION))
    assert [entry.name for entry in ours.load_report.of("ignored")] == [
        "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
        "decoder.embed_tokens.weight",
        "encoder.embed_tokens.weight",
    ]


@pytest.mark.parametrize(
    "name", ["shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"]
)
@pytest.mark.parametrize("copies", [1, 2])
def test_the_embedding_is_found_under_any_of_its_names(saved: Make, name: str, copies: int) -> None:
    theirs, folder = saved()

    def renamed(tensors: dict[str, Any]) -> None:
        tensors[name] = tensors.pop("shared.weight")
        if copies > 1:
            tensors["lm_head.weight"] = tensors[name].clone()

    rewrite(folder, renamed)
    ours = zoo.load(folder)
    assert ours.config.decoder.head.tied and ours.config.share_embeddings
    agree(ours, theirs)


def test_stacks_with_vectors_of_their_own_are_refused(saved: Make) -> None:
    _, folder = saved()
    rewrite(folder, lambda tensors: {**tensors, "decoder.embed_tokens.weight": tensors["shared.weight"] + 1})
    with pytest.raises(ConfigError, match=r"decoder\.embed_tokens\.weight is not shared\.weight: the two stacks share"):
        zoo.load(folder)


def test_an_encoder_is_read_from_the_tensors_of_a_whole_model(saved: Make) -> None:
    _, folder = saved(own_scores=True)
    edit(folder, architectures=[ENCODER])
    ours = zoo.load(folder)
    assert ours.config.type == "transformer" and ours.config.head is None
    agree(ours, opened(folder, ENCODER))
    assert len(ours.load_report.of("ignored")) > 20
    whole = zoo.load(folder.parent / folder.name)  # and a config without a class means the whole model without its head
    edit(folder, architectures=...)
    whole = zoo.load(folder)
    assert whole.config.type == "encoder-decoder" and whole.config.decoder.head is None
    agree(whole, opened(folder, "T5Model"))


@pytest.mark.parametrize("cls", ["T5Model", ENCODER, GENERATION])
def test_a_config_without_a_model_type(saved: Make, cls: str) -> None:
    theirs, folder = saved(cls)
    edit(folder, model_type=...)
    agree(zoo.load(folder), theirs)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_type_of_the_file_stays(saved: Make, dtype: str) -> None:
    _, folder = saved()
    rewrite(folder, lambda tensors: {name: value.to(getattr(torch, dtype)) for name, value in tensors.items()})
    assert zoo.load(folder).dtype == getattr(torch, dtype)
    agree(zoo.load(folder, dtype="float64"), opened(folder, GENERATION))


@torch.no_grad()
def test_bfloat16_rounds_as_theirs(saved: Make) -> None:
    """The mean of squares is taken in float32, and what is normed rounded before it is weighted."""
    theirs, folder = saved()
    ours = zoo.load(folder, dtype="bfloat16")
    batch = next(inputs(theirs))
    exact = theirs(**batch).logits
    mine, other = (each(**batch).logits.double() for each in (ours, theirs.bfloat16()))
    assert (mine - exact).norm() <= 1.5 * (other - exact).norm() + 1e-3 * exact.norm()


@pytest.mark.parametrize(("field", "value", "words"), [
    ("architectures", ["T5ForQuestionAnswering"], "T5ForQuestionAnswering is not supported; expected"),
    ("architectures", ["T5ForTokenClassification"], "T5ForTokenClassification is not supported"),
    ("architectures", "T5Model", "architectures: expected a list"),
    ("model_type", "umt5", "models of type 'umt5' are not supported"),
    ("new_option", 3, "not supported: new_option=3"),
    ("hidden_size", 48, "not supported: hidden_size=48"),
    ("d_model", None, "d_model: expected a whole number"),
    ("d_kv", 2.5, "d_kv: expected a whole number"),
    ("num_heads", 0, "heads"),
    ("num_decoder_layers", "two", "num_decoder_layers: expected a whole number"),
    ("feed_forward_proj", "gated-mish", "feed_forward_proj: 'mish' is not supported"),
    ("feed_forward_proj", "gated-gelu-new", "feed_forward_proj: expected an activation, or one behind 'gated-'"),
    ("feed_forward_proj", "half-gelu", "feed_forward_proj: expected an activation, or one behind 'gated-'"),
    ("feed_forward_proj", None, "feed_forward_proj: expected an activation"),
    ("dense_act_fn", "mish", "dense_act_fn: 'mish' is not supported"),
    ("is_gated_act", "yes", "is_gated_act: expected true or false"),
    ("scale_decoder_outputs", "yes", "scale_decoder_outputs: expected true or false"),
    ("relative_attention_num_buckets", 2, "2 buckets for two directions"),
    ("relative_attention_max_distance", 2, "distance"),
    ("layer_norm_epsilon", "x", "layer_norm_epsilon"),
    ("dropout_rate", 1.5, "dropout"),
    ("tie_encoder_decoder", True, "tie_encoder_decoder"),
    ("pruned_heads", {"0": [1]}, "pruned_heads"),
    ("decoder_start_token_id", 31, "31 is none of the decoder's tokens"),
    ("pad_token_id", -1, "padding"),
])  # fmt: skip
def test_what_is_not_supported_is_refused_by_name(saved: Make, field: str, value: Any, words: str) -> None:
    _, folder = saved()
    derived = {} if field in ("dense_act_fn", "is_gated_act") else dict.fromkeys(("dense_act_fn", "is_gated_act"), ...)
    edit(folder, **{**derived, field: value})
    with pytest.raises(ZooError, match=words):
        zoo.load(folder)


def test_missing_and_unknown_tensors_are_listed(saved: Make) -> None:
    _, folder = saved()
    gone = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    rewrite(folder, lambda tensors: {name: value for name, value in tensors.items() if name != gone})
    with pytest.raises(WeightsError, match=f"missing: {gone}"):
        zoo.load(folder)
    _, folder = saved()
    rewrite(folder, lambda tensors: {**tensors, gone.replace("block.0", "block.1"): torch.randn(8, 3)})
    with pytest.raises(WeightsError, match=r"unexpected: encoder\.block\.1\.layer\.0\.SelfAttention\.relative"):
        zoo.load(folder)
    _, folder = saved(feed_forward_proj="gated-relu")
    edit(folder, feed_forward_proj="relu", is_gated_act=..., dense_act_fn=...)
    with pytest.raises(WeightsError, match=r"missing: decoder\.block\.0\.layer\.2\.DenseReluDense\.wi\.weight"):
        zoo.load(folder)


@pytest.mark.parametrize(("overrides", "place"), [
    ({"share_embeddings": False}, "share_embeddings"),
    ({"decoder_input": "shifted"}, "decoder_input"),
    ({"decoder.head.bias": True}, r"decoder\.head\.bias"),
    ({"decoder.head.scale": 0.5}, r"decoder\.head\.scale"),
    ({"decoder.head": {"type": "token-classifier", "classes": 3}}, r"decoder\.head"),
    ({"encoder.embedding.padding": 0}, r"encoder\.embedding\.padding"),
    ({"encoder.embedding.position": "sinusoidal"}, r"encoder\.embedding\.position"),
    ({"decoder.embedding.norm": "layer-norm"}, r"decoder\.embedding\.norm"),
    ({"decoder.embedding.scale": 2.0}, r"decoder\.embedding\.scale"),
    ({"encoder.stack.position": None}, r"position|stack"),
    ({"encoder.stack.position.buckets": 16}, "stacks differ in relative_attention_num_buckets"),
    ({"decoder.stack.block.feedforward.hidden": 99}, "stacks differ in d_ff"),
    ({"decoder.stack.block.attention.heads": 4, "decoder.stack.block.attention.head_size": 128}, r"cross_attention\.heads"),
    ({"encoder.stack.block.attention.head_size": 32}, "stacks differ in d_kv"),
    ({"encoder.stack.block.attention.scale": None}, r"encoder\.stack\.block\.attention\.scale"),
    ({"decoder.stack.block.cross_attention.scale": 0.5}, r"decoder\.stack\.block\.cross_attention\.scale"),
    ({"encoder.stack.block.attention.bias": True}, r"encoder\.stack\.block\.attention\.bias"),
    ({"encoder.stack.block.attention.causal": True}, r"encoder\.stack\.block\.attention\.causal"),
    ({"encoder.stack.block.attention.kv_heads": 2}, r"encoder\.stack\.block\.attention\.kv_heads"),
    ({"encoder.stack.block.attention": {"type": "local", "window": 3}}, r"encoder\.stack\.block\.attention"),
    ({"encoder.stack.block.order": "post"}, r"encoder\.stack\.block\.order"),
    ({"encoder.stack.block.norm": "layer-norm"}, r"encoder\.stack\.block\.norm"),
    ({"encoder.stack.block.norm.eps": 1e-3}, r"encoder\.stack\.final_norm"),
    ({"encoder.stack.final_norm": None}, r"encoder\.stack\.final_norm"),
    ({"encoder.stack.block.feedforward.bias": True}, r"encoder\.stack\.block\.feedforward\.bias"),
    ({"encoder.stack.pattern": [{}, {"dropout": 0.5}]}, r"encoder\.stack\.pattern"),
])  # fmt: skip
def test_what_transformers_cannot_say_is_refused_with_our_field(overrides: dict[str, Any], place: str) -> None:
    with pytest.raises(ConfigError, match=place):
        family_for(zoo.get_config("t5-small", overrides), "transformers")


def test_chance_that_theirs_has_otherwise_is_warned_of() -> None:
    config = zoo.get_config("t5-small", {"encoder.stack.dropout": 0.0, "decoder.stack.drop_path": 0.2})
    with pytest.warns(UserWarning, match=r"stack\.(dropout|drop_path)") as warnings:
        family_for(config, "transformers")
    assert len(warnings) == 2


def test_a_model_is_saved_in_our_own_form_or_without_a_head(saved: Make, tmp_path: Path) -> None:
    theirs, folder = saved()
    ours = zoo.load(folder)
    again = zoo.load(zoo.save(ours, tmp_path / "own"))
    assert again.config == ours.config
    agree(again, theirs)
    alone = zoo.load(folder, {"decoder.head": None})
    ids, written = torch.arange(TOKENS)[None], torch.arange(5)[None]
    expected = ours(ids, decoder_input_ids=written).last_hidden_state
    assert torch.equal(alone(ids, decoder_input_ids=written).last_hidden_state, expected)
