"""open_clip's folders and state dicts: loading, exporting, every field of its config honoured or refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from clip_helpers import agree as agree_with_transformers
from clip_helpers import save as save_with_transformers
from safetensors.torch import load_file, save_file

import zoo
from zoo.checkpoint.save import family_for
from zoo.errors import ConfigError, WeightsError, ZooError

Make = Callable[..., Any]
SMALL: dict[str, Any] = {
    "embed_dim": 10,
    "vision_cfg": {"image_size": 20, "layers": 2, "width": 32, "patch_size": 5, "head_width": 8},
    "text_cfg": {"context_length": 9, "vocab_size": 31, "width": 24, "heads": 3, "layers": 3},
}
CONFIG, TENSORS, PICKLE = "open_clip_config.json", "open_clip_model.safetensors", "open_clip_pytorch_model.bin"


def changed(**fields: Any) -> dict[str, Any]:
    """The small config with other fields; those of a tower are named `text_cfg.layers` and so on."""
    values = copy.deepcopy(SMALL)
    for name, value in fields.items():
        place, _, field = name.rpartition(".")
        (values[place] if place else values)[field] = value
    return values


def write(folder: Path, values: dict[str, Any], tensors: dict[str, Any] | None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / CONFIG).write_text(json.dumps({"model_cfg": values, "preprocess_cfg": {"mean": [0.5], "std": [0.5]}}))
    if tensors is not None:
        save_file(tensors, folder / TENSORS)
    return folder


@pytest.fixture
def saved(redraw: Make, tmp_path: Path) -> Make:
    """A function that makes a model of open_clip, in float64, and its folder."""

    def make(**fields: Any) -> tuple[Any, Path]:
        values = changed(**fields)
        arguments = {name: value for name, value in copy.deepcopy(values).items() if name != "custom_text"}
        kind = open_clip.CustomTextCLIP if values.get("custom_text") else open_clip.CLIP
        torch.manual_seed(0)
        theirs = redraw(kind(**arguments).double()).eval()
        return theirs, write(tmp_path / f"theirs-{len(list(tmp_path.iterdir()))}", values, theirs.state_dict())

    return make


@torch.no_grad()
def agree(ours: Any, theirs: Any, bound: float = 1e-12) -> None:
    """Vectors and scores are equal, for texts that end anywhere or nowhere."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(0, 30, (5, 9), generator=generator)
    end = 30 if ours.config.text.head.pool.id is None else ours.config.text.head.pool.id
    ids = torch.where(ids == end, 1, ids)
    ids[0, 8] = ids[1, 4] = ids[2, 0] = end
    ids[3, 3:] = end
    pixels = torch.randn(3, 3, *ours.config.vision.embedding.image_size, generator=generator, dtype=torch.float64)
    output = ours(ids, pixels)
    images, texts, *_ = theirs(pixels, ids)
    scores, transposed = theirs.get_logits(pixels, ids)
    for mine, other in (
        (output.image_embeds, images), (output.text_embeds, texts), (output.logits_per_image, scores),
        (output.logits_per_text, transposed), (output.text_model_output.text_embeds, theirs.encode_text(ids)),
        (output.vision_model_output.image_embeds, theirs.encode_image(pixels)),
    ):  # fmt: skip
        assert mine.shape == other.shape and (mine - other).abs().max() <= bound * max(1.0, float(other.abs().max()))


def reopened(folder: Path) -> Any:
    """What open_clip makes of a folder, in float64."""
    model = open_clip.create_model(f"local-dir:{folder}").double()
    model.load_state_dict(load_file(folder / TENSORS))
    return model.eval()


FIELDS = [
    ("quick_gelu", True), ("quick_gelu", False), ("embed_dim", 7), ("init_logit_scale", 1.0), ("init_logit_bias", -10.0),
    ("custom_text", True), ("nonscalar_logit_scale", False),
    ("vision_cfg.image_size", 15), ("vision_cfg.image_size", [20, 30]), ("vision_cfg.patch_size", 4),
    ("vision_cfg.layers", 3), ("vision_cfg.width", 48), ("vision_cfg.head_width", 16), ("vision_cfg.mlp_ratio", 3.3),
    ("vision_cfg.patch_dropout", 0.25), ("vision_cfg.norm_kwargs", {"eps": 1e-3}), ("vision_cfg.final_ln_after_pool", True),
    ("vision_cfg.pool_type", "tok"), ("vision_cfg.pos_embed_type", "learnable"), ("vision_cfg.block_type", "default"),
    ("text_cfg.vocab_size", 37), ("text_cfg.width", 48), ("text_cfg.heads", 2), ("text_cfg.layers", 1),
    ("text_cfg.mlp_ratio", 2.05), ("text_cfg.norm_kwargs", {"eps": 1e-3}), ("text_cfg.pool_type", "argmax"),
    ("text_cfg.pool_type", "eos"), ("text_cfg.hf_tokenizer_name", "some/name"), ("text_cfg.pad_id", 3),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), FIELDS)
