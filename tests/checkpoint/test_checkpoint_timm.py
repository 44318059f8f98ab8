"""timm's VisionTransformer: loading, exporting, every argument honoured or refused, and its table of names."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from zoo.checkpoint.timm_config import ACTIVATIONS, architectures
from zoo.errors import ConfigError, ZooError

Make = Callable[..., Any]


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    """Equal within 1e-12 of the largest."""
    assert a.shape == b.shape and (a - b).abs().max() <= 1e-12 * max(1.0, float(b.abs().max()))


@torch.no_grad()
def agree(ours: Any, theirs: Any, x: torch.Tensor) -> None:
    """Features and scores are equal."""
    output, features = ours(x), theirs.forward_features(x)
    close(output.last_hidden_state, features)
    close(output.logits, theirs.forward_head(features))


HONOURED: list[dict[str, Any]] = [
    {"img_size": 40},
    {"img_size": (24, 48)},
    {"patch_size": 16},
    {"patch_size": (8, 4)},
    {"in_chans": 5},
    {"num_classes": 0},
    {"num_classes": 7},
    {"global_pool": "avg"},
    {"global_pool": "max"},
    {"global_pool": "avgmax"},
    {"global_pool": "map"},
    {"global_pool": ""},
    {"embed_dim": 36},
    {"depth": 3},
    {"num_heads": 4},
    {"mlp_ratio": 2.6667},
    {"qkv_bias": False},
    {"qk_norm": True},
    {"scale_attn_norm": True},
    {"scale_mlp_norm": True},
    {"proj_bias": False},
    {"init_values": 0.5},
    {"class_token": False, "global_pool": "avg"},
    {"pos_embed": "none"},
    {"no_embed_class": True},
    {"reg_tokens": 3},
    {"pre_norm": True},
    {"final_norm": False},
    {"fc_norm": True},
    {"fc_norm": False, "global_pool": "avg"},
    {"pool_include_prefix": True, "global_pool": "avg", "reg_tokens": 2},
    {"pool_include_prefix": True, "global_pool": "map"},
    {"dynamic_img_size": True},
    {"dynamic_img_pad": True, "img_size": 40},
    {"drop_rate": 0.25},
    {"pos_drop_rate": 0.25},
    {"patch_drop_rate": 0.25},
    {"proj_drop_rate": 0.25},
    {"attn_drop_rate": 0.25},
    {"drop_path_rate": 0.25},
    {"weight_init": "jax"},
    {"fix_init": True},
    {"act_layer": "relu"},
    {"act_layer": "quick_gelu"},
    {"norm_layer": "rmsnorm"},
    {"embed_norm_layer": "layernorm"},
]
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"global_pool": "prr"}, "global_pool"),
    ({"attn_layer": "diff"}, "attn_layer"),
    ({"act_layer": "mish"}, "act_layer"),
    ({"norm_layer": "groupnorm1"}, "norm_layer"),
    ({"embed_norm_layer": "simplenorm"}, "embed_norm_layer"),
    ({"pos_embed": "rope"}, "pos_embed"),
    ({"block_fn": "ParallelThingsBlock"}, "block_fn"),
    ({"mlp_layer": "ConvMlp"}, "mlp_layer"),
    ({"embed_layer": "HybridEmbed"}, "embed_layer"),
    ({"new_argument": 3}, "new_argument"),
    ({"depth": "two"}, "depth"),
    ({"img_size": "big"}, "image_size"),
]
MODULES = {"device", "dtype"}


@pytest.mark.parametrize("arguments", HONOURED, ids=str)
def test_an_argument_is_honoured(timm_folder: Make, images: Make, tmp_path: Path, arguments: dict[str, Any]) -> None:
    theirs, folder = timm_folder(**arguments)
    ours = zoo.load(folder)
    size = theirs.patch_embed.img_size or (32, 32)
    x = images(channels=theirs.patch_embed.proj.in_channels, size=size)
    agree(ours, theirs, x)
    assert ours.num_parameters() == sum(parameter.numel() for parameter in theirs.parameters())
    if arguments.get("dynamic_img_size"):
        agree(ours, theirs, images(size=(48, 24)))


@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if name is not None])
def test_an_activation_is_timms(timm_folder: Make, images: Make, name: str) -> None:
    theirs, folder = timm_folder(act_layer=name)
    agree(zoo.load(folder), theirs, images())


RATES = {
    "drop_rate": "head.dropout",
    "pos_drop_rate": "embedding.dropout",
    "patch_drop_rate": "embedding.patch_dropout",
    "proj_drop_rate": "stack.block.dropout",
    "attn_drop_rate": "stack.block.attention.dropout",
    "drop_path_rate": "stack.drop_path",
}


@pytest.mark.parametrize("rate", RATES)
def test_a_rate_of_dropping_is_taken_over(timm_folder: Make, rate: str) -> None:
    """timm does not write them, but reads them."""
    _, folder = timm_folder()
    path = folder / "config.json"
    values = json.loads(path.read_text())
    values["model_args"] = {**values.get("model_args", {}), rate: 0.25}
    path.write_text(json.dumps(values))
    found: Any = zoo.load(folder).config
    for step in RATES[rate].split("."):
        found = getattr(found, step)
    assert found == 0.25


@pytest.mark.parametrize("arguments", HONOURED, ids=str)
def test_an_export_is_opened_by_timm(timm_folder: Make, images: Make, tmp_path: Path, arguments: dict[str, Any]) -> None:
    import timm
    from safetensors.torch import load_file

    theirs, folder = timm_folder(**arguments)
    ours = zoo.load(folder)
    try:
        zoo.export(ours, tmp_path / "out", "timm")
    except ConfigError:
        pytest.fail("what came from timm cannot go back")
    opened = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=False).double().eval()
    opened.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"), strict=True)
    agree(ours, opened, images(channels=theirs.patch_embed.proj.in_channels, size=theirs.patch_embed.img_size or (32, 32)))
    assert all(torch.equal(a, b) for a, b in zip(opened.state_dict().values(), theirs.state_dict().values()))


@pytest.mark.parametrize(("arguments", "name"), REFUSED, ids=str)
def test_what_we_do_not_have_is_refused_by_name(timm_folder: Make, arguments: dict[str, Any], name: str) -> None:
    _, folder = timm_folder()
    path = folder / "config.json"
    values = json.loads(path.read_text())
    values["model_args"] = {**values.get("model_args", {}), **arguments}
    path.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=name):
        zoo.load(folder)


def test_no_argument_of_timms_is_untested() -> None:
    from timm.models.vision_transformer import VisionTransformer

    names = set(inspect.signature(VisionTransformer.__init__).parameters) - {"self"}
    assert names - {name for each in HONOURED for name in each} - {name for each, _ in REFUSED for name in each} == MODULES


@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "test_vit3", "test_vit4"])
def test_small_architectures_of_timm(redraw: Make, tmp_path: Path, name: str) -> None:
    import timm

    torch.manual_seed(0)
    theirs = redraw(timm.create_model(name).double()).eval()
    timm.models.save_for_hf(theirs, tmp_path / "t", safe_serialization=True)
    agree(zoo.load(tmp_path / "t"), theirs, torch.randn(1, 3, 160, 160, dtype=torch.float64))


def spelled(value: Any) -> Any:
    """An argument of timm's as the table writes it."""
    if isinstance(value, functools.partial) and value.func.__name__ == "GluMlp":
        assert value.keywords == {"act_layer": torch.nn.SiLU, "gate_last": False}
        return "SwiGLUPacked"
    if isinstance(value, functools.partial):
        name = {"LayerNorm": "layernorm", "LayerNormFp32": "layernorm", "RmsNorm": "rmsnorm"}.get(
            value.func.__name__, value.func.__name__
        )
        return {"name": name, **value.keywords}
    if inspect.isclass(value):
        return {"RmsNorm": "rmsnorm", "LayerNorm": "layernorm", "SiLU": "silu"}.get(value.__name__, value.__name__)
    return list(value) if isinstance(value, tuple) else value


