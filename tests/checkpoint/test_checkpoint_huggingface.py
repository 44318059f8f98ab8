"""Hugging Face's ViT and DeiT: loading, exporting, and every field of their config honoured or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from zoo.checkpoint.fields import ACTIVATIONS
from zoo.errors import ConfigError, ZooError

Make = Callable[..., Any]
CLASSES = ["ViTModel", "ViTForImageClassification", "DeiTModel", "DeiTForImageClassification"]
NAMES = ("last_hidden_state", "pooler_output", "logits")


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    """Equal within 1e-12 of the largest."""
    assert a.shape == b.shape and (a - b).abs().max() <= 1e-12 * max(1.0, float(b.abs().max()))


@torch.no_grad()
def agree(ours: Any, theirs: Any, x: torch.Tensor, **options: Any) -> None:
    """Every output that both have is equal, and there is at least one."""
    own, other = ours(x, **options)._asdict(), theirs(x, **options)
    shared = [name for name in NAMES if other.get(name) is not None]
    assert shared
    for name in shared:
        close(own[name], other[name])


@pytest.mark.parametrize("cls", CLASSES)
def test_a_folder_of_theirs_gives_their_outputs(huggingface: Make, images: Make, cls: str) -> None:
    theirs, folder = huggingface(cls)
    ours = zoo.load(folder)
    agree(ours, theirs, images())
    agree(ours, theirs, images(size=(48, 40)), interpolate_pos_encoding=True)
    assert ours.num_parameters() == theirs.num_parameters() and not ours.training
    assert {entry.status for entry in ours.load_report.entries} == {"renamed"}


def test_a_body_without_its_pooler(huggingface: Make, images: Make) -> None:
    theirs, folder = huggingface("ViTModel", {"add_pooling_layer": False})
    ours = zoo.load(folder)
    assert ours.config.head is None
    agree(ours, theirs, images())


@pytest.mark.parametrize("cls", CLASSES)
def test_an_export_is_opened_by_transformers(huggingface: Make, images: Make, tmp_path: Path, cls: str) -> None:
    import transformers

    _theirs, folder = huggingface(cls)
    ours = zoo.load(folder)
    zoo.export(ours, tmp_path / "out")
    opened, info = getattr(transformers, cls).from_pretrained(tmp_path / "out", output_loading_info=True, dtype=torch.float64)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    agree(ours, opened.eval(), images())
    again = zoo.load(tmp_path / "out")
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), ours.state_dict().values()))


HONOURED: dict[str, Any] = {
    "hidden_size": 36,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 50,
    "hidden_act": "relu",
    "hidden_dropout_prob": 0.25,
    "attention_probs_dropout_prob": 0.25,
    "layer_norm_eps": 0.1,
    "image_size": 40,
    "patch_size": 16,
    "num_channels": 5,
    "qkv_bias": False,
    "pooler_output_size": 7,
    "pooler_act": "relu",
    "encoder_stride": 8,
    "initializer_range": 0.5,
    "id2label": {0: "a", 1: "b", 2: "c"},
    "head_dim": 10,
}
WITHOUT_INFLUENCE = {
    "architectures",
    "model_type",
    "transformers_version",
    "_name_or_path",
    "dtype",
    "label2id",
    "problem_type",
    "return_dict",
    "output_hidden_states",
    "output_attentions",
    "chunk_size_feed_forward",
    "is_encoder_decoder",
}


@pytest.mark.parametrize("cls", ["ViTModel", "ViTForImageClassification", "DeiTModel"])
@pytest.mark.parametrize("field", HONOURED)
def test_every_field_is_honoured(huggingface: Make, images: Make, cls: str, field: str) -> None:
    theirs, folder = huggingface(cls, **{field: HONOURED[field]})
    assert field in json.loads((folder / "config.json").read_text()) or field == "initializer_range"
    ours = zoo.load(folder)
    size = (theirs.config.image_size,) * 2
    agree(ours, theirs, images(channels=theirs.config.num_channels, size=size))
    assert ours.num_parameters() == theirs.num_parameters()


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_an_activation_is_theirs(huggingface: Make, images: Make, name: str) -> None:
    from transformers.activations import ACT2FN

    assert name in ACT2FN
    theirs, folder = huggingface(hidden_act=name)
    ours, x = zoo.load(folder), images()
    with torch.no_grad():
        assert (ours(x).logits - theirs(x).logits).abs().max() < 1e-9  # their tanh approximations differ by 1e-10


@pytest.mark.parametrize("cls", ["ViTConfig", "DeiTConfig"])
def test_no_field_of_theirs_is_untested(cls: str) -> None:
    import transformers

    fields = set(getattr(transformers, cls)().to_dict())
    assert fields <= set(HONOURED) | WITHOUT_INFLUENCE, "transformers has a new field"


def edit(folder: Path, **values: Any) -> None:
    """Changes fields of a folder's config; None removes one."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