def test_every_field_is_honoured_both_ways(saved: Make, tmp_path: Path, field: str, value: Any) -> None:
    theirs, folder = saved(**{field: value})
    ours = zoo.load(folder)
    agree(ours, theirs)
    out = zoo.export(ours, tmp_path / "out", format="open_clip")
    again = zoo.load(out)
    assert again.config == ours.config
    agree(again, theirs)
    agree(again, reopened(out))
    assert sorted(path.name for path in out.iterdir()) == [CONFIG, TENSORS]


@pytest.mark.parametrize("quick", [True, False])
def test_the_activation_is_that_of_the_config(saved: Make, quick: bool) -> None:
    """The same tensors are another model under another activation; nothing but the config tells which."""
    theirs, folder = saved(quick_gelu=quick)
    ours = zoo.load(folder)
    names = {tower.stack.block.feedforward.activation for tower in (ours.config.text, ours.config.vision)}
    assert names == {"quick-gelu" if quick else "gelu"}
    write(folder, changed(quick_gelu=not quick), None)
    with pytest.raises(AssertionError):
        agree(zoo.load(folder), theirs)
    (folder / CONFIG).unlink()
    with pytest.raises(ConfigError, match=r"open_clip_config\.json is missing.*activation"):
        zoo.load(folder)


@pytest.mark.parametrize("trained", ["laion", "openai"])
def test_a_name_whose_activation_is_another_is_an_error(redraw: Make, tmp_path: Path, trained: str) -> None:
    """The preset's name stands for OpenAI's quick gelu; LAION's tensors of the same shapes want the exact one."""
    shape = {
        f"{tower}.stack.{name}": value for tower in ("text", "vision")
        for name, value in {"depth": 1, "width": 64, "block.attention.heads": 1, "block.feedforward.hidden": 8}.items()
    } | {"text.embedding.vocabulary": 40, "text.head.size": 4, "vision.head.size": 4}  # fmt: skip
    path = tmp_path / "small-clip.yaml"
    path.write_text(json.dumps(zoo.get_config("clip-vit-b32", shape).plain()))
    activation = {"laion": "gelu", "openai": "quick-gelu"}[trained]
    change = {f"{tower}.stack.block.feedforward.activation": activation for tower in ("text", "vision")}
    folder = zoo.export(zoo.build(path, change), tmp_path / trained, format="open_clip")
    if trained == "openai":
        assert zoo.build(path, weights=folder).config == zoo.get_config(path)
        return
    with pytest.raises(WeightsError, match=r"activation is 'gelu' there, 'quick-gelu' here, and no override asked"):
        zoo.build(path, weights=folder)
    assert zoo.build(path, change, weights=folder).config == zoo.get_config(path, change)


@pytest.mark.parametrize("form", ["plain", "processes", "training", "custom", "buffers"])
def test_a_state_dict(saved: Make, form: str) -> None:
    """As torch saves it: alone, of several processes, in a checkpoint of training, or with buffers of old versions."""
    theirs, folder = saved(custom_text=form == "custom")
    state = dict(load_file(folder / TENSORS))
    (folder / TENSORS).unlink()
    if form == "buffers":
        state |= {"attn_mask": torch.zeros(9, 9), "context_length": torch.tensor(9), "input_resolution": torch.tensor(20)}
    if form == "processes":
        state = {f"module.{name}": value for name, value in state.items()}
    whole: Any = {"epoch": 3, "name": "run", "state_dict": state, "optimizer": {}} if form == "training" else state
    torch.save(whole, folder / PICKLE)
    agree(zoo.load(folder), theirs)


def test_a_folder_for_both_libraries_is_read_as_one_of_transformers(saved: Make, redraw: Make) -> None:
    _, folder = saved()
    theirs = save_with_transformers("CLIPModel", folder, redraw)
    agree_with_transformers(zoo.load(folder), theirs)


def test_from_one_library_to_the_other(saved: Make, tmp_path: Path) -> None:
    theirs, folder = saved(quick_gelu=True, **{"text_cfg.pool_type": "eos", "text_cfg.eos_id": 7})
    between = zoo.export(zoo.load(folder), tmp_path / "transformers")
    agree(zoo.load(between), theirs)
    back = zoo.load(zoo.export(zoo.load(between), tmp_path / "back", format="open_clip"))
    agree(back, theirs)
    assert back.config.text.head.pool.id == 7