def test_the_table_of_architectures_is_timms(monkeypatch: pytest.MonkeyPatch) -> None:
    from timm.models import deit, vision_transformer
    from timm.models._registry import _model_entrypoints

    captured: dict[str, tuple[Any, dict[str, Any]]] = {}

    def capture(cls: Any, variant: str, pretrained: bool, **arguments: Any) -> Any:
        captured[variant] = (cls, arguments)
        return torch.nn.Identity()

    for module in (vision_transformer, deit):
        monkeypatch.setattr(module, "build_model_with_cfg", capture)
    for entry in _model_entrypoints.values():
        if entry.__module__ in ("timm.models.vision_transformer", "timm.models.deit"):
            entry()
    known = set(inspect.signature(vision_transformer.VisionTransformer.__init__).parameters)
    passed = {
        name: {k: spelled(v) for k, v in arguments.items() if k in known}
        | ({} if cls is vision_transformer.VisionTransformer else {"class": cls.__name__})
        for name, (cls, arguments) in captured.items()
    }
    assert len(passed) > 150
    table = architectures()
    assert set(table) == set(passed)
    wrong = {name: (table[name], passed[name]) for name in passed if plain(table[name]) != plain(passed[name])}
    assert not wrong, {
        name: {k: (a.get(k), b.get(k)) for k in {*a, *b} if a.get(k) != b.get(k)} for name, (a, b) in wrong.items()
    }


