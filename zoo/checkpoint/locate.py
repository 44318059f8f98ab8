"""Finding weights: a folder, a Lightning checkpoint, a folder within an installed package, a pretrained name, a Hub id."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from zoo.checkpoint import sharded
from zoo.checkpoint.family import Family
from zoo.checkpoint.tensors import Stored, open_folder, open_pickle
from zoo.config.source import pretrained
from zoo.errors import ConfigError, UnknownNameError, WeightsError, did_you_mean, one_of
from zoo.presets import list_models
from zoo.resources import packaged

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
FORMAT = "zoo"
OPEN_CLIP = ("open_clip_config.json", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""What open_clip calls its files; a folder for transformers as well is read as one of theirs."""


class Found(NamedTuple):
    """A config and its tensors, not read yet."""

    place: str
    fields: dict[str, Any]
    """Our fields of the model found there."""
    family: Family | None
    """Whose names the tensors have; None for our own."""
    stored: dict[str, Stored]
    values: Mapping[str, Any] = {}
    """Their config, as it lies there."""


_FAMILIES = (
    "huggingface_vit.HuggingFaceViT", "huggingface_vit.HuggingFaceDeiT", "timm_vit.TimmViT",
    "huggingface_swin.HuggingFaceSwin", "timm_swin.TimmSwin", "huggingface_bert.HuggingFaceBert",
    "huggingface_roberta.HuggingFaceRoberta", "huggingface_distilbert.HuggingFaceDistilBert",
    "huggingface_longformer.HuggingFaceLongformer", "huggingface_gpt2.HuggingFaceGPT2", "huggingface_llama.HuggingFaceLlama",
    "huggingface_mistral.HuggingFaceMistral", "huggingface_mistral.HuggingFaceQwen2", "huggingface_mixtral.HuggingFaceMixtral",
    "huggingface_gpt_neox.HuggingFaceGPTNeoX", "huggingface_gptj.HuggingFaceGPTJ", "huggingface_falcon.HuggingFaceFalcon",
    "huggingface_cohere.HuggingFaceCohere", "huggingface_clip.HuggingFaceCLIP", "huggingface_clip_towers.HuggingFaceCLIPText",
    "huggingface_clip_towers.HuggingFaceCLIPVision", "open_clip.OpenClip", "huggingface_t5.HuggingFaceT5",
    "huggingface_t5_stacks.HuggingFaceT5Encoder", "huggingface_switch.HuggingFaceSwitch",
    "huggingface_switch.HuggingFaceSwitchEncoder", "huggingface_bart.HuggingFaceBart", "huggingface_marian.HuggingFaceMarian",
)  # fmt: skip


def families() -> list[Family]:
    """The reference families that we read and write."""
    return [_family(name) for name in _FAMILIES]


def _family(name: str) -> Family:
    module, _, kind = name.partition(".")
    family: Family = getattr(import_module(f"zoo.checkpoint.{module}"), kind)()
    return family


def locate(source: str | Path) -> Found:
    """What lies at `source`.

    Raises:
        UnknownNameError: neither a folder, a checkpoint, a pretrained name nor a Hub id.
        WeightsError, ConfigError: what lies there cannot be read.
    """
    path = packaged(source)
    if path.is_dir():
        return _open_distributed(path) if sharded.is_distributed(path) else _open(path)
    if path.is_file():
        if path.suffix == ".ckpt":
            return _open_checkpoint(path)
        raise WeightsError(f"{path}: expected a folder or a Lightning checkpoint (.ckpt), not a single file")
    name = str(source)
    names = pretrained()
    if name in names:
        return _open(download(names[name]))
    if _HUB_ID.fullmatch(name) and not name.startswith(".") and not path.parent.is_dir():
        return _open(download(name))
    if name in list_models():
        own = [each for each in names if each.startswith(f"{name}.")]
        weights = f"; its pretrained weights are {one_of(own)[7:]}" if own else ""
        raise UnknownNameError(f"{name!r} is a preset, which has no weights: zoo.build makes it with fresh ones{weights}")
    hint = did_you_mean(name, names) or f"; pretrained names are {one_of(names)[7:]}"
    raise UnknownNameError(f"{name!r} is no folder, .ckpt file, pretrained name or Hub id{hint}")


