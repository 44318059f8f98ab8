"""Hugging Face's and timm's Swin: loading, exporting, every field honoured or refused, images of any size."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from zoo.checkpoint.timm_swin import ARCHITECTURES
from zoo.errors import ConfigError, WeightsError, ZooError

Make = Callable[..., Any]
SWIN = {"image_size": 48, "patch_size": 4, "embed_dim": 12, "depths": [2, 2, 2], "num_heads": [3, 6, 12], "window_size": 3}
TIMM = {
    "img_size": 48,
    "patch_size": 4,
    "embed_dim": 12,
    "depths": (2, 2, 2),
    "num_heads": (3, 6, 12),
    "window_size": 3,
    "num_classes": 5,
}
ODD = [(49, 67), (33, 59), (33, 33), (89, 35), (48, 38), (63, 42), (53, 98), (50, 95)]


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    """Equal within 1e-12 of the largest."""
    assert a.shape == b.shape and (a - b).abs().max() <= 1e-12 * max(1.0, float(b.abs().max()))


@pytest.fixture
def swin(redraw: Make, tmp_path: Path) -> Make:
    """A function that makes a Swin of transformers, in float64, and the folder that it saves itself into."""
    import transformers

    transformers.utils.logging.disable_progress_bar()

    def make(cls: str = "SwinForImageClassification", **fields: Any) -> tuple[Any, Path]:
        labels = {} if "id2label" in fields else {"num_labels": 5}
        config = transformers.SwinConfig(**{**SWIN, **labels, **fields})
        config._attn_implementation = "sdpa"
        torch.manual_seed(0)
        model = redraw(getattr(transformers, cls)(config).double()).eval()
        folder = tmp_path / f"hf-{len(list(tmp_path.iterdir()))}"
        model.save_pretrained(folder)
        return model, folder

    return make


@pytest.fixture
def timm_swin(redraw: Make, tmp_path: Path) -> Make:
    """A function that makes a Swin of timm, in float64, and the folder that it saves itself into."""
    import timm

    def make(name: str = "swin_tiny_patch4_window7_224", **arguments: Any) -> tuple[Any, Path]:
        torch.manual_seed(0)
        model = redraw(timm.create_model(name, **{**TIMM, **arguments}).double()).eval()
        folder = tmp_path / f"timm-{len(list(tmp_path.iterdir()))}"
        timm.models.save_for_hf(model, folder, safe_serialization=True)
        return model, folder

    return make


@torch.no_grad()
def theirs_on(model: Any, x: torch.Tensor, **options: Any) -> Any:
    """What transformers answers, with the windows of its config: a small image changes them for all calls to come."""
    for module in model.modules():
        if hasattr(module, "set_shift_and_window_size"):
            module.own = getattr(module, "own", (module.window_size, module.shift_size))
            module.window_size, module.shift_size = module.own
    return model(x, **options)


@torch.no_grad()
def agree(ours: Any, theirs: Any, x: torch.Tensor, **options: Any) -> None:
    """Every output that both have is equal, and there is at least one."""
    own, other = ours(x, **options), theirs_on(theirs, x, **options)
    shared = [name for name in ("last_hidden_state", "pooler_output", "logits") if other.get(name) is not None]
    for name in shared:
        close(getattr(own, name), other[name])
    maps = other.get("feature_maps") or ()
    assert shared or maps
    assert len(maps) == len(own.feature_maps or ())
    for name, each in zip(getattr(theirs, "out_features", ()), maps):
        close(own.feature_maps[name].map, each)


@torch.no_grad()
def agree_with_timm(ours: Any, theirs: Any, x: torch.Tensor) -> None:
    """Features and scores are equal."""
    output, features = ours(x), theirs.forward_features(x)
    close(output.last_hidden_state, features.flatten(1, 2))
    logits = theirs.forward_head(features)
    close(output.logits, logits.flatten(1, 2) if logits.ndim == 4 else logits)


@pytest.mark.parametrize("cls", ["SwinModel", "SwinForImageClassification", "SwinBackbone"])
def test_a_folder_of_transformers_gives_their_outputs_at_any_size(swin: Make, images: Make, tmp_path: Path, cls: str) -> None:
    import transformers

    theirs, folder = swin(cls, **({"out_features": ["stem", "stage1", "stage3"]} if cls == "SwinBackbone" else {}))
    ours = zoo.load(folder)
    for size in [(48, 48), *ODD, *([(7, 5), (16, 40)] if cls == "SwinBackbone" else [])]:
        agree(ours, theirs, images(size=size))
    unused = 2 * 48 if cls == "SwinBackbone" else 0  # a norm of the last state, which a backbone does not use
    assert ours.num_parameters() == theirs.num_parameters() - unused and not ours.training
    zoo.export(ours, tmp_path / "out")
    opened, info = getattr(transformers, cls).from_pretrained(tmp_path / "out", output_loading_info=True, dtype=torch.float64)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    agree(ours, opened.eval(), images(size=(48, 48)))


def test_feature_maps_have_strides_and_channels(swin: Make, images: Make) -> None:
    theirs, folder = swin("SwinModel")
    ours, x = zoo.load(folder), images(size=(50, 71))
    maps = ours(x, features=["stage3", "stem", "stage1"]).feature_maps
    assert [(name, each.stride, each.channels, tuple(each.map.shape)) for name, each in maps.items()] == [
        ("stem", (4, 4), 12, (2, 12, 13, 18)),
        ("stage1", (4, 4), 12, (2, 12, 13, 18)),
        ("stage3", (16, 16), 48, (2, 48, 4, 5)),
    ]
    with torch.no_grad():
        states = theirs.encoder(
            theirs.embeddings(x)[0], (13, 18), output_hidden_states=True, output_hidden_states_before_downsampling=True
        )
    for name, number in (("stem", 0), ("stage1", 1), ("stage3", 3)):
        close(maps[name].map, states.reshaped_hidden_states[number])


@pytest.mark.parametrize("arguments", [
    {}, {"always_partition": True}, {"window_size": (3, 2), "img_size": (48, 40)}, {"window_size": ((3, 2), 4, (2, 6))},
    {"window_size": 5, "img_size": (40, 72)}, {"window_size": 20},
], ids=str)  # fmt: skip
def test_timms_images_of_one_size(timm_swin: Make, images: Make, arguments: dict[str, Any]) -> None:
    """With grids smaller than a window along one axis or both, and others that are not whole windows."""
    theirs, folder = timm_swin(**arguments)
    agree_with_timm(zoo.load(folder), theirs, images(size=theirs.patch_embed.img_size))


@pytest.mark.parametrize("always", [False, True])
def test_timms_images_of_any_size(timm_swin: Make, images: Make, always: bool) -> None:
    theirs, folder = timm_swin(dynamic_img_size=True, always_partition=always)
    ours = zoo.load(folder)
    for rows, columns in [(48, 48), (4, 4), (16, 40), *ODD]:
        agree_with_timm(ours, theirs, images(size=(rows // 4 * 4, columns // 4 * 4)))


HONOURED: dict[str, Any] = {
    "image_size": [56, 48],
    "patch_size": [4, 2],
    "num_channels": 5,
    "embed_dim": 24,
    "depths": [1, 3, 2],
    "num_heads": [2, 3, 4],
    "window_size": 2,
    "mlp_ratio": 2.6667,
    "qkv_bias": False,
    "hidden_dropout_prob": 0.25,
    "attention_probs_dropout_prob": 0.25,
    "drop_path_rate": 0.5,
    "hidden_act": "relu",
    "use_absolute_embeddings": True,
    "initializer_range": 0.5,
    "layer_norm_eps": 0.1,
    "encoder_stride": 16,
    "id2label": {0: "a", 1: "b", 2: "c"},
    "out_features": ["stage2"],
}
WITHOUT_INFLUENCE = {
    "architectures", "model_type", "transformers_version", "_name_or_path", "dtype", "label2id", "problem_type", "return_dict",
    "output_hidden_states", "output_attentions", "chunk_size_feed_forward", "is_encoder_decoder",
}  # fmt: skip
FOLLOWING = {"num_layers", "hidden_size", "stage_names", "out_indices"}


@pytest.mark.parametrize("cls", ["SwinForImageClassification", "SwinBackbone"])
@pytest.mark.parametrize("field", HONOURED)
def test_every_field_is_honoured(swin: Make, images: Make, tmp_path: Path, cls: str, field: str) -> None:
    theirs, folder = swin(cls, **{field: HONOURED[field]})
    assert field in json.loads((folder / "config.json").read_text()) or field == "initializer_range"
    ours = zoo.load(folder)
    size = theirs.config.image_size
    agree(
        ours, theirs, images(channels=theirs.config.num_channels, size=tuple(size) if isinstance(size, list) else (size, size))
    )
    zoo.export(ours, tmp_path / "out")
    first, again = (json.loads((path / "config.json").read_text()) for path in (folder, tmp_path / "out"))
    first, again = ({"initializer_range": 0.02, **values, "encoder_stride": 0} for values in (first, again))
    of_class = {"id2label": "SwinForImageClassification", "out_features": "SwinBackbone"}
    assert of_class.get(field, cls) != cls or first[field] == again[field]


def test_absolute_positions_at_other_sizes(swin: Make, images: Make) -> None:
    theirs, folder = swin(use_absolute_embeddings=True)
    ours = zoo.load(folder)
    for size in ((48, 48), (64, 40), (96, 96)):
        agree(ours, theirs, images(size=size), interpolate_pos_encoding=True)
    with pytest.raises(ZooError, match="interpolate_pos_encoding"):
        ours(images(size=(64, 40)))


def test_no_field_of_transformers_is_untested() -> None:
    import transformers

    fields = set(transformers.SwinConfig().to_dict())
    assert fields <= set(HONOURED) | WITHOUT_INFLUENCE | FOLLOWING, "transformers has a new field"


def edit(folder: Path, **values: Any) -> None:
    """Changes fields of a folder's config; None removes one."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


