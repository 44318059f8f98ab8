"""The reference implementations: building, saving and calling a model of another library."""

from __future__ import annotations

import copy
import inspect
import json
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from zoo.errors import WeightsError
from zoo.extras import require
from zoo.output import DualEncoderOutput, TransformerOutput

TOWERS = ("text_model_output", "vision_model_output")
"""Of a model of two towers: what each of them answers, which counts as an answer, too."""
NO_ANSWERS = ("past_key_values", "hidden_states", "attentions", "feature_maps", *TOWERS)
ANSWERS = tuple(
    name for name in dict.fromkeys((*TransformerOutput._fields, *DualEncoderOutput._fields)) if name not in NO_ANSWERS
)


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

    def new_cache(self, model: nn.Module) -> Any:
        """What the library keeps keys and values in; it is given to each call as `past_key_values`."""
        raise NotImplementedError(f"{self.name} has no models that decode")


class Transformers(Library):
    """Hugging Face transformers, with its scaled-dot-product attention where it has one."""

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
        theirs._attn_implementation = _kernel(cls)
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
            folder, dtype=torch.float64, attn_implementation=_kernel(cls), output_loading_info=True, local_files_only=True
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
        for module in model.modules():
            if hasattr(module, "set_shift_and_window_size"):
                _reset_windows(module)
        with nullcontext() if _kernel(type(model)) == "sdpa" else Float64():
            output = model(**inputs)
        maps = zip(getattr(model, "out_features", ()), output.get("feature_maps") or ())
        answers = {name: output[name] for name in ANSWERS if output.get(name) is not None}
        for tower in TOWERS:
            inner = output.get(tower) or {}
            answers |= {f"{tower}.{name}": inner[name] for name in ANSWERS if inner.get(name) is not None}
        return answers | {f"feature_maps.{name}": each for name, each in maps}

    def new_cache(self, model: nn.Module) -> Any:
        return self.library.DynamicCache(config=model.config)


def _reset_windows(block: Any) -> None:
    """The windows of a Swin's block as its config has them: a small image would have changed them for all calls to come."""
    block.of_config = getattr(block, "of_config", (block.window_size, block.shift_size))
    block.window_size, block.shift_size = block.of_config


def _kernel(cls: Any) -> str:
    """Which of their kernels computes the attention of a class."""
    return "sdpa" if getattr(cls, "_supports_sdpa", True) else "eager"


class Float64(TorchFunctionMode):
    """Within it a softmax of float64 stays one, where a model (Longformer) would round it to float32."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if function is torch.nn.functional.softmax and args[0].dtype == torch.float64:
            given["dtype"] = None
        return function(*args, **given)


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
        answers = {"last_hidden_state": features, "logits": model.forward_head(features)}  # type: ignore[operator]
        return {name: each.flatten(1, 2) if each.ndim == 4 else each for name, each in answers.items()}  # a grid in a row


class OpenClip(Library):
    """open_clip."""

    name = "open_clip"

    def __init__(self) -> None:
        self.library = require("open_clip", "verify", "comparing with open_clip")

    @property
    def version(self) -> str:
        return str(self.library.__version__)

    def build(self, values: Mapping[str, Any], config: Any) -> nn.Module:
        model: nn.Module = self.library.CLIP(**copy.deepcopy(values["model_cfg"]))
        model.of_config = values  # type: ignore[assignment]
        return model

    def save(self, model: nn.Module, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "open_clip_config.json").write_text(json.dumps(model.of_config))
        save_file(model.state_dict(), folder / "open_clip_model.safetensors")

    def open(self, folder: Path) -> nn.Module:
        values = json.loads((folder / "open_clip_config.json").read_text())
        model: nn.Module = self.library.create_model(f"local-dir:{folder}")
        # its own way of loading rounds to float32
        model.double().load_state_dict(load_file(folder / "open_clip_model.safetensors"), strict=True)
        model.of_config = values
        return model.eval()

    def call(self, model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        images, texts = inputs["pixel_values"], inputs["input_ids"]
        scores, transposed = model.get_logits(images, texts)  # type: ignore[operator]
        features = [model.encode_image(images), model.encode_text(texts)]  # type: ignore[operator]
        normed = model(images, texts)  # type: ignore[operator]
        return {
            "logits_per_image": scores,
            "logits_per_text": transposed,
            "image_embeds": normed[0],
            "text_embeds": normed[1],
            "vision_model_output.image_embeds": features[0],
            "text_model_output.text_embeds": features[1],
        }


def libraries() -> dict[str, type[Library]]:
    """The libraries by name."""
    return {library.name: library for library in (Transformers, Timm, OpenClip)}


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
