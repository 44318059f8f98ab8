"""Hugging Face's Marian: loading, exporting, every field of its config honoured or refused, and files of old versions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bert_helpers import edit, opened, rewrite
from encoder_decoder_helpers import MAPS, agree, given_and_given_back, learned, save

import zoo
from zoo.errors import ConfigError, WeightsError

Make = Callable[..., Any]
LANGUAGE = "MarianMTModel"
CLASSES = ["MarianModel", LANGUAGE]
SHARED, SCORES, BIAS = "model.shared.weight", "lm_head.weight", "final_logits_bias"
POSITIONS = [f"model.{side}.embed_positions.weight" for side in ("encoder", "decoder")]
SEPARATE = {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 35}


@pytest.fixture
def saved(redraw: Make, tmp_path: Path) -> Make:
    """A function that makes a model of transformers, in float64, and the folder that it saved itself into."""

    def make(cls: str = LANGUAGE, **fields: Any) -> tuple[Any, Path]:
        folder = tmp_path / f"hf-{len(list(tmp_path.iterdir()))}"
        return save(cls, folder, redraw, **fields), folder

    return make


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("fields", [{}, SEPARATE, {"tie_word_embeddings": False}, {**SEPARATE, "tie_word_embeddings": False}])
def test_a_folder_of_theirs_gives_their_outputs_and_is_given_back(
    saved: Make, tmp_path: Path, cls: str, fields: dict[str, Any]
) -> None:
    theirs, folder = saved(cls, **fields)
    ours = given_and_given_back(theirs, folder, tmp_path / "out")
    assert ours.config.share_embeddings is (not fields)
    assert cls == "MarianModel" or ours.config.decoder.head.tied is ("tie_word_embeddings" not in fields)


def test_attention_weights_are_theirs(saved: Make) -> None:
    theirs, folder = saved(kernel="eager")
    agree(zoo.load(folder), theirs, more=MAPS)


HONOURED: dict[str, list[Any]] = {
    "vocab_size": [37],
    "d_model": [36, 33],
    "encoder_layers": [1, 3],
    "decoder_layers": [1, 3],
    "encoder_attention_heads": [1, 12],
    "decoder_attention_heads": [1, 12],
    "encoder_ffn_dim": [7],
    "decoder_ffn_dim": [50],
    "max_position_embeddings": [9, 512],
    "activation_function": ["relu", "gelu"],
    "dropout": [0.25],
    "attention_dropout": [0.25],
    "activation_dropout": [0.25],
    "init_std": [0.5],
    "scale_embedding": [False],
    "pad_token_id": [0, 5],
    "decoder_start_token_id": [0, 3],
    "tie_word_embeddings": [False],
    "share_encoder_decoder_embeddings": [False],
}
WITHOUT_INFLUENCE = {
    "architectures", "model_type", "transformers_version", "_name_or_path", "dtype", "label2id", "problem_type", "return_dict",
    "output_hidden_states", "output_attentions", "chunk_size_feed_forward", "use_cache", "bos_token_id", "eos_token_id",
    "id2label", "forced_eos_token_id",
}  # fmt: skip
ELSEWHERE = {"encoder_layerdrop", "decoder_layerdrop", "is_encoder_decoder", "is_decoder", "decoder_vocab_size"}
FIELDS = [(CLASSES[number % 2 - 1], field, value) for field, values in HONOURED.items() for number, value in enumerate(values)]


@pytest.mark.parametrize(("cls", "field", "value"), FIELDS)
def test_every_field_is_honoured_both_ways(saved: Make, tmp_path: Path, cls: str, field: str, value: Any) -> None:
    theirs, folder = saved(cls, **{field: value})
    ours = zoo.load(folder)
    agree(ours, theirs)
    assert field == "tie_word_embeddings" or ours.num_parameters() == learned(theirs)
    again = zoo.load(zoo.export(ours, tmp_path / "out"))
    assert again.config == ours.config
    assert json.loads((tmp_path / "out" / "config.json").read_text())[field] == {"swish": "silu"}.get(value, value)
    agree(again, theirs)


def test_no_field_of_theirs_is_untested() -> None:
    import transformers

    fields = set(transformers.MarianConfig().to_dict())
    assert fields <= {*HONOURED, *WITHOUT_INFLUENCE, *ELSEWHERE}, "transformers has a new field"


@pytest.mark.parametrize("cls", CLASSES)
def test_every_dropout_is_in_its_place(saved: Make, cls: str) -> None:
    """One of them at 1, which leaves nothing to chance, and train mode."""
    names = ("dropout", "attention_dropout", "activation_dropout")
    for chosen in names:
        theirs, folder = saved(cls, **{name: float(name == chosen) for name in names})
        agree(zoo.load(folder).train(), theirs.train())


def test_absent_fields_mean_their_defaults() -> None:
    import transformers

    from zoo.checkpoint.huggingface_marian import HuggingFaceMarian
    from zoo.config.resolve import validate

    whole = HuggingFaceMarian().read_config(transformers.MarianConfig().to_dict(), ())
    assert validate(HuggingFaceMarian().read_config({"model_type": "marian"}, ())) == validate(whole)


OLD: dict[str, Any] = {
    "_num_labels": 3, "add_bias_logits": False, "add_final_layer_norm": False, "bad_words_ids": [[30]], "classif_dropout": 0.0,
    "classifier_dropout": 0.0, "id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}, "max_length": 512, "num_beams": 6,
    "normalize_before": False, "normalize_embedding": False, "num_hidden_layers": 2, "static_position_embeddings": True,
    "torch_dtype": "float32", "extra_pos_embeddings": 31, "tie_word_embeddings": ..., "dtype": ..., "decoder_vocab_size": ...,
    "share_encoder_decoder_embeddings": ..., "transformers_version": ...,
}  # fmt: skip


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_a_file_of_the_hub(saved: Make, dtype: str, bias: bool) -> None:
    """Of version 4: the vectors of tokens four times, the sines too, and a config full of other things."""
    _, folder = saved()
    sines = opened(folder, LANGUAGE).model.encoder.embed_positions.weight.detach()
    drawn = torch.randn(1, 31, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def older(tensors: dict[str, Any]) -> dict[str, Any]:
        copies = [f"model.{side}.embed_tokens.weight" for side in ("encoder", "decoder")]
        own = {**tensors, **dict.fromkeys((*copies, SCORES), tensors[SHARED]), **dict.fromkeys(POSITIONS, sines)}
        own |= {BIAS: drawn} if bias else {}
        return {name: value.to(getattr(torch, dtype)).clone() for name, value in own.items()}

    rewrite(folder, older)
    edit(folder, **OLD)
    ours = zoo.load(folder)
    assert str(ours.dtype) == f"torch.{dtype}" and ours.config.decoder.head.bias is bias
    assert {entry.name for entry in ours.load_report.of("ignored")} >= {*POSITIONS, SCORES}
    if dtype == "float64":  # the others round the sines there
        agree(ours, opened(folder, LANGUAGE))


@pytest.mark.parametrize("cls", CLASSES)
def test_a_file_with_other_positions_is_refused(saved: Make, cls: str) -> None:
    """Sines that were trained on, or stand in another order: nothing but the table itself tells."""
    _, folder = saved(cls)
    rewrite(folder, lambda tensors: tensors.update({POSITIONS[1]: torch.randn(20, 24, dtype=torch.float64)}) if cls == LANGUAGE
            else tensors["decoder.embed_positions.weight"].mul_(1.001))  # fmt: skip
    with pytest.raises(WeightsError, match=r"marian: .*decoder\.embed_positions\.weight: expected sines and cosines"):
        zoo.load(folder)


def test_texts_may_be_longer_than_the_table_of_theirs(saved: Make) -> None:
    """Sines need no table; all else is the same."""
    theirs, folder = saved(max_position_embeddings=9)
    ours = zoo.load(folder)
    agree(ours, theirs)
    edit(folder, max_position_embeddings=40)
    agree(ours, opened(folder, LANGUAGE), tokens=25)


@pytest.mark.parametrize("case", ["as it is", "copy", "other scores"])
def test_scores_are_tied_where_theirs_are(saved: Make, case: str) -> None:
    """Also to the decoder's vectors alone, where the two sides have different tokens."""
    for fields in ({}, SEPARATE):
        _, folder = saved(**fields)
        table = "model.decoder.embed_tokens.weight" if fields else SHARED
        if case != "as it is":
            rewrite(folder, lambda tensors, name=table: {**tensors, SCORES: tensors[name] + (case == "other scores")})
        ours = zoo.load(folder)
        agree(ours, opened(folder, LANGUAGE))
        assert ours.config.decoder.head.tied is (case != "other scores")


