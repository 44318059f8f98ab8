"""timm's `config.json`: an architecture's name, the arguments given on top of it, and back."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from zoo.checkpoint.family import Wanted
from zoo.checkpoint.fields import Fields
from zoo.config.source import read_yaml
from zoo.errors import ConfigError

ACTIVATIONS = {
    None: "gelu", "gelu": "gelu", "gelu_tanh": "gelu-tanh", "quick_gelu": "quick-gelu", "relu": "relu", "silu": "silu",
    "swish": "silu", "tanh": "tanh", "sigmoid": "sigmoid",
}  # fmt: skip
_WRITTEN = {ours: theirs for theirs, ours in ACTIVATIONS.items() if theirs not in (None, "swish")}

_IGNORED = {
    "weight_init": "how timm draws fresh weights",
    "fix_init": "how timm draws fresh weights",
    "device": "where the model lives",
    "dtype": "the tensors carry their type",
    "scriptable": "how the model is exported",
    "exportable": "how the model is exported",
    "no_jit": "how the model is exported",
}


@cache
def architectures() -> dict[str, dict[str, Any]]:
    """timm's names of vision transformers and the arguments each stands for."""
    return dict(read_yaml(Path(__file__).with_name("timm_architectures.yaml")))


def arguments(values: Mapping[str, Any]) -> Fields:
    """What timm would give its VisionTransformer for this `config.json`."""
    fields = merged_arguments(values, architectures())
    fields.require("class", "VisionTransformer", why="the distilled model averages two classifiers")
    fields.require("attn_layer", "", "attn", why="differential attention is no part of ours")
    fields.require("embed_layer", "PatchEmbed", why="only plain patches are parts of ours")
    return fields


def merged_arguments(values: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]) -> Fields:
    """The arguments that the name of the architecture stands for, with what a `config.json` says on top of them."""
    name = str(values["architecture"])
    for key in ("model_args", "pretrained_cfg"):
        if not isinstance(values.get(key) or {}, Mapping):
            raise ConfigError(f"{name}: {key}: expected a JSON object, got {values[key]!r:.60}")
    given = {key: value for key, value in (values.get("model_args") or {}).items() if value is not None}
    pretrained = values.get("pretrained_cfg") or values
    merged = {**known[name], **given}
    size = pretrained.get("input_size")
    if size is not None and not (isinstance(size, list) and len(size) == 3):
        raise ConfigError(f"{name}: input_size: expected channels, height and width, got {size!r:.60}")
    fixed = pretrained.get("fixed_input_size", False) and not merged.get("dynamic_img_size", False)
    if size is not None:
        merged.setdefault("in_chans", size[0])
        if fixed:
            merged.setdefault("img_size", list(size[1:]))
    for key in ("num_classes", "global_pool"):
        value = values.get(key, pretrained.get(key)) if key == "num_classes" else pretrained.get(key)
        if value is not None and (key != "num_classes" or not isinstance(value, int) or value >= 0):
            merged.setdefault(key, value)
    return Fields(merged, name, _IGNORED)


def written_config(config: Any, wanted: Wanted) -> dict[str, Any]:
    """The `config.json` with which timm builds our model.

    Raises:
        ConfigError: timm has no such model; the message names our field.
    """
    embedding, stack, block, head = config.embedding, config.stack, config.stack.block, config.head
    wanted.part("embedding", embedding, "patch")
    wanted.part("stack", stack, "uniform")
    wanted.expect("stack.pattern", stack.pattern, None)
    wanted.part("stack.block", block, "residual")
    wanted.expect("stack.block.order", block.order, "pre", "branch")
    wanted.part("head", head, "classifier")
    wanted.expect("head.bias", head.bias, True)
    wanted.expect("head.dense", head.dense, None)
    norm = block.norm
    name, eps = _norm_name(wanted, "stack.block.norm", norm)
    args = {
        "img_size": list(embedding.image_size),
        "patch_size": _patch(embedding.patch_size),
        "in_chans": embedding.channels,
        "num_classes": head.classes,
        "embed_dim": stack.width,
        "depth": stack.depth,
        "drop_path_rate": stack.drop_path,
        "drop_rate": head.dropout,
        **_embedding_arguments(embedding, norm, wanted),
        **_attention_arguments(block.attention, norm, stack.width, wanted),
        **_feedforward_arguments(block, norm, stack.width, wanted),
        **_norm_arguments(config, norm, wanted),
    }
    architecture = _architecture(args, name, eps, block, wanted)
    known = architectures()[architecture]
    if "norm_layer" not in known and name != "layernorm":
        args["norm_layer"] = name
    pretrained = {
        "input_size": [embedding.channels, *embedding.image_size],
        "fixed_input_size": not embedding.flexible,
        "num_classes": head.classes,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }
    values = {"architecture": architecture, "num_classes": head.classes, "num_features": stack.width}
    values |= {"global_pool": args["global_pool"], "model_args": args, "pretrained_cfg": pretrained}
    if head.labels:
        values["label_names"] = list(head.labels)
    return values


