"""The reference implementations: building, saving and calling a model of another library."""

from __future__ import annotations

import inspect
import json
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from zoo.errors import WeightsError
from zoo.extras import require
from zoo.output import TransformerOutput

ANSWERS = tuple(name for name in TransformerOutput._fields if name not in ("past_key_values", "hidden_states", "attentions"))


class Library(ABC):
    """Another library: how its models are made from a config, saved, opened and called."""

    name: str

    @property
    @abstractmethod
    def version(self) -> str:
        """The installed version."""

    @abstractmethod
    def build(self, values: Mapping[str, Any], config: Any) -> nn.Module:
        """A fresh model for a `config.json` with these values, written for our `config`."""

    @abstractmethod
    def save(self, model: nn.Module, folder: Path) -> None:
        """Saves a model as the library itself does."""

    @abstractmethod
    def open(self, folder: Path) -> nn.Module:
        """The model of a folder, in float64 and eval mode."""

    @abstractmethod
    def call(self, model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """What the model answers, under our names of outputs."""


class Transformers(Library):
    """Hugging Face transformers, with its scaled-dot-product attention."""

    name = "transformers"

    def __init__(self) -> None:
        self.library = require("transformers", "verify", "comparing with Hugging Face")
        self.library.utils.logging.disable_progress_bar()
        self.library.utils.logging.set_verbosity_error()

    @property
    def version(self) -> str:
        return str(self.library.__version__)

    def build(self, values: Mapping[str, Any], config: Any) -> nn.Module:
        cls = getattr(self.library, values["architectures"][0])
        theirs = cls.config_class.from_dict(dict(values))
        theirs._attn_implementation = "sdpa"
        # whether a model has a pooler is no field of theirs
        bare = config.head is None and "add_pooling_layer" in inspect.signature(cls.__init__).parameters
        model: nn.Module = cls(theirs, add_pooling_layer=False) if bare else cls(theirs)
        return model

    def save(self, model: nn.Module, folder: Path) -> None:
        model.save_pretrained(folder)  # type: ignore[operator]

    def open(self, folder: Path) -> nn.Module:
        values = json.loads((folder / "config.json").read_text())
        cls = getattr(self.library, (values.get("architectures") or [None])[0] or "AutoModel")
        model, info = cls.from_pretrained(
            folder, dtype=torch.float64, attn_implementation="sdpa", output_loading_info=True, local_files_only=True
        )
        missing = [name for name in info["missing_keys"] if "pooler" not in name]
        if missing or info["unexpected_keys"]:
            raise WeightsError(f"{folder}: transformers misses {missing} and does not expect {info['unexpected_keys']}")
        if any("pooler" in name for name in info["missing_keys"]):
            getattr(model, model.base_model_prefix, model).pooler = None  # saved without one
        opened: nn.Module = model.eval()
        return opened

    def call(self, model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        for module in model.modules():  # angles that follow the longest text so far, of other calls
            if isinstance(getattr(module, "original_inv_freq", None), Tensor):
                module.inv_freq, module.max_seq_len_cached = module.original_inv_freq, module.original_max_seq_len
        output = model(**inputs)
        return {name: output[name] for name in ANSWERS if output.get(name) is not None}


class Timm(Library):
    """timm."""

    name = "timm"

    def __init__(self) -> None:
        self.library = require("timm", "verify", "comparing with timm")
        logging.getLogger("timm").setLevel(logging.ERROR)

    @property
    def version(self) -> str:
        return str(self.library.__version__)

    def build(self, values: Mapping[str, Any], config: Any) -> nn.Module:
        args = dict(values.get("model_args") or {})
        overlay = {k: tuple(v) if isinstance(v, list) else v for k, v in values["pretrained_cfg"].items()}
        model: nn.Module = self.library.create_model(values["architecture"], pretrained_cfg_overlay=overlay, **args)
        return model

    def save(self, model: nn.Module, folder: Path) -> None:
        self.library.models.save_for_hf(model, folder, safe_serialization=True)

    def open(self, folder: Path) -> nn.Module:
        model: nn.Module = self.library.create_model(f"local-dir:{folder}", pretrained=False)
        # timm itself would round to float32 on the way
        model.double().load_state_dict(load_file(folder / "model.safetensors"), strict=True)
        return model.double().eval()

    def call(self, model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        features = model.forward_features(inputs["pixel_values"])  # type: ignore[operator]
        return {"last_hidden_state": features, "logits": model.forward_head(features)}  # type: ignore[operator]


def libraries() -> dict[str, type[Library]]:
    """The libraries by name."""
    return {library.name: library for library in (Transformers, Timm)}


@torch.no_grad()
def redraw(model: nn.Module, scale: float, seed: int) -> None:
    """Moves every parameter away from its fresh value, which may hide mistakes (biases of zero, norms of one).

    Matrices are drawn anew with a deviation of scale / sqrt(inputs), so that activations keep their size
    from layer to layer; vectors and tables get `scale` times a standard normal added.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype)
        if parameter.ndim >= 2 and parameter.shape[0] > 1:
            parameter.copy_(noise * (scale / math.sqrt(parameter[0].numel())))
        else:
            parameter.add_(noise * scale)