DEFAULTS: dict[str, Any] = {"weight_init": "", "fix_init": False}


def plain(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments without those that ask for what is the default, and without how fresh weights are drawn."""
    from timm.models.vision_transformer import VisionTransformer

    defaults = {name: spelled(p.default) for name, p in inspect.signature(VisionTransformer.__init__).parameters.items()}
    return {
        name: value
        for name, value in arguments.items()
        if name not in DEFAULTS and (name == "class" or value != defaults.get(name)) and value is not None
    }


@pytest.mark.parametrize("target", ["transformers", "zoo", "timm"])
def test_a_conversion_keeps_the_outputs(timm_folder: Make, images: Make, tmp_path: Path, target: str) -> None:
    from zoo.cli import main

    theirs, folder = timm_folder()
    with pytest.raises(SystemExit) as caught:
        main(["convert", str(folder), str(tmp_path / "out"), "--to", target])
    assert caught.value.code in (0, None)
    if target == "transformers":
        import transformers

        opened = transformers.ViTForImageClassification.from_pretrained(tmp_path / "out", dtype=torch.float64).eval()
        with torch.no_grad():
            close(opened(images()).logits, theirs(images()))
    else:
        agree(zoo.load(tmp_path / "out"), theirs, images())


@pytest.mark.parametrize(
    "values",
    [
        {"model_args": 3},
        {"pretrained_cfg": 3},
        {"pretrained_cfg": {"input_size": "x"}},
        {"num_classes": "x"},
        {"label_names": 3},
        {"architecture": 3},
        {"model_args": {"norm_layer": []}},
        {"model_args": {"mlp_layer": []}},
        {"model_args": {"img_size": [8]}},
        {"pretrained_cfg": {"input_size": []}},
        {"model_args": {"num_heads": 0}},
        {"architecture": ["vit"]},
    ],
)
def test_a_broken_config_is_refused(timm_folder: Make, values: dict[str, Any]) -> None:
    _, folder = timm_folder()
    path = folder / "config.json"
    whole = json.loads(path.read_text())
    if "model_args" in values and isinstance(values["model_args"], dict):
        values = {"model_args": {**whole.get("model_args", {}), **values["model_args"]}}
    if "pretrained_cfg" in values or "num_classes" in values:
        whole.pop("model_args", None)
    path.write_text(json.dumps({**whole, **values}))
    try:
        zoo.load(folder)
    except ZooError:
        return
    assert "label_names" in values, "a broken config was taken"
