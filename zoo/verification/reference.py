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
from zoo.output import DualEncoderOutput, EncoderDecoderOutput, TransformerOutput
from zoo.verification.compare import ROUTERS

TOWERS = ("text_model_output", "vision_model_output")
"""Of a model of two towers: what each of them answers, which counts as an answer, too."""
OUTPUTS = (TransformerOutput, DualEncoderOutput, EncoderDecoderOutput)
NO_ANSWERS = ("past_key_values", "feature_maps", "router_loss", *ROUTERS, *TOWERS)
ANSWERS = tuple(
    name
    for name in dict.fromkeys(field for output in OUTPUTS for field in output._fields)
    if name not in NO_ANSWERS and not name.endswith(("hidden_states", "attentions"))
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

    def encoded(self, model: nn.Module, inputs: Mapping[str, Any]) -> Any:
        """What the encoder of a model makes of its inputs; it is given to each later call as `encoder_outputs`."""
        raise NotImplementedError(f"{self.name} has no models with an encoder of their own")


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
        theirs._experts_implementation = "eager"  # the only one that takes float64
        # whether a model has a pooler is no field of theirs
        bare = config.head is None and "add_pooling_layer" in inspect.signature(cls.__init__).parameters
        model: nn.Module = cls(theirs, add_pooling_layer=False) if bare else cls(theirs)
        head = getattr(getattr(config, "decoder", None), "head", None)
        if getattr(head, "bias", False):
            _learned_bias(model)
        if not getattr(head, "tied", True):
            _own_scores(model)
        return model

    def save(self, model: nn.Module, folder: Path) -> None:
        model.save_pretrained(folder)  # type: ignore[operator]

    def open(self, folder: Path) -> nn.Module:
        values = json.loads((folder / "config.json").read_text())
        cls = getattr(self.library, (values.get("architectures") or [None])[0] or "AutoModel")
        model, info = cls.from_pretrained(
            folder, dtype=torch.float64, attn_implementation=_kernel(cls), output_loading_info=True, local_files_only=True
        )
        fixed = [name for name, module in model.named_modules() if type(module).__name__.endswith(SINES)]
        made = ("pooler", *(f"{name}.weight" for name in fixed))  # without being read: a bare Marian asks for its sines too
        model.config._experts_implementation = "eager"
        missing = [name for name in info["missing_keys"] if not any(each in name for each in made)]
        if missing or info["unexpected_keys"]:
            raise WeightsError(f"{folder}: transformers misses {missing} and does not expect {info['unexpected_keys']}")
        if any("pooler" in name for name in info["missing_keys"]):
            getattr(model, model.base_model_prefix, model).pooler = None  # saved without one
        if bool(getattr(model, BIAS, torch.zeros(())).any()):
            _learned_bias(model)
        for name in fixed:  # a table of sines is as little learned when it is read as when it is made
            model.get_submodule(name).requires_grad_(False)
        opened: nn.Module = model.eval()
        return opened

    def call(self, model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        for module in model.modules():  # angles that follow the longest text so far, of other calls
            if isinstance(getattr(module, "original_inv_freq", None), Tensor):
                module.inv_freq, module.max_seq_len_cached = module.original_inv_freq, module.original_max_seq_len
        for module in model.modules():
            if hasattr(module, "set_shift_and_window_size"):
                _reset_windows(module)
        name, inputs = type(model).__name__, dict(inputs)
        if "position_ids" in inputs and "position_ids" not in inspect.signature(model.forward).parameters:
            _place(model, inputs.pop("position_ids"))
        with Float64(name.startswith(ROUNDING)) if _kernel(type(model)) == "eager" or name.startswith(ODD) else nullcontext():
            output = model(**inputs)
        maps = zip(getattr(model, "out_features", ()), output.get("feature_maps") or ())
        answers = {name: output[name] for name in ANSWERS if output.get(name) is not None}
        for tower in TOWERS:
            inner = output.get(tower) or {}
            answers |= {f"{tower}.{name}": inner[name] for name in ANSWERS if inner.get(name) is not None}
        for name in ROUTERS:  # of all tokens in a row
            scores = [each.flatten(0, -2) for each in output.get(name) or ()]
            answers |= {f"{name}.{layer}": each for layer, each in enumerate(scores)}
        return answers | {f"feature_maps.{name}": each for name, each in maps}

    def new_cache(self, model: nn.Module) -> Any:
        if getattr(model.config, "is_encoder_decoder", False):  # whose decoder may have more layers than the config's first
            return self.library.EncoderDecoderCache(self.library.DynamicCache(), self.library.DynamicCache())
        return self.library.DynamicCache(config=model.config)

    def encoded(self, model: nn.Module, inputs: Mapping[str, Any]) -> Any:
        return model.get_encoder()(**inputs)  # type: ignore[operator]


BIAS = "final_logits_bias"
SINES = "SinusoidalPositionalEmbedding"
"""How the names of modules end that hold a table of sines."""


def _learned_bias(model: Any) -> None:
    """What is added to the score of each token as a parameter; there it is none, though it is one of the model's weights."""
    bias = getattr(model, BIAS)
    delattr(model, BIAS)
    model.register_parameter(BIAS, nn.Parameter(bias))


def _own_scores(model: Any) -> None:
    """Vectors of their own by which tokens are scored, which T5 has where a file holds them, and never when fresh."""
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())


def _place(model: Any, positions: Tensor) -> None:
    """Tells the body of a model, in its next call, where tokens stand, which the model itself would drop."""

    def given(module: nn.Module, args: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        handle.remove()
        return args, {**named, "position_ids": positions}

    handle = getattr(model, model.base_model_prefix).register_forward_pre_hook(given, with_kwargs=True)


def _reset_windows(block: Any) -> None:
    """The windows of a Swin's block as its config has them: a small image would have changed them for all calls to come."""
    block.of_config = getattr(block, "of_config", (block.window_size, block.shift_size))
    block.window_size, block.shift_size = block.of_config


def _kernel(cls: Any) -> str:
    """Which of their kernels computes the attention of a class."""
    return "sdpa" if getattr(cls, "_supports_sdpa", True) else "eager"


ROUNDING = ("GPTJ", "Cohere")
"""Models that round to float32 on the way whatever type they have: norms and what is turned, or queries and keys."""
ODD = (*ROUNDING, "Falcon", "T5")
"""Models that are called within `Float64` for more than the softmax of their own attention."""


class Float64(TorchFunctionMode):
    """Within it float64 stays float64 in a softmax, where a model (Longformer) would round it to float32.

    And a token that may attend to nothing gets zeros, as elsewhere, where scores are lowered by a finite number, which would
    leave it the mean of all tokens: it is the mean over padding, which nobody reads.

    Args:
        everywhere: nothing else is rounded to float32 either.
    """

    def __init__(self, everywhere: bool = False) -> None:
        super().__init__()
        self.everywhere = everywhere

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if function is torch.nn.functional.softmax:
            if args[0].dtype == torch.float64:
                given["dtype"] = None
            return function(*args, **given).masked_fill(_nothing(args[0]), 0.0)
        mask = given.get("attn_mask")
        if function is torch.nn.functional.scaled_dot_product_attention and mask is not None and mask.is_floating_point():
            return function(*args, **given).masked_fill(_nothing(mask), 0.0)
        single = function is torch.Tensor.float or (function is torch.Tensor.to and torch.float32 in (*args, *given.values()))
        if self.everywhere and single and args[0].dtype == torch.float64:
            return args[0]
        return function(*args, **given)


def _nothing(scores: Tensor) -> Tensor:
    """Which rows of scores are all lowered as far as their type can say."""
    lowest: Tensor = scores.amax(-1, keepdim=True) <= torch.finfo(scores.dtype).min / 2
    return lowest


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
    from layer to layer; vectors and tables get `scale` times a standard normal added. What is not learned stays as it is.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in (each for each in model.parameters() if each.requires_grad):
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype)
        if parameter.ndim >= 2 and parameter.shape[0] > 1:
            inputs = parameter.shape[-1] if parameter.ndim == 3 else parameter[0].numel()  # of a layer, or of all experts'
            parameter.copy_(noise * (scale / math.sqrt(inputs)))
        else:
            parameter.add_(noise * scale)
    for module in model.modules():
        size: Any = getattr(module, "key_value_proj_dim", None)
        if size is not None and getattr(module, "scaling", None) == 1.0:
            module.get_parameter("q.weight").mul_(size**-0.5)  # T5's scores are not scaled; its queries are small instead