def packed(feedforward: Any) -> bool:
    """Whether timm's gated feed-forward of this kind keeps gate and value in one tensor: its SwiGLUPacked does."""
    plain = feedforward.norm is None and feedforward.bias and feedforward.activation == "silu"
    return bool(feedforward.type == "gated" and plain)


def _architecture(args: dict[str, Any], norm: str, eps: float, block: Any, wanted: Wanted) -> str:
    """A name of timm's whose class-valued arguments, which a file cannot give, are the wanted ones."""
    mlp = "Mlp" if block.feedforward.type == "mlp" else "SwiGLUPacked" if packed(block.feedforward) else "SwiGLU"
    function = "ResPostBlock" if block.order == "branch" else "Block"
    for name, known in architectures().items():
        spec = known.get("norm_layer")
        theirs = spec if isinstance(spec, dict) else {"name": spec or norm, "eps": 1e-6}
        embed = known.get("embed_norm_layer")
        same_norm = theirs["name"] == norm and theirs["eps"] == eps
        wanted_embed = args["embed_norm"]
        by_name = embed is None and wanted_embed is not None and wanted_embed["eps"] == 1e-6  # timm's own eps
        # timm passes over arguments that are null, so an architecture's own layer scale cannot be taken away
        scaled = "init_values" in known and known.get("block_fn") != "ResPostBlock"
        plain = not {"class", "attn_layer"} & set(known) and (args["init_values"] is not None or not scaled)
        same_rest = known.get("mlp_layer", "Mlp") == mlp and known.get("block_fn", "Block") == function
        if plain and same_norm and same_rest and (by_name or embed == wanted_embed):
            del args["embed_norm"]
            args |= {"embed_norm_layer": wanted_embed["name"]} if by_name else {}
            return name
    wanted.expect("stack.block.norm", f"{norm} with eps {eps} beside {mlp} and {function}", "one of timm's combinations")
    raise AssertionError("unreachable")


def _norm_name(wanted: Wanted, path: str, norm: Any) -> tuple[str, float]:
    wanted.part(path, norm, "layer-norm", "rms-norm")
    wanted.expect(f"{path}.bias", getattr(norm, "bias", True), True)
    return {"layer-norm": "layernorm", "rms-norm": "rmsnorm"}[norm.type], norm.eps


def _embedding_arguments(embedding: Any, norm: Any, wanted: Wanted) -> dict[str, Any]:
    position = embedding.position
    if position is None:
        wanted.expect("embedding.dropout", embedding.dropout, 0.0)  # timm then has no dropout there either
    else:
        wanted.part("embedding.position", position, "learned")
        wanted.expect("embedding.position.square", position.square, False)
        if embedding.flexible:
            wanted.expect("embedding.position.resample", position.resample, "bicubic-antialias")
    if embedding.output_norm is not None:
        wanted.equal("embedding.output_norm", embedding.output_norm, "stack.block.norm", norm)
    wanted.expect("embedding.bias", embedding.bias, embedding.output_norm is None)
    if embedding.flexible:
        wanted.expect("embedding.edges", embedding.edges, "refuse", "pad")
    else:
        wanted.expect("embedding.edges", embedding.edges, "cut", "pad")
    embed = None
    if embedding.norm is not None:
        name, eps = _norm_name(wanted, "embedding.norm", embedding.norm)
        embed = {"name": name, "eps": eps}
    return {
        "class_token": embedding.class_token,
        "reg_tokens": embedding.registers,
        "pos_embed": "none" if position is None else "learn",
        "no_embed_class": not embedding.prefix_position,
        "pre_norm": embedding.output_norm is not None,
        "pos_drop_rate": embedding.dropout,
        "patch_drop_rate": embedding.patch_dropout,
        "dynamic_img_size": embedding.flexible,
        "dynamic_img_pad": embedding.edges == "pad",
        "embed_norm": embed,
    }