@pytest.mark.parametrize(("field", "value"), [
    ("architectures", ["SwinForMaskedImageModeling"]), ("window_sizes", [7, 7]), ("path_norm", False), ("layerscale_value", 1),
    ("depths", []), ("depths", 2), ("depths", [2, "2"]), ("depths", [2, 0]), ("num_heads", [3]), ("num_heads", [5, 6, 12]),
    ("window_size", 0), ("window_size", [3, 3]), ("mlp_ratio", "4"), ("mlp_ratio", 0), ("hidden_act", "mish"),
    ("qkv_bias", 1), ("embed_dim", 0), ("use_absolute_embeddings", "no"), ("image_size", "big"), ("drop_path_rate", 2),
    ("out_features", ["stage9"]), ("out_indices", "x"),
])  # fmt: skip
def test_a_broken_or_unknown_field_is_refused(swin: Make, field: str, value: Any) -> None:
    _, folder = swin()
    edit(folder, **({"out_features": None} if field == "out_indices" else {}), **{field: value})
    with pytest.raises(ZooError) as caught:
        zoo.load(folder)
    if field in ("window_sizes", "path_norm", "layerscale_value", "out_features"):
        assert field in str(caught.value)


def test_masked_image_modelling_is_refused_by_name(swin: Make) -> None:
    _, folder = swin("SwinForMaskedImageModeling", image_size=48, encoder_stride=16)
    with pytest.raises(ConfigError, match="SwinForMaskedImageModeling is not supported"):
        zoo.load(folder)