def test_a_head_can_be_left_out_and_added(saved: Make) -> None:
    _, folder = saved()
    assert zoo.load(folder, {"decoder.head": None}).load_report.of("re-initialised") == []
    _, bare = saved("MarianModel")
    ours = zoo.load(bare, {"decoder.head": {"type": "language-model"}})
    assert ours.load_report.of("re-initialised") == []


REFUSED = [
    ({"architectures": ["MarianForCausalLM"]}, "marian: architectures: MarianForCausalLM is not supported; expected one of"),
    ({"decoder_vocab_size": 40}, "marian: decoder_vocab_size: 40 is not vocab_size, 31, although embeddings are shared"),
    ({"static_position_embeddings": False}, "marian: static_position_embeddings: False is not supported"),
    ({"normalize_embedding": True}, "marian: normalize_embedding: True is not supported"),
    ({"normalize_before": True}, "marian: normalize_before: True is not supported"),
    ({"activation_function": "mish"}, "marian: activation_function: 'mish' is not supported"),
    ({"decoder_start_token_id": 31}, "marian: decoder_start_token_id: expected a token"),
    ({"share_encoder_decoder_embeddings": 1}, "marian: share_encoder_decoder_embeddings: expected true or false"),
    ({"something_new": 1}, "marian: not supported: something_new=1"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED)
def test_what_we_do_not_have_is_refused_by_name(saved: Make, values: dict[str, Any], message: str) -> None:
    _, folder = saved()
    edit(folder, **values)
    with pytest.raises(ConfigError, match=message):
        zoo.load(folder)


def test_padding_is_a_token_of_both_sides(saved: Make) -> None:
    _, folder = saved(**SEPARATE)
    edit(folder, pad_token_id=33)
    with pytest.raises(ConfigError, match="marian: pad_token_id: expected a token, a whole number from 0 to 30, got 33"):
        zoo.load(folder)


UNSAYABLE = [
    ({"encoder.embedding.position.order": "interleaved"}, r"encoder\.embedding\.position\.order: .*Marian has no model"),
    ({"encoder.embedding.position.base": 100.0}, r"encoder\.embedding\.position\.base"),
    ({"decoder.embedding.position.length": 21}, r"decoder\.embedding\.position\.length: .* differs from encoder"),
    ({"decoder.embedding.norm": "layer-norm"}, r"decoder\.embedding\.norm"),
    ({"decoder.head.tied": False}, r"decoder\.head\.tied"),
    ({"decoder_input": "shifted"}, r"decoder_input: .* only 'given'"),
]


@pytest.mark.parametrize(("overrides", "message"), UNSAYABLE)
def test_what_they_do_not_have_is_refused_by_name(saved: Make, tmp_path: Path, overrides: Any, message: str) -> None:
    _, folder = saved()
    model = zoo.build(zoo.load(folder).config, overrides, device="meta")
    with pytest.raises(ConfigError, match=message) as error:
        zoo.export(model, tmp_path / "out")
    assert "\n" not in str(error.value)