def _attention_arguments(attention: Any, norm: Any, width: int, wanted: Wanted) -> dict[str, Any]:
    wanted.part("stack.block.attention", attention, "full")
    size = width // attention.heads
    allowed = {"kv_heads": (None, attention.heads), "head_size": (None, size), "causal": (False,), "scale": (None, size**-0.5)}
    for name, values in allowed.items():
        wanted.expect(f"stack.block.attention.{name}", getattr(attention, name), *values)
    for name in ("qk_norm", "output_norm"):
        if getattr(attention, name) is not None:
            wanted.equal(f"stack.block.attention.{name}", getattr(attention, name), "stack.block.norm", norm)
    return {
        "num_heads": attention.heads,
        "qkv_bias": attention.bias,
        "proj_bias": attention.output_bias,
        "qk_norm": attention.qk_norm is not None,
        "scale_attn_norm": attention.output_norm is not None,
        "attn_drop_rate": attention.dropout,
    }


def _feedforward_arguments(block: Any, norm: Any, width: int, wanted: Wanted) -> dict[str, Any]:
    feedforward = block.feedforward
    wanted.part("stack.block.feedforward", feedforward, "mlp", "gated")
    wanted.equal(
        "stack.block.feedforward.bias", feedforward.bias, "stack.block.attention.output_bias", block.attention.output_bias
    )
    wanted.equal("stack.block.feedforward.dropout", feedforward.dropout, "stack.block.dropout", block.dropout)
    if feedforward.norm is not None:
        wanted.equal("stack.block.feedforward.norm", feedforward.norm, "stack.block.norm", norm)
    wanted.expect("stack.block.attention_output_dropout", block.attention_output_dropout, None, block.dropout)
    if block.order == "branch":
        wanted.expect("stack.block.layer_scale", block.layer_scale, None)
    elif block.layer_scale == 0:
        wanted.expect("stack.block.layer_scale", block.layer_scale, None, "any other number")
    wanted.expect("stack.block.feedforward.activation", feedforward.activation, *_WRITTEN)
    hidden = feedforward.inner(width) * (2 if packed(feedforward) else 1)
    return {
        "mlp_ratio": _ratio(hidden, width),
        "act_layer": _WRITTEN[feedforward.activation],
        "scale_mlp_norm": feedforward.norm is not None,
        "init_values": block.layer_scale,
        "proj_drop_rate": block.dropout,
    }


def _norm_arguments(config: Any, norm: Any, wanted: Wanted) -> dict[str, Any]:
    final, pool, head = config.stack.final_norm, config.head.pool, config.head
    pools = {"class-token": "token", "mean": "avg", "max": "max", "mean-max": "avgmax", "attention": "map", "none": ""}
    wanted.part("head.pool", pool, *pools)
    if final is not None and head.norm is not None:
        wanted.expect("head.norm", head.norm, None)
    for path, each in (("stack.final_norm", final), ("head.norm", head.norm)):
        if each is not None:
            wanted.equal(path, each, "stack.block.norm", norm)
    if pool.type == "attention":
        block = config.stack.block
        plain = type(block.attention)(heads=block.attention.heads)
        wanted.equal("head.pool.attention", pool.attention, "plain attention with the blocks' heads", plain)
        wanted.equal("head.pool.norm", pool.norm, "stack.block.norm", norm)
        width = config.stack.width
        wanted.part("head.pool.feedforward", pool.feedforward, "mlp")
        for name, value in (("bias", True), ("norm", None), ("dropout", 0.0), ("activation", block.feedforward.activation)):
            wanted.expect(f"head.pool.feedforward.{name}", getattr(pool.feedforward, name), value)
        wanted.equal("head.pool.feedforward", pool.feedforward.inner(width), "the blocks'", block.feedforward.inner(width))
    return {
        "final_norm": final is not None or head.norm is not None,
        "fc_norm": head.norm is not None,
        "global_pool": pools[pool.type],
        "pool_include_prefix": getattr(pool, "prefix", False),
    }


def _patch(size: tuple[int, int]) -> int | list[int]:
    return size[0] if size[0] == size[1] else list(size)


def _ratio(hidden: int, width: int) -> float:
    """A ratio that timm, which rounds down, turns back into `hidden`."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width