def test_old_files_load(swin: Make, images: Make) -> None:
    """Files on the Hub hold an index, an obsolete field, and lack the fields of newer versions."""
    from safetensors.torch import load_file, save_file

    theirs, folder = swin()
    tensors = load_file(folder / "model.safetensors")
    name = "swin.encoder.layers.0.blocks.0.attention.self.relative_position_index"
    save_file({**tensors, name: torch.zeros(9, 9, dtype=torch.int64)}, folder / "model.safetensors")
    edit(folder, path_norm=True, num_layers=3, stage_names=None, out_features=None, out_indices=None, hidden_size=None)
    ours = zoo.load(folder)
    agree(ours, theirs, images(size=(48, 48)))
    assert [entry.name for entry in ours.load_report.of("ignored")] == [name]


TIMM_HONOURED: list[dict[str, Any]] = [
    {"img_size": (64, 48)}, {"patch_size": 2, "img_size": 24}, {"in_chans": 5}, {"num_classes": 0}, {"num_classes": 7},
    {"global_pool": "max"}, {"global_pool": "avgmax"}, {"embed_dim": 24}, {"depths": (1, 3)}, {"depths": (3,)},
    {"num_heads": (2, 3, 4)}, {"head_dim": 5}, {"head_dim": (3, 4, 5)}, {"window_size": (2, 3)}, {"window_size": (2, 3, 4)},
    {"always_partition": True}, {"strict_img_size": False}, {"dynamic_img_size": True}, {"mlp_ratio": 2.6667},
    {"mlp_ratio": (2, 3.3, 4)}, {"qkv_bias": False}, {"drop_rate": 0.25}, {"proj_drop_rate": 0.25}, {"attn_drop_rate": 0.25},
    {"drop_path_rate": 0.25}, {"weight_init": "jax"},
]  # fmt: skip
TIMM_REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"embed_layer": "HybridEmbed"}, "embed_layer"), ({"norm_layer": "rmsnorm"}, "norm_layer"), ({"depths": 3}, "depths"),
    ({"depths": [2, "x"]}, "depths"), ({"num_heads": [3]}, "num_heads"), ({"window_size": [3, 4, 5, 6]}, "window_size"),
    ({"window_size": "x"}, "window_size"), ({"global_pool": "catavgmax"}, "global_pool"), ({"head_dim": "x"}, "head_dim"),
    ({"mlp_ratio": "x"}, "mlp_ratio"), ({"new_argument": 3}, "new_argument"), ({"always_partition": 1}, "always_partition"),
    ({"img_size": "x"}, "img_size"), ({"dynamic_img_size": True, "img_size": [12, 96]}, "dynamic_img_size"),
]  # fmt: skip