@pytest.mark.parametrize(("field", "value", "words"), [
    ("embed_dim", ..., "embed_dim: missing"),
    ("quick_gelu", "yes", "quick_gelu: expected true or false"),
    ("nonscalar_logit_scale", True, "nonscalar_logit_scale: True is not supported"),
    ("multimodal_cfg", {"width": 8}, "not supported: multimodal_cfg"),
    ("new_option", 1, "not supported: new_option=1"),
    ("init_logit_scale", "x", "init_logit_scale"),
    ("vision_cfg", 3, "vision_cfg: expected fields"),
    ("vision_cfg.layers", [3, 4, 6, 3], "layers: a ResNet is not supported"),
    ("vision_cfg.timm_model_name", "convnext_base", "timm_model_name: 'convnext_base' is not supported"),
    ("vision_cfg.attentional_pool", True, "attentional_pool: True is not supported"),
    ("vision_cfg.pool_type", "avg", "pool_type: 'avg' is not supported"),
    ("vision_cfg.no_ln_pre", True, "no_ln_pre: True is not supported"),
    ("vision_cfg.pos_embed_type", "sin_cos_2d", "pos_embed_type"),
    ("vision_cfg.ls_init_value", 0.1, "ls_init_value: 0.1 is not supported"),
    ("vision_cfg.head_width", 7, "head_width: 32 cannot be divided into heads of 7"),
    ("vision_cfg.qk_norm", True, "qk_norm: True is not supported"),
    ("vision_cfg.block_type", "custom", "block_type: 'custom' is not supported"),
    ("vision_cfg.act_kwargs", {"approximate": "tanh"}, "act_kwargs"),
    ("vision_cfg.norm_kwargs", {"bias": False}, "norm_kwargs: expected eps alone"),
    ("vision_cfg.new_option", 1, "vision_cfg: not supported: new_option=1"),
    ("text_cfg.hf_model_name", "roberta-base", "hf_model_name: 'roberta-base' is not supported"),
    ("text_cfg.embed_cls", True, "embed_cls: True is not supported"),
    ("text_cfg.no_causal_mask", True, "no_causal_mask: True is not supported"),
    ("text_cfg.proj_type", "none", "proj_type: 'none' is not supported"),
    ("text_cfg.proj_bias", True, "proj_bias: True is not supported"),
    ("text_cfg.pool_type", "last", "pool_type: 'last' is not supported"),
    ("text_cfg.scale_attn", True, "scale_attn: True is not supported"),
    ("text_cfg.heads", 5, "24 is not divisible by 5 heads"),
    ("text_cfg.vocab_size", 30, r"shape: token_embedding.weight"),
])  # fmt: skip
def test_what_is_not_supported_is_refused_by_name(saved: Make, field: str, value: Any, words: str) -> None:
    _, folder = saved()
    values = changed(**({} if value is ... else {field: value}))
    if value is ...:
        del values[field]
    write(folder, values, None)
    with pytest.raises(ZooError, match=words):
        zoo.load(folder)


def test_no_field_of_theirs_is_untested() -> None:
    from dataclasses import fields

    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    from zoo.checkpoint.open_clip import BLOCKS_OF_ITS_OWN, WITHOUT_INFLUENCE

    source = Path(__file__).read_text()
    for tower, cls in (("vision_cfg", CLIPVisionCfg), ("text_cfg", CLIPTextCfg)):
        for field in fields(cls):
            tested = f'"{tower}.{field.name}"' in source or f'"{field.name}":' in source
            other = f'"{"text_cfg" if tower == "vision_cfg" else "vision_cfg"}.{field.name}"' in source  # one code for both
            assert tested or other or field.name in (*WITHOUT_INFLUENCE, *BLOCKS_OF_ITS_OWN), f"{tower}.{field.name} is new"


@pytest.mark.parametrize(("overrides", "place"), [
    ({"text.stack.block.feedforward.activation": "gelu"}, r"text\.stack\.block\.feedforward\.activation"),
    ({f"{tower}.stack.block.feedforward.activation": "relu" for tower in ("text", "vision")}, "activation"),
    ({"vision.embedding.channels": 1}, r"vision\.embedding\.channels"),
    ({"vision.embedding.class_token": False, "vision.head.pool": "mean"}, r"vision\.embedding\.class_token"),
    ({"vision.stack.block.attention.bias": False}, r"vision\.stack\.block\.attention\.bias"),
    ({"text.head.pool": "last-token"}, r"text\.head\.pool"),
    ({"text.head.size": None, "vision.head.size": None, "text.stack.width": 768}, r"text\.head\.size"),
])  # fmt: skip
def test_what_open_clip_cannot_say_is_refused_with_our_field(overrides: dict[str, Any], place: str) -> None:
    with pytest.raises(ConfigError, match=place):
        family_for(zoo.get_config("clip-vit-b32", overrides), "open_clip")
    with pytest.raises(ConfigError, match="open_clip has no model of type 'transformer'"):
        family_for(zoo.get_config("vit-tiny"), "open_clip")


def test_what_only_acts_in_training_is_warned_of() -> None:
    config = zoo.get_config("clip-vit-b32", {"text.stack.block.attention.dropout": 0.1})
    with pytest.warns(UserWarning, match=r"text\.stack\.block\.attention\.dropout: .*only acts in training"):
        family_for(config, "open_clip")