@pytest.mark.parametrize(
    "field",
    [
        "use_swiglu_ffn",
        "num_key_value_heads",
        "rope_theta",
        "layerscale_value",
        "is_encoder_decoder",
        "is_decoder",
        "pruned_heads",
        "tie_word_embeddings",
    ],
)
def test_an_unknown_field_is_refused_by_name(huggingface: Make, field: str) -> None:
    _, folder = huggingface()
    edit(folder, **{field: 7})
    with pytest.raises(ConfigError, match=field):
        zoo.load(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", "24"),
        ("hidden_size", 24.0),
        ("hidden_size", 0),
        ("num_hidden_layers", True),
        ("hidden_act", "mish"),
        ("hidden_act", 3),
        ("hidden_act", ["gelu"]),
        ("qkv_bias", 1),
        ("layer_norm_eps", "x"),
        ("layer_norm_eps", -1),
        ("hidden_dropout_prob", 2),
        ("image_size", "big"),
        ("image_size", [32]),
        ("image_size", 4),
        ("image_size", {}),
        ("patch_size", 0),
        ("patch_size", [8, 0]),
        ("num_attention_heads", 0),
        ("initializer_range", "x"),
        ("initializer_range", 0),
        ("id2label", {"x": "a"}),
        ("id2label", {}),
        ("architectures", "ViTModel"),
        ("architectures", [3]),
        ("architectures", ["ViTForMaskedImageModeling"]),
        ("pooler_act", "mish"),
        ("num_channels", -3),
    ],
)
def test_a_broken_field_is_refused(huggingface: Make, field: str, value: Any) -> None:
    _, folder = huggingface()
    edit(folder, **{field: value})
    with pytest.raises(ZooError):
        zoo.load(folder)


@pytest.mark.parametrize("spelling", ["4.x", "bare", "prefixed"])
def test_names_of_old_files_load(huggingface: Make, images: Make, spelling: str) -> None:
    """Files on the Hub have the body with or without its prefix, whatever class wrote them."""
    from safetensors.torch import load_file, save_file

    theirs, folder = huggingface("ViTModel" if spelling == "prefixed" else "ViTForImageClassification")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    if spelling == "prefixed":
        tensors = {f"vit.{name}": value for name, value in tensors.items()}
    elif spelling == "bare":
        tensors = {name.removeprefix("vit."): value for name, value in tensors.items()}
    assert any("encoder.layer.0.attention.attention.query.weight" in name for name in tensors)
    save_file(tensors, path)
    agree(zoo.load(folder), theirs, images())


def test_labels_are_read_and_written(huggingface: Make, tmp_path: Path) -> None:
    _, folder = huggingface(id2label={0: "cat", 1: "dog", 2: "é"}, label2id={"cat": 0, "dog": 1, "é": 2})
    ours = zoo.load(folder)
    assert ours.config.head.labels == ["cat", "dog", "é"]
    zoo.export(ours, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["id2label"] == {"0": "cat", "1": "dog", "2": "é"}


@pytest.mark.parametrize(
    ("overrides", "place"),
    [
        ({"stack.block.norm": "rms-norm", "stack.final_norm": "rms-norm"}, "stack.block.norm"),
        ({"stack.block.order": "post"}, "stack.block.order"),
        ({"stack.block.layer_scale": 0.1}, "stack.block.layer_scale"),
        ({"stack.block.feedforward": "gated"}, "stack.block.feedforward"),
        ({"head.pool": "mean"}, "head.pool"),
        ({"stack.block.attention.kv_heads": 1}, "kv_heads"),
        ({"stack.block.attention.causal": True}, "causal"),
        ({"stack.block.attention.scale": 3.0}, "scale"),
        ({"stack.block.attention.output_bias": False}, "output_bias"),
        ({"embedding.position": None}, "embedding.position"),
        ({"embedding.position": "sinusoidal"}, "embedding.position"),
        ({"embedding.registers": 2}, "embedding.registers"),
        ({"embedding.bias": False}, "embedding.bias"),
        ({"embedding.edges": "pad"}, "embedding.edges"),
        ({"embedding.flexible": True}, "embedding.flexible"),
        ({"stack.final_norm.eps": 0.5}, "stack.final_norm"),
        ({"stack.final_norm": None}, "stack.final_norm"),
        ({"stack.pattern": [{}, {"dropout": 0.1}]}, "stack.pattern"),
        ({"head.classes": 0}, "head.classes"),
        ({"head.norm": "layer-norm"}, "head.norm"),
        ({"head.bias": False}, "head.bias"),
        ({"stack.block.feedforward.norm": "layer-norm"}, "feedforward.norm"),
        ({"stack.block.feedforward.bias": False}, "feedforward.bias"),
    ],
)
def test_what_transformers_cannot_say_is_refused_with_our_field(
    model_of: Make, tmp_path: Path, overrides: dict[str, Any], place: str
) -> None:
    with pytest.raises(ConfigError, match=place):
        zoo.export(model_of(overrides), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "place",
    ["stack.drop_path", "stack.block.feedforward.dropout", "head.dropout", "embedding.dropout", "embedding.patch_dropout"],
)
def test_a_dropout_that_transformers_cannot_say_is_left_out_with_a_warning(model_of: Make, tmp_path: Path, place: str) -> None:
    with pytest.warns(UserWarning, match=place):
        zoo.export(model_of({place: 0.1}), tmp_path / "out")


def test_an_unknown_format_is_named(model_of: Make, tmp_path: Path) -> None:
    with pytest.raises(ZooError, match="did you mean 'transformers'"):
        zoo.export(model_of(), tmp_path / "out", "transformer")