@pytest.mark.parametrize("arguments", TIMM_HONOURED, ids=str)
def test_an_argument_of_timms_is_honoured_both_ways(
    timm_swin: Make, images: Make, tmp_path: Path, arguments: dict[str, Any]
) -> None:
    import timm
    from safetensors.torch import load_file

    theirs, folder = timm_swin(**arguments)
    ours = zoo.load(folder)
    x = images(channels=theirs.in_chans, size=theirs.patch_embed.img_size)
    agree_with_timm(ours, theirs, x)
    assert ours.num_parameters() == sum(parameter.numel() for parameter in theirs.parameters())
    zoo.export(ours, tmp_path / "out", "timm")
    opened = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=False).double().eval()
    opened.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"), strict=True)
    agree_with_timm(ours, opened, x)
    if theirs.dynamic_img_size:
        x = images(channels=theirs.in_chans, size=(60, 92))
        agree_with_timm(ours, opened, x)


@pytest.mark.parametrize(("arguments", "name"), TIMM_REFUSED, ids=str)
def test_what_we_do_not_have_is_refused_by_name(timm_swin: Make, arguments: dict[str, Any], name: str) -> None:
    _, folder = timm_swin()
    values = json.loads((folder / "config.json").read_text())
    edit(folder, model_args={**values["model_args"], **arguments})
    with pytest.raises(ConfigError, match=name):
        zoo.load(folder)


def test_no_argument_of_timms_is_untested() -> None:
    from timm.models.swin_transformer import SwinTransformer

    names = set(inspect.signature(SwinTransformer.__init__).parameters) - {"self", "device", "dtype"}
    assert names == {name for each in TIMM_HONOURED for name in each} | {"norm_layer", "embed_layer"}


