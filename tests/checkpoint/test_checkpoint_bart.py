"""Hugging Face's BART: loading, exporting, every field of its config honoured or refused, and files of old versions."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bert_helpers import edit, opened, rewrite
from decoder_helpers import shard
from encoder_decoder_helpers import MAPS, agree, given_and_given_back, learned, save
from safetensors.torch import load_file

import zoo
from zoo.errors import ConfigError, WeightsError, ZooError

Make = Callable[..., Any]
LANGUAGE = "BartForConditionalGeneration"
CLASSES = ["BartModel", LANGUAGE]
SHARED, SCORES, BIAS = "model.shared.weight", "lm_head.weight", "final_logits_bias"
TABLES = {side: f"model.{side}.embed_tokens.weight" for side in ("encoder", "decoder")}


@pytest.fixture
def saved(redraw: Make, tmp_path: Path) -> Make:
    """A function that makes a model of transformers, in float64, and the folder that it saved itself into."""

    def make(cls: str = LANGUAGE, **fields: Any) -> tuple[Any, Path]:
        folder = tmp_path / f"hf-{len(list(tmp_path.iterdir()))}"
        return save(cls, folder, redraw, **fields), folder

    return make


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("tied", [True, False])
def test_a_folder_of_theirs_gives_their_outputs_and_is_given_back(saved: Make, tmp_path: Path, cls: str, tied: bool) -> None:
    theirs, folder = saved(cls, tie_word_embeddings=tied)
    ours = given_and_given_back(theirs, folder, tmp_path / "out")
    assert ours.config.share_embeddings is tied
    assert cls == "BartModel" or ours.config.decoder.head.tied is tied


def test_attention_weights_are_theirs(saved: Make) -> None:
    theirs, folder = saved(kernel="eager")
    agree(zoo.load(folder), theirs, more=MAPS)


HONOURED: dict[str, list[Any]] = {
    "vocab_size": [37, 6],
    "d_model": [36, 33],
    "encoder_layers": [1, 3],
    "decoder_layers": [1, 3],
    "encoder_attention_heads": [1, 12],
    "decoder_attention_heads": [1, 12],
    "encoder_ffn_dim": [7],
    "decoder_ffn_dim": [50],
    "max_position_embeddings": [9, 12],
    "activation_function": ["relu", "gelu_new", "silu"],
    "dropout": [0.25, 0],
    "attention_dropout": [0.25],
    "activation_dropout": [0.25],
    "init_std": [0.5],
    "scale_embedding": [True],
    "pad_token_id": [0, 5],
    "decoder_start_token_id": [0, 30],
    "tie_word_embeddings": [False],
}
WITHOUT_INFLUENCE = {
    "architectures", "model_type", "transformers_version", "_name_or_path", "dtype", "label2id", "problem_type", "return_dict",
    "output_hidden_states", "output_attentions", "chunk_size_feed_forward", "use_cache", "bos_token_id", "eos_token_id",
    "id2label", "forced_eos_token_id", "classifier_dropout",
}  # fmt: skip
IN_TRAINING = {"encoder_layerdrop", "decoder_layerdrop"}
FIXED = {"is_encoder_decoder", "is_decoder"}
FIELDS = [(CLASSES[number % 2 - 1], field, value) for field, values in HONOURED.items() for number, value in enumerate(values)]


@pytest.mark.parametrize(("cls", "field", "value"), FIELDS)
def test_every_field_is_honoured_both_ways(saved: Make, tmp_path: Path, cls: str, field: str, value: Any) -> None:
    theirs, folder = saved(cls, **{field: value})
    ours = zoo.load(folder)
    agree(ours, theirs)
    assert ours.num_parameters() == learned(theirs)
    again = zoo.load(zoo.export(ours, tmp_path / "out"))
    assert again.config == ours.config
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    known = {"gelu_new": "gelu_pytorch_tanh"}
    assert written[field] == known.get(value, value)
    agree(again, theirs)


def test_no_field_of_theirs_is_untested() -> None:
    import transformers

    fields = set(transformers.BartConfig().to_dict())
    assert fields <= {*HONOURED, *WITHOUT_INFLUENCE, *IN_TRAINING, *FIXED}, "transformers has a new field"


@pytest.mark.parametrize("cls", CLASSES)
def test_every_dropout_is_in_its_place(saved: Make, cls: str) -> None:
    """One of them at 1, which leaves nothing to chance, and train mode."""
    names = ("dropout", "attention_dropout", "activation_dropout")
    for chosen in names:
        theirs, folder = saved(cls, **{name: float(name == chosen) for name in names})
        agree(zoo.load(folder).train(), theirs.train())


def test_dropped_layers_are_told_of(saved: Make) -> None:
    """Which act only in training."""
    theirs, folder = saved(encoder_layerdrop=0.25)
    with pytest.warns(UserWarning, match="bart: encoder_layerdrop: 0.25 becomes 0; it only acts in training"):
        agree(zoo.load(folder), theirs)


def test_the_names_that_all_models_know_overrule_its_own(saved: Make) -> None:
    """As when transformers reads them."""
    _, folder = saved(d_model=36, encoder_layers=1, encoder_attention_heads=2)
    edit(folder, d_model=24, hidden_size=36, encoder_layers=2, num_hidden_layers=1, encoder_attention_heads=3,
         num_attention_heads=2)  # fmt: skip
    agree(zoo.load(folder), opened(folder, LANGUAGE))


def test_absent_fields_mean_their_defaults() -> None:
    import transformers

    from zoo.checkpoint.huggingface_bart import HuggingFaceBart
    from zoo.config.resolve import validate

    whole = HuggingFaceBart().read_config(transformers.BartConfig().to_dict(), ())
    assert validate(HuggingFaceBart().read_config({"model_type": "bart"}, ())) == validate(whole)


OLD: dict[str, Any] = {
    "_num_labels": 3, "add_bias_logits": False, "add_final_layer_norm": False, "classif_dropout": 0.1, "early_stopping": True,
    "extra_pos_embeddings": 2, "force_bos_token_to_be_generated": False, "forced_bos_token_id": 0, "length_penalty": 2.0,
    "gradient_checkpointing": False, "id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}, "max_length": 142,
    "min_length": 56, "no_repeat_ngram_size": 3, "normalize_before": False, "normalize_embedding": True, "num_beams": 4,
    "num_hidden_layers": 2, "output_past": True, "prefix": " ", "save_step": 3, "static_position_embeddings": False,
    "task_specific_params": {"summarization": {"num_beams": 4}}, "torch_dtype": "float32", "tie_word_embeddings": ...,
    "dtype": ..., "transformers_version": ...,
}  # fmt: skip


@pytest.mark.parametrize("files", ["one", "shards", "bin"])
def test_a_file_of_the_hub(saved: Make, files: str) -> None:
    """Of version 4: no prefix, the vectors of tokens three times, numbers of a version, and a config full of other things."""
    theirs, folder = saved("BartModel")
    rewrite(
        folder,
        lambda tensors: {
            **tensors,
            **{name.removeprefix("model."): tensors["shared.weight"].clone() for name in TABLES.values()},
            "encoder.version": torch.tensor([3.0]), "decoder.version": torch.tensor([3.0]),
        },
    )  # fmt: skip
    edit(folder, **OLD)
    if files == "shards":
        shard(folder)
    if files == "bin":
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    ours = zoo.load(folder)
    agree(ours, theirs)
    ignored = {entry.name: entry.detail for entry in ours.load_report.of("ignored")}
    copies = {name.removeprefix("model.") for name in TABLES.values()}
    assert set(ignored) == {*copies, "encoder.version", "decoder.version"}
    assert {ignored[name] for name in copies} == {"a copy of the vectors that both sides share"}


CASES: dict[str, Callable[[dict[str, Any], Any], Any]] = {
    "as it is": lambda t, drawn: t,
    "copies": lambda t, drawn: {**t, **{name: t[SHARED].clone() for name in (*TABLES.values(), SCORES)}},
    "other scores": lambda t, drawn: {**t, SCORES: drawn},
    "scores alone": lambda t, drawn: {**{name: value for name, value in t.items() if name != SHARED}, SCORES: drawn},
    "an encoder of its own": lambda t, drawn: {**t, TABLES["encoder"]: drawn},
    "encoder alone": lambda t, drawn: {
        **{name: value for name, value in t.items() if name != SHARED}, TABLES["encoder"]: drawn
    },
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_vectors_are_tied_where_theirs_are(saved: Make, case: str) -> None:
    """Whatever a file holds twice, equal or not, or under one name alone, is read as transformers itself reads it."""
    _, folder = saved()
    drawn = torch.randn(31, 24, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    rewrite(folder, lambda tensors: CASES[case](tensors, drawn))
    ours = zoo.load(folder)
    agree(ours, opened(folder, LANGUAGE))
    assert ours.config.decoder.head.tied is (case != "other scores")
    assert ours.config.share_embeddings is (case != "an encoder of its own")


def test_scores_of_their_own_beside_shared_vectors_cannot_be_given_back(saved: Make, tmp_path: Path) -> None:
    _, folder = saved()
    rewrite(folder, lambda tensors: {**tensors, SCORES: tensors[SHARED] + 1})
    with pytest.raises(ConfigError, match=r"decoder\.head\.tied: .*Bart has no model where it differs from share_embeddings"):
        zoo.export(zoo.load(folder), tmp_path / "out")


@pytest.mark.parametrize("bias", ["none", "zero", "learned"])
def test_a_bias_of_the_scores(saved: Make, tmp_path: Path, bias: str) -> None:
    """It is no parameter there: where it is zero, our head has none, and the published number of parameters is ours."""
    theirs, folder = saved()
    drawn = torch.randn(1, 31, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    if bias == "learned":
        theirs.final_logits_bias.copy_(drawn)
        rewrite(folder, lambda tensors: tensors.update({BIAS: drawn}))
    if bias == "none":
        rewrite(folder, lambda tensors: tensors.pop(BIAS))
    ours = zoo.load(folder)
    agree(ours, theirs)
    assert ours.config.decoder.head.bias is (bias == "learned")
    assert ours.num_parameters() == learned(theirs) + (31 if bias == "learned" else 0)
    back = opened(zoo.export(ours, tmp_path / "out"), LANGUAGE)
    agree(ours, back)
    assert torch.equal(back.final_logits_bias, theirs.final_logits_bias)
    agree(zoo.load(tmp_path / "out"), theirs)


def test_a_head_can_be_left_out_and_added(saved: Make) -> None:
    """The bare model of a file with scores, and the scores of a bare one, which are tied, so that nothing is new."""
    whole, with_scores = saved()
    agree_on_states(zoo.load(with_scores, {"decoder.head": None}), whole)
    bare, without = saved("BartModel")
    ours = zoo.load(without, {"decoder.head": {"type": "language-model"}})
    assert ours.load_report.of("re-initialised") == []
    agree_on_states(ours, bare)
    edit(without, architectures=[LANGUAGE])
    agree(ours, opened(without, LANGUAGE))


@torch.no_grad()
def agree_on_states(ours: Any, theirs: Any) -> None:
    ids = torch.arange(14).view(2, 7)
    own, other = ours(ids, decoder_input_ids=ids), theirs(ids, decoder_input_ids=ids)
    assert (own.encoder_last_hidden_state - other.encoder_last_hidden_state).abs().max() <= 1e-12
    if ours.config.decoder.head is None:
        assert own.logits is None
        assert (theirs.lm_head(own.last_hidden_state) - other.logits).abs().max() <= 1e-11
    else:
        assert (own.last_hidden_state - other.last_hidden_state).abs().max() <= 1e-12


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_type_of_the_file_stays(saved: Make, dtype: str) -> None:
    _, folder = saved()
    kind = getattr(torch, dtype)
    rewrite(folder, lambda tensors: {name: value.to(kind) for name, value in tensors.items()})
    edit(folder, dtype=dtype)
    assert zoo.load(folder).dtype == kind
    agree(zoo.load(folder, dtype="float64"), opened(folder, LANGUAGE))


@pytest.mark.parametrize("cls", ["ForSequenceClassification", "ForQuestionAnswering", "ForCausalLM"])
def test_other_classes_are_refused_by_name(saved: Make, cls: str) -> None:
    _, folder = saved(f"Bart{cls}")
    expected = f"bart: architectures: Bart{cls} is not supported; expected one of BartModel, {LANGUAGE}"
    with pytest.raises(ConfigError, match=expected):
        zoo.load(folder)


REFUSED = [
    ({"activation_function": "mish"}, "bart: activation_function: 'mish' is not supported"),
    ({"normalize_before": True}, "bart: normalize_before: True is not supported: norms stand behind the branches"),
    ({"add_final_layer_norm": True}, "bart: add_final_layer_norm: True is not supported"),
    ({"normalize_embedding": False}, "bart: normalize_embedding: False is not supported"),
    ({"static_position_embeddings": True}, "bart: static_position_embeddings: True is not supported"),
    ({"is_encoder_decoder": False}, "bart: is_encoder_decoder: False is not supported"),
    ({"is_decoder": True}, "bart: is_decoder: True is not supported"),
    ({"tie_encoder_decoder": True}, "bart: tie_encoder_decoder: True is not supported"),
    ({"decoder_start_token_id": None}, "bart: decoder_start_token_id: expected a token, a whole number from 0 to 30, got None"),
    ({"decoder_start_token_id": 31}, "bart: decoder_start_token_id: expected a token, .* got 31"),
    ({"pad_token_id": 99}, "bart: pad_token_id: expected a token, a whole number from 0 to 30, got 99"),
    ({"d_model": "24"}, "bart: d_model: expected a whole number, got '24'"),
    ({"encoder_layerdrop": "much"}, "bart: encoder_layerdrop: expected a number, got 'much'"),
    ({"tie_word_embeddings": "yes"}, "bart: tie_word_embeddings: expected true or false"),
    ({"architectures": "BartModel"}, "bart: architectures: expected a list"),
    ({"encoder_attention_heads": 5}, "24 is not divisible by 5 heads"),
    ({"something_new": 1}, "bart: not supported: something_new=1"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED)
def test_what_we_do_not_have_is_refused_by_name(saved: Make, values: dict[str, Any], message: str) -> None:
    _, folder = saved()
    edit(folder, **values)
    with pytest.raises(ConfigError, match=message) as error:
        zoo.load(folder)
    assert len(str(error.value).splitlines()) <= 2


@pytest.mark.parametrize(
    "name", ["model.decoder.layers.1.encoder_attn.k_proj.bias", "model.encoder.layernorm_embedding.weight"]
)
def test_every_tensor_is_accounted_for(saved: Make, name: str) -> None:
    """Also those without an effect on any output, such as a key's bias."""
    _, folder = saved()
    rewrite(folder, lambda tensors: tensors.pop(name))
    with pytest.raises(WeightsError, match=re.escape(f"missing: {name}")):
        zoo.load(folder)
    rewrite(folder, lambda tensors: {**tensors, name: torch.zeros(24), "model.encoder.extra": torch.zeros(2)})
    with pytest.raises(WeightsError, match=r"unexpected: model\.encoder\.extra"):
        zoo.load(folder)


