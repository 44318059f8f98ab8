"""Hugging Face's CLIP: loading, exporting, every field of its configs honoured or refused, and files of old versions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bert_helpers import edit, given_and_given_back, opened, rewrite
from clip_helpers import CLASSES, TEXT, VISION, agree, save

import zoo
from zoo.checkpoint.save import family_for
from zoo.errors import ConfigError, WeightsError, ZooError

Make = Callable[..., Any]


@pytest.fixture
def saved(redraw: Make, tmp_path: Path) -> Make:
    """A function that makes a model of transformers, in float64, and the folder that it saved itself into."""

    def make(cls: str = "CLIPModel", **fields: Any) -> tuple[Any, Path]:
        folder = tmp_path / f"hf-{len(list(tmp_path.iterdir()))}"
        return save(cls, folder, redraw, **fields), folder

    return make


@pytest.mark.parametrize("end", [2, 30, 7])
@pytest.mark.parametrize("cls", CLASSES)
def test_a_folder_of_theirs_gives_their_outputs_and_is_given_back(saved: Make, tmp_path: Path, cls: str, end: int) -> None:
    """With what ends texts being the highest token of each (2), the last word, and one among others."""
    fields = {} if "Vision" in cls else {"text.eos_token_id" if cls == "CLIPModel" else "eos_token_id": end}
    theirs, folder = saved(cls, **fields)
    given_and_given_back(theirs, folder, tmp_path / "out", agree)


SHARED: dict[str, list[Any]] = {
    "hidden_size": [48],
    "num_hidden_layers": [1],
    "num_attention_heads": [1, 8],
    "intermediate_size": [33],
    "hidden_act": ["gelu", "relu", "gelu_new"],
    "layer_norm_eps": [1e-3, 0.5],
    "attention_dropout": [0.25, 0],
    "initializer_range": [0.5],
    "initializer_factor": [2.0],
    "projection_dim": [7, 24],
}
HONOURED = {
    "text": {**SHARED, "vocab_size": [40], "max_position_embeddings": [9, 20], "eos_token_id": [5, 30, 0]},
    "vision": {**SHARED, "image_size": [15], "patch_size": [4, 10], "num_channels": [1]},
}
WITHOUT_INFLUENCE = {
    "architectures", "model_type", "transformers_version", "_name_or_path", "dtype", "label2id", "id2label", "problem_type",
    "return_dict", "output_hidden_states", "output_attentions", "chunk_size_feed_forward", "bos_token_id", "pad_token_id",
    "is_encoder_decoder",
}  # fmt: skip
FIELDS = [(tower, field, value) for tower, fields in HONOURED.items() for field, values in fields.items() for value in values]


@pytest.mark.parametrize(("tower", "field", "value"), FIELDS)
def test_every_field_is_honoured_both_ways(saved: Make, tmp_path: Path, tower: str, field: str, value: Any) -> None:
    base = f"CLIP{tower.capitalize()}Model"
    for cls in (base, f"{base}WithProjection"):
        theirs, folder = saved(cls, **{field: value})
        ours = zoo.load(folder)
        agree(ours, theirs)
        again = zoo.load(zoo.export(ours, tmp_path / f"out-{cls}"))
        assert again.config == ours.config
        agree(again, theirs)
        if field != "projection_dim" or cls != base:
            written = {"gelu_new": "gelu_pytorch_tanh"}.get(value, value)
            assert json.loads((tmp_path / f"out-{cls}" / "config.json").read_text())[field] == written


@pytest.mark.parametrize("field", ["text.projection_dim", "vision.projection_dim", "projection_dim"])
def test_only_the_projection_of_the_whole_counts_in_a_whole_model(saved: Make, field: str) -> None:
    theirs, folder = saved(**{field: 13})
    ours = zoo.load(folder)
    agree(ours, theirs)
    assert ours.config.text.head.size == (13 if field == "projection_dim" else 10)


def test_the_scale_when_fresh_is_that_of_the_config(saved: Make) -> None:
    _, folder = saved(logit_scale_init_value=1.5)
    config = zoo.load(folder).config
    assert config.logit_scale == 1.5 and zoo.build(config).logit_scale.item() == 1.5


def test_no_field_of_theirs_is_untested() -> None:
    import transformers

    for tower, cls in (("text", transformers.CLIPTextConfig), ("vision", transformers.CLIPVisionConfig)):
        assert set(cls().to_dict()) <= {*HONOURED[tower], *WITHOUT_INFLUENCE}, "transformers has a new field"
    others = {"projection_dim", "logit_scale_init_value", "initializer_factor", "text_config", "vision_config"}
    assert set(transformers.CLIPConfig().to_dict()) <= {*others, *WITHOUT_INFLUENCE}, "transformers has a new field"


@pytest.mark.parametrize("cls", CLASSES)
def test_dropout_of_attention_is_in_its_place(saved: Make, cls: str) -> None:
    """At 1, which leaves nothing to chance, and in train mode."""
    towers = ("text.", "vision.") if cls == "CLIPModel" else ("",)
    for chosen in towers:
        theirs, folder = saved(cls, **{f"{tower}attention_dropout": float(tower == chosen) for tower in towers})
        agree(zoo.load(folder).train(), theirs.train())


def old_tower(values: dict[str, Any]) -> dict[str, Any]:
    """What the config of a tower on the Hub, of 2021, says beside its sizes."""
    others = {
        "_name_or_path": "", "add_cross_attention": False, "architectures": None, "bad_words_ids": None,
        "cross_attention_hidden_size": None, "decoder_start_token_id": None, "diversity_penalty": 0.0, "do_sample": False,
        "dropout": 0.0, "early_stopping": False, "encoder_no_repeat_ngram_size": 0, "finetuning_task": None,
        "forced_bos_token_id": None, "id2label": {"0": "LABEL_0"}, "is_decoder": False, "is_encoder_decoder": False,
        "label2id": {"LABEL_0": 0}, "length_penalty": 1.0, "max_length": 20, "num_beams": 1, "output_attentions": False,
        "prefix": None, "problem_type": None, "pruned_heads": {}, "remove_invalid_values": False, "return_dict": True,
        "sep_token_id": None, "task_specific_params": None, "temperature": 1.0, "tie_encoder_decoder": False,
        "tie_word_embeddings": True, "tokenizer_class": None, "top_k": 50, "torch_dtype": None, "torchscript": False,
        "transformers_version": "4.16.0.dev0", "use_bfloat16": False, "typical_p": 1.0, "pad_token_id": 1,
    }  # fmt: skip
    return {**others, **values}


@pytest.mark.parametrize("twice", ["no", "null", "whole", "part"])
def test_a_file_of_the_hub(saved: Make, twice: str) -> None:
    """Tables of positions beside the tensors, and towers stated a second time, which then counts, defaults included."""
    theirs, folder = saved()
    towers = {"text": {**TEXT, "model_type": "clip_text_model"}, "vision": {**VISION, "model_type": "clip_vision_model"}}
    values: dict[str, Any] = {f"{tower}_config": old_tower(each) for tower, each in towers.items()}
    if twice == "null":
        values |= {f"{tower}_config_dict": None for tower in towers}
    if twice == "whole":
        values |= {f"{tower}_config_dict": each for tower, each in towers.items()}
        values["text_config"] = {**values["text_config"], "hidden_act": "relu", "eos_token_id": 5}
    if twice == "part":
        sizes = {tower: {k: v for k, v in each.items() if k != "eos_token_id"} for tower, each in towers.items()}
        values |= {f"{tower}_config_dict": each for tower, each in sizes.items()}
    edit(folder, **values, initializer_factor=1.0)
    positions = {f"{tower}_model.embeddings.position_ids": torch.arange(12)[None] for tower in towers}
    rewrite(folder, lambda tensors: {**tensors, **positions})
    if twice == "part":  # the default of what ends texts, 49407, is no word of so small a vocabulary
        with pytest.raises(ConfigError, match=r"text.head.pool.id: 49407 is none of the vocabulary"):
            zoo.load(folder)
        edit(folder, text_config_dict={**values["text_config_dict"], "eos_token_id": 7})
        agree(zoo.load(folder), opened(folder, "CLIPModel"))
        return
    ours = zoo.load(folder)
    agree(ours, theirs)
    agree(ours, opened(folder, "CLIPModel"))
    assert len(ours.load_report.of("ignored")) == 2


@pytest.mark.parametrize("tower", ["text", "vision"])
def test_a_tower_is_found_with_its_names_whole_or_without_prefix(saved: Make, tower: str) -> None:
    theirs, folder = saved(f"CLIP{tower.capitalize()}Model")
    agree(zoo.load(folder), theirs)
    rewrite(folder, lambda tensors: {f"{tower}_model.{name}": value for name, value in tensors.items()})
    agree(zoo.load(folder), theirs)
    agree(zoo.load(folder), opened(folder, f"CLIP{tower.capitalize()}Model"))


def test_a_tower_is_read_from_the_tensors_of_a_whole_model(saved: Make) -> None:
    theirs, folder = saved()
    edit(folder, **{**theirs.config.text_config.to_dict(), "architectures": ["CLIPTextModelWithProjection"]})
    edit(folder, **dict.fromkeys(("text_config", "vision_config", "logit_scale_init_value"), ...), id2label=...)
    ours = zoo.load(folder)
    agree(ours, opened(folder, "CLIPTextModelWithProjection"))
    assert len(ours.load_report.of("ignored")) > 20
    edit(folder, architectures=...)
    assert zoo.load(folder).config == ours.config  # a projection among the tensors says what it is


@pytest.mark.parametrize("cls", CLASSES)
def test_a_file_without_architectures(saved: Make, cls: str) -> None:
    theirs, folder = saved(cls)
    edit(folder, architectures=...)
    agree(zoo.load(folder), theirs)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_type_of_the_file_stays(saved: Make, dtype: str) -> None:
    _, folder = saved()
    rewrite(folder, lambda tensors: {name: value.to(getattr(torch, dtype)) for name, value in tensors.items()})
    assert zoo.load(folder).dtype == getattr(torch, dtype)
    agree(zoo.load(folder, dtype="float64"), opened(folder, "CLIPModel"))


@pytest.mark.parametrize(("field", "value", "words"), [
    ("architectures", ["CLIPForImageClassification"], "CLIPForImageClassification"),
    ("architectures", "CLIPModel", "architectures"),
    ("new_option", 3, "not supported: new_option=3"),
    ("projection_dim", None, "projection_dim: expected a whole number"),
    ("logit_scale_init_value", "x", "logit_scale_init_value: expected a number"),
    ("text_config", 3, "text_config"),
    ("text_config.new_option", 3, "text_config: not supported: new_option=3"),
    ("text_config.eos_token_id", [5, 6], "eos_token_id: expected one token"),
    ("text_config.eos_token_id", None, "eos_token_id: expected one token"),
    ("text_config.eos_token_id", 31, "31 is none of the vocabulary's 0 to 30"),
    ("text_config.hidden_act", "mish", "hidden_act: 'mish' is not supported"),
    ("text_config.model_type", "siglip_text_model", "model_type"),
    ("text_config.hidden_size", 25, "25 is not divisible by 3 heads"),
    ("text_config.pruned_heads", {"0": [1]}, "pruned_heads"),
    ("text_config.is_encoder_decoder", True, "is_encoder_decoder"),
    ("vision_config.image_size", [20, 25], "image_size: expected a whole number"),
    ("vision_config.patch_size", 0, "patch_size"),
    ("vision_config.patch_size", 21, "patch_size"),
    ("vision_config.qkv_bias", False, "vision_config: not supported: qkv_bias=False"),
    ("vision_config.layer_norm_eps", None, "layer_norm_eps"),
])  # fmt: skip
def test_what_is_not_supported_is_refused_by_name(saved: Make, field: str, value: Any, words: str) -> None:
    _, folder = saved()
    place, _, inner = field.rpartition(".")
    values = json.loads((folder / "config.json").read_text())
    edit(folder, **({place: {**values[place], inner: value}} if place else {inner: value}))
    with pytest.raises(ZooError, match=words):
        zoo.load(folder)


def test_missing_tensors_are_listed(saved: Make) -> None:
    _, folder = saved()
    rewrite(folder, lambda tensors: {name: value for name, value in tensors.items() if "pre_layrnorm.w" not in name})
    with pytest.raises(WeightsError, match=r"missing: vision_model\.pre_layrnorm\.weight"):
        zoo.load(folder)


@pytest.mark.parametrize(("overrides", "place"), [
    ({"logit_bias": -10.0}, "logit_bias"),
    ({"text.head.pool.id": 2}, r"text\.head\.pool\.id"),
    ({"text.head.pool": "mean"}, r"text\.head\.pool"),
    ({"text.head.norm": "layer-norm"}, r"text\.head\.norm"),
    ({"text.head.bias": True}, r"text\.head\.bias"),
    ({"text.stack.final_norm": None}, r"text\.stack\.final_norm"),
    ({"text.stack.block.attention.causal": False}, r"text\.stack\.block\.attention\.causal"),
    ({"text.stack.block.attention.heads": 2, "text.stack.block.attention.kv_heads": 1}, r"text\.stack.*kv_heads"),
    ({"text.stack.block.order": "post"}, r"text\.stack\.block\.order"),
    ({"text.stack.block.norm": "rms-norm"}, r"text\.stack\.block\.norm"),
    ({"text.stack.block.feedforward": "gated"}, r"text\.stack\.block\.feedforward"),
    ({"text.embedding.padding": 3}, r"text\.embedding\.padding"),
    ({"text.embedding.segments": 2}, r"text\.embedding\.segments"),
    ({"text.embedding.position": "sinusoidal"}, r"text\.embedding\.position"),
    ({"vision.embedding.bias": True}, r"vision\.embedding\.bias"),
    ({"vision.embedding.output_norm": None}, r"vision\.embedding\.output_norm"),
    ({"vision.embedding.output_norm.eps": 1e-3}, r"vision\.embedding\.output_norm"),
    ({"vision.embedding.image_size": [224, 256]}, r"vision\.embedding\.image_size"),
    ({"vision.embedding.flexible": True}, r"vision\.embedding\.flexible"),
    ({"vision.embedding.registers": 1}, r"vision\.embedding\.registers"),
    ({"vision.head.pool": "mean"}, r"vision\.head\.pool"),
    ({"vision.head.norm": None}, r"vision\.head\.norm"),
    ({"vision.stack.final_norm": "layer-norm"}, r"vision\.stack\.final_norm"),
    ({"vision.stack.block.attention.causal": True}, r"vision\.stack\.block\.attention\.causal"),
    ({"vision.stack.pattern": [{}, {"dropout": 0.1}]}, r"vision\.stack\.pattern"),
    ({"vision.head.size": None, "vision.stack.width": 36, "text.head.size": 36}, r"text\.head\.size"),
])  # fmt: skip
def test_what_transformers_cannot_say_is_refused_with_our_field(overrides: dict[str, Any], place: str) -> None:
    with pytest.raises(ConfigError, match=place):
        family_for(zoo.get_config("clip-vit-b32", overrides), "transformers")


def test_no_vision_transformer_is_taken_for_a_tower_and_none_of_its_parts_dropped() -> None:
    for head in ({"type": "pooler", "norm": "layer-norm"}, {"type": "pooler", "projection": False}, "projection"):
        for preset in ("vit-tiny", "bert-base", "swin-tiny"):
            if preset == "swin-tiny" and head != "projection":
                head = {**head, "pool": "mean", "projection": "norm" not in head}  # type: ignore[dict-item]
            with pytest.raises(ConfigError, match=r"head|embedding|stack"):
                family_for(zoo.get_config(preset, {"head": head}), "transformers")


def test_a_dual_encoder_is_saved_in_our_own_form(saved: Make, tmp_path: Path) -> None:
    theirs, folder = saved()
    ours = zoo.load(folder)
    again = zoo.load(zoo.save(ours, tmp_path / "own"))
    assert again.config == ours.config
    agree(again, theirs)


def test_a_larger_image_size_resamples_positions(saved: Make) -> None:
    _, folder = saved()
    ours = zoo.load(folder, {"vision.embedding.image_size": 40})
    assert ours.vision.embedding.position.table.shape == (65, 32)
    assert [entry.name for entry in ours.load_report.of("resized")] == ["vision.embedding.position.table"]


def test_weights_for_another_activation_are_refused(saved: Make, tmp_path: Path) -> None:
    """No shape tells one from the other, so the configs have to agree, unless an override says that it is meant."""
    _, folder = saved(**{"text.hidden_act": "gelu", "vision.hidden_act": "gelu"})
    config = zoo.load(folder).config
    quick = {f"{tower}.stack.block.feedforward.activation": "quick-gelu" for tower in ("text", "vision")}
    path = tmp_path / "quick.yaml"
    path.write_text(json.dumps(zoo.get_config(config, quick).plain()))
    with pytest.raises(WeightsError, match=r"activation is 'gelu' there, 'quick-gelu' here"):
        zoo.build(path, weights=folder)
    assert zoo.build(config, weights=folder).config == config
    asked = zoo.build(config, quick, weights=folder)
    assert asked.config.text.stack.block.feedforward.activation == "quick-gelu"