def test_the_table_of_architectures_is_timms(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm
    from timm.models import swin_transformer

    captured: dict[str, dict[str, Any]] = {}

    def capture(variant: str, pretrained: bool = False, **arguments: Any) -> Any:
        captured[variant] = {name: list(v) if isinstance(v, tuple) else v for name, v in arguments.items()}
        return torch.nn.Identity()

    monkeypatch.setattr(swin_transformer, "_create_swin_transformer", capture)
    for name in timm.list_models("swin_*"):
        if timm.models.is_model_in_modules(name, ["swin_transformer"]):
            getattr(swin_transformer, name)()
    assert captured == ARCHITECTURES


def test_old_files_of_timm_load(timm_swin: Make, images: Make) -> None:
    """There the tokens are merged at the end of a stage, and the buffers are stored."""
    from safetensors.torch import load_file, save_file

    theirs, folder = timm_swin()
    tensors = load_file(folder / "model.safetensors")
    old = {}
    for name, value in tensors.items():
        if ".downsample." in name:
            name = f"layers.{int(name.split('.')[1]) - 1}.{name.split('.', 2)[2]}"
        old[name.replace("head.fc.", "head.")] = value
    old["layers.0.blocks.1.attn_mask"] = torch.zeros(16, 9, 9)
    old["layers.0.blocks.1.attn.relative_position_index"] = torch.zeros(9, 9, dtype=torch.int64)
    save_file(old, folder / "model.safetensors")
    agree_with_timm(zoo.load(folder), theirs, images(size=(48, 48)))


def test_a_conversion_keeps_the_outputs(timm_swin: Make, swin: Make, images: Make, tmp_path: Path) -> None:
    """For the trained size; others, which the two treat differently, are not promised."""
    import timm
    import transformers
    from safetensors.torch import load_file

    x = images(size=(48, 48))
    theirs, folder = timm_swin()
    zoo.export(zoo.load(folder), tmp_path / "a", "transformers")
    opened = transformers.SwinForImageClassification.from_pretrained(tmp_path / "a", dtype=torch.float64).eval()
    with torch.no_grad():
        close(opened(x).logits, theirs(x))
    other, folder = swin()
    zoo.export(zoo.load(folder), tmp_path / "b", "timm")
    back = timm.create_model(f"local-dir:{tmp_path / 'b'}", pretrained=False).double().eval()
    back.load_state_dict(load_file(tmp_path / "b" / "model.safetensors"), strict=True)
    with torch.no_grad():
        close(back(x), theirs_on(other, x).logits)


@pytest.mark.parametrize(("overrides", "place"), [
    ({"stack.block.attention.window": [3, 2]}, "attention.window"),
    ({"stack.block.attention.small": "shift"}, "attention.small"),
    ({"stack.block.attention.fill": "after-shift"}, "attention.fill"),
    ({"stack.block.attention.shift": True}, "attention.shift"),
    ({"stack.pattern": None}, "attention.shift"),
    ({"stack.block.attention.kv_heads": 1}, "kv_heads"),
    ({"stack.block.attention.position": None}, "attention.position"),
    ({"stack.block.attention.scale": 3.0}, "attention.scale"),
    ({"stack.stages": {"1": {"block": {"attention": {"type": "full", "position": None}}}}}, "stack.stages.1.block.attention"),
    ({"stack.stages": {"1": {"block": {"attention": {"window": 2}}}}}, "stack.stages.1.block"),
    ({"stack.merge_norm.eps": 1e-3}, "stack.merge_norm.eps"),
    ({"stack.merge_norm": None}, "stack.merge_norm"),
    ({"stack.final_norm": None}, "stack.final_norm"),
    ({"embedding.norm": None}, "embedding.norm"),
    ({"embedding.edges": "cut"}, "embedding.edges"),
    ({"stack.block.order": "post"}, "stack.block.order"),
    ({"head.pool": "max"}, "head.pool"),
    ({"head.classes": 0}, "head.classes"),
])  # fmt: skip
def test_what_transformers_cannot_say_is_refused_with_our_field(tmp_path: Path, overrides: dict[str, Any], place: str) -> None:
    tiny = {"embedding.image_size": 96, "stack.block.attention.window": 3, "stack.width": 12}
    ours = zoo.build("swin-tiny", {**tiny, **overrides}, device="meta")
    with pytest.raises(ConfigError, match=place):
        zoo.export(ours, tmp_path / "out")


def test_weights_move_to_another_window(swin: Make, images: Make) -> None:
    """The biases are interpolated between distances, and the report says so."""
    _, folder = swin()
    original = zoo.load(folder)
    moved = zoo.load(folder, {"stack.block.attention.window": 5, "embedding.image_size": 80})
    resized = moved.load_report.of("resized")
    assert len(resized) == 6 and all("3 x 3 window interpolated (bicubic) to 5 x 5" in entry.detail for entry in resized)
    old, new = (model.stack.layers[0].attention.position.table for model in (original, moved))
    assert new.shape == (81, 3)
    close(new.unflatten(0, (9, 9))[4, 4], old.unflatten(0, (5, 5))[2, 2])  # what stands side by side stays it
    theirs = torch.nn.functional.interpolate(old.T.reshape(1, 3, 5, 5), size=(9, 9), mode="bicubic")
    close(new, theirs[0].flatten(1).T)
    again = zoo.load(folder, {"stack.block.attention.window": [3, 5], "embedding.image_size": 80})
    assert again(images(size=(80, 80))).logits.isfinite().all()
    with pytest.raises(WeightsError, match="cannot become"):
        zoo.load(folder, {"stack.stages": {"0": {"heads": 6}}})