UNSAYABLE = [
    ({"encoder.stack.block.order": "pre"}, r"encoder\.stack\.block\.order: Hugging Face's Bart has no model with 'pre' here"),
    ({"decoder.embedding.position.unused": 0}, r"decoder\.embedding\.position\.unused"),
    ({"decoder.embedding.position.length": 21}, r"decoder\.embedding\.position\.length: .* differs from encoder"),
    ({"encoder.embedding.norm": None}, r"encoder\.embedding\.norm"),
    ({"encoder.stack.block.norm.eps": 1e-6}, r"encoder\.stack\.block\.norm\.eps"),
    ({"decoder.stack.block.cross_attention.heads": 4}, r"decoder\.stack\.block\.cross_attention\.heads"),
    ({"decoder.stack.block.attention.bias": False}, r"decoder\.stack\.block\.attention\.bias"),
    ({"decoder.stack.final_norm": "layer-norm"}, r"decoder\.stack\.final_norm"),
    ({"encoder.stack.position": "relative-bucket"}, r"encoder\.stack\.position"),
    ({"encoder.embedding.scale": 2.0}, r"encoder\.embedding\.scale"),
    ({"encoder.embedding.segments": 2}, r"encoder\.embedding\.segments"),
    ({"decoder.head.scale": 0.5}, r"decoder\.head\.scale"),
    ({"decoder.head.tied": False}, r"decoder\.head\.tied"),
    ({"decoder_input": "given"}, r"decoder_input: .* only 'shifted'"),
    ({"padding": 4}, r"padding: .* differs from decoder\.embedding\.padding"),
    ({"decoder.stack.block.feedforward.activation": "relu"}, r"decoder\.feedforward\.activation"),
    ({"encoder.stack.block.attention": {"type": "local", "window": 4}}, r"encoder\.stack\.block\.attention"),
]


@pytest.mark.parametrize(("overrides", "message"), UNSAYABLE)
def test_what_they_do_not_have_is_refused_by_name(saved: Make, tmp_path: Path, overrides: Any, message: str) -> None:
    _, folder = saved()
    model = zoo.build(zoo.load(folder).config, overrides, device="meta")
    with pytest.raises(ConfigError, match=message) as error:
        zoo.export(model, tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_dropouts_that_they_cannot_say_are_told_of(saved: Make, tmp_path: Path) -> None:
    _, folder = saved()
    model = zoo.load(folder, {"decoder.stack.block.dropout": 0.5})
    with pytest.warns(UserWarning, match=r"decoder\.stack\.block\.dropout: .* 0\.5 becomes 0\.1; it only acts in training"):
        zoo.export(model, tmp_path / "out")


def test_an_untied_file_without_the_unused_table(saved: Make) -> None:
    """Which no side looks at."""
    theirs, folder = saved(tie_word_embeddings=False)
    rewrite(folder, lambda tensors: tensors.pop(SHARED))
    agree(zoo.load(folder), theirs)


def test_no_error_is_another_kind(saved: Make) -> None:
    _, folder = saved()
    (folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ZooError):
        zoo.load(folder)