def download(hub_id: str) -> Path:
    """The local copy of a repository of the Hub: weights, and what JSON says of model, images and tokens.

    Raises:
        WeightsError: it cannot be had, or the Hub not be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    repository, _, revision = hub_id.partition("@")
    wanted = ["config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"]
    wanted += [OPEN_CLIP[0], "*.safetensors", "*.safetensors.index.json"]
    try:
        folder = Path(snapshot_download(repository, revision=revision or None, allow_patterns=wanted))
        if not any(folder.glob("*.safetensors")):
            snapshot_download(repository, revision=revision or None, allow_patterns=["pytorch_model*.bin*", OPEN_CLIP[2]])
        return folder
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise WeightsError(f"{hub_id}: cannot be had from the Hub: {reason}") from None


def _open(folder: Path) -> Found:
    if not (folder / "config.json").exists() and (folder / OPEN_CLIP[0]).exists():
        values = read_config_file(folder, OPEN_CLIP[0])
        stored = open_folder(folder, *OPEN_CLIP[1:])
    else:
        values, stored = read_config_file(folder), open_folder(folder)
    if values.get("format") == FORMAT:
        return Found(str(folder), _mapping(values.get("model") or {}, f"{folder}/config.json: model"), None, stored)
    family = recognise(values, str(folder))
    return Found(str(folder), family.read_config(values, stored), family, stored, values)


def recognise(values: dict[str, Any], place: str) -> Family:
    """The family that a `config.json` belongs to.

    Raises:
        ConfigError: none that we know.
    """
    kind = values.get("model_type") or values.get("architecture") or "unnamed"
    for name in sorted(_FAMILIES, key=lambda name: str(kind) not in name):  # the likely ones first: others need not be imported
        family = _family(name)
        if family.recognises(values):
            return family
    known = ", ".join(family.model_type for family in families() if hasattr(family, "model_type"))
    expected = f"{known}, or timm's vit_* and swin_*"
    raise ConfigError(f"{place}/config.json: models of type {kind!r} are not supported; expected {expected}")


def read_config_file(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """The `config.json` of a folder."""
    path = folder / name
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if any((folder / each).exists() for each in OPEN_CLIP[1:]):
            what = f"{OPEN_CLIP[0]} is missing, without which the activation of these tensors is not known"
            raise ConfigError(f"{folder}: {what}") from None
        raise ConfigError(f"{folder}: no config.json, so this is no folder of a model") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a JSON object, found {type(values).__name__}")
    return values


def _open_checkpoint(path: Path) -> Found:
    content = open_pickle(path)
    state = content.get("state_dict")
    if not isinstance(state, dict):
        raise WeightsError(f"{path}: this checkpoint was not written by zoo: it holds no config of a model")
    wrong = [str(name) for name, value in state.items() if not isinstance(name, str) or not isinstance(value, Tensor)]
    if wrong:
        raise WeightsError(f"{path}: state_dict: expected tensors by name, found other values: {', '.join(wrong[:5])}")
    tensors = _model_only(state)
    return _trained(path, content, {name: Stored(tuple(value.shape), value.dtype, tensors) for name, value in tensors.items()})


def _open_distributed(path: Path) -> Found:
    content, state = sharded.open_distributed(path)
    return _trained(path, content, _model_only(state))


def _model_only(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}


def _trained(path: Path, content: Mapping[str, Any], stored: dict[str, Stored]) -> Found:
    """What the checkpoint of a `ZooModule` holds."""
    text = content.get("zoo_model")
    if not isinstance(text, str):
        raise WeightsError(f"{path}: this checkpoint was not written by zoo: it holds no config of a model")
    try:
        fields = _mapping(json.loads(text), f"{path}: zoo_model")
    except (ValueError, RecursionError):
        raise ConfigError(f"{path}: the config in this checkpoint is damaged") from None
    return Found(str(path), fields, None, stored)


def _mapping(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{place}: expected a JSON object, found {type(value).__name__}")
    return value
