"""timm's VisionTransformer, both ways."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from zoo.checkpoint.family import Family, Wanted
from zoo.checkpoint.fields import Fields
from zoo.checkpoint.rules import Batched, Rule, module_rules, rule
from zoo.checkpoint.timm_config import ACTIVATIONS, architectures, arguments, packed, written_config
from zoo.errors import did_you_mean

POOLS = {"token": "class-token", "avg": "mean", "max": "max", "avgmax": "mean-max", "map": "attention", "": "none"}


class TimmViT(Family):
    """`timm.models.vision_transformer.VisionTransformer`, as `timm.models.save_for_hf` writes it."""

    library = "timm"
    taps = (
        ("norm_pre", "embedding"),
        ("blocks.{n}.norm1", "stack.layers.{n}.attention_norm"),
        ("blocks.{n}.attn", "stack.layers.{n}.attention"),
        ("blocks.{n}.norm2", "stack.layers.{n}.feedforward_norm"),
        ("blocks.{n}.mlp", "stack.layers.{n}.feedforward"),
        ("blocks.{n}", "stack.layers.{n}"),
        ("norm", "stack.final_norm"),
        ("head", "head"),
    )

    def recognises(self, values: Mapping[str, Any]) -> bool:
        return "architecture" in values and str(values["architecture"]) in architectures()

    def read_config(self, values: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
        fields = arguments(values)
        width, depth = fields.number("embed_dim", 768), fields.number("depth", 12)
        norm = _norm(fields, "norm_layer") or {"type": "layer-norm", "eps": 1e-6}
        pool_name = fields.choice("global_pool", POOLS, "token")
        final, fc_norm = fields.flag("final_norm", True), fields.take("fc_norm", None)
        if fc_norm is None:
            fc_norm = pool_name in ("mean", "max", "mean-max")
        block = _block(fields, width, norm)
        stack = {
            "type": "uniform",
            "width": width,
            "depth": depth,
            "block": block,
            "drop_path": fields.number("drop_path_rate", 0.0, whole=False),
            "final_norm": norm if final and not fc_norm else None,
        }
        pool: dict[str, Any] = {"type": pool_name}
        prefix = fields.flag("pool_include_prefix", False)
        if pool_name in ("mean", "max", "mean-max", "attention"):
            pool["prefix"] = prefix
        if pool_name == "attention":
            # the latent attends with biases of its own, whatever the blocks do
            hidden = int(width * fields.number("mlp_ratio", 4.0, whole=False))
            feedforward = {"type": "mlp", "hidden": hidden, "activation": fields.choice("act_layer", ACTIVATIONS, None)}
            pool |= {
                "attention": {"type": "full", "heads": block["attention"]["heads"]},
                "norm": norm,
                "feedforward": feedforward,
            }
        head = {
            "type": "classifier",
            "classes": fields.number("num_classes", 1000),
            "pool": pool,
            "norm": norm if final and fc_norm else None,
            "dropout": fields.number("drop_rate", 0.0, whole=False),
        }
        words = values.get("label_names") or values.get("pretrained_cfg", {}).get("label_names")
        if isinstance(words, list) and len(words) == head["classes"]:
            head["labels"] = [str(word) for word in words]
        model = {
            "type": "transformer",
            "init": {"type": "truncated-normal", "std": 0.02, "token_std": 1e-6, "patches": "uniform"},
            "embedding": _embedding(fields, norm),
            "stack": stack,
            "head": head,
        }
        fields.finish()
        return model

    def write_config(self, config: Any) -> dict[str, Any]:
        return written_config(config, Wanted("timm's VisionTransformer"))

    def rules(self, config: Any, names: Collection[str] = ()) -> Iterable[Rule]:
        layer, ours = "blocks.{n}", "stack.layers.{n}"
        feedforward = config.stack.block.feedforward
        yield from (
            rule("cls_token", "embedding.class_token"),
            rule("reg_token", "embedding.register_tokens"),
            rule("pos_embed", "embedding.position.table", operation=Batched()),
            *module_rules("patch_embed.proj", "embedding"),
            *module_rules("patch_embed.norm", "embedding.norm"),
            *module_rules("norm_pre", "embedding.output_norm"),
            *module_rules(f"{layer}.norm1", f"{ours}.attention_norm"),
            *_joined(f"{layer}.attn.qkv", f"{ours}.attention", "query", "key", "value"),
            *module_rules(f"{layer}.attn.q_norm", f"{ours}.attention.query_norm"),
            *module_rules(f"{layer}.attn.k_norm", f"{ours}.attention.key_norm"),
            *module_rules(f"{layer}.attn.norm", f"{ours}.attention.output_norm"),
            *module_rules(f"{layer}.attn.proj", f"{ours}.attention.output"),
            rule(f"{layer}.ls1.gamma", f"{ours}.attention_scale.weight"),
            *module_rules(f"{layer}.norm2", f"{ours}.feedforward_norm"),
            rule(f"{layer}.ls2.gamma", f"{ours}.feedforward_scale.weight"),
            *module_rules(f"{layer}.mlp.norm", f"{ours}.feedforward.norm"),
            *module_rules(f"{layer}.mlp.fc2", f"{ours}.feedforward.down"),
            *module_rules("norm", "stack.final_norm"),
            rule("attn_pool.latent", "head.pool.query"),
            *module_rules("attn_pool.q", "head.pool.attention.query"),
            *_joined("attn_pool.kv", "head.pool.attention", "key", "value"),
            *module_rules("attn_pool.proj", "head.pool.attention.output"),
            *module_rules("attn_pool.norm", "head.pool.norm"),
            *module_rules("attn_pool.mlp.fc1", "head.pool.feedforward.up"),
            *module_rules("attn_pool.mlp.fc2", "head.pool.feedforward.down"),
            *module_rules("fc_norm", "head.norm"),
            *module_rules("head", "head.output"),
        )
        if feedforward.type != "gated":
            yield from module_rules(f"{layer}.mlp.fc1", f"{ours}.feedforward.up")
        elif "blocks.0.mlp.fc1.weight" in names or (not names and packed(feedforward)):
            yield from _joined(f"{layer}.mlp.fc1", f"{ours}.feedforward", "gate", "up")
        else:
            yield from module_rules(f"{layer}.mlp.fc1_g", f"{ours}.feedforward.gate")
            yield from module_rules(f"{layer}.mlp.fc1_x", f"{ours}.feedforward.up")

    def plain_names(self, names: Iterable[str]) -> dict[str, str]:
        return {name: name for name in names}


def _joined(theirs: str, ours: str, *parts: str) -> list[Rule]:
    return [rule(f"{theirs}.{name}", *(f"{ours}.{part}.{name}" for part in parts)) for name in ("weight", "bias")]


def _embedding(fields: Fields, norm: dict[str, Any]) -> dict[str, Any]:
    pre_norm, flexible, pad = (fields.flag(name, False) for name in ("pre_norm", "dynamic_img_size", "dynamic_img_pad"))
    learned = fields.choice("pos_embed", {"learn": True, "none": False, "": False}, "learn")
    dropout = fields.number("pos_drop_rate", 0.0, whole=False)
    return {
        "type": "patch",
        "image_size": fields.take("img_size", 224),
        "patch_size": fields.take("patch_size", 16),
        "channels": fields.number("in_chans", 3),
        "bias": not pre_norm,
        "class_token": fields.flag("class_token", True),
        "registers": fields.number("reg_tokens", 0),
        "position": {"type": "learned", "resample": "bicubic-antialias"} if learned else None,
        "prefix_position": not fields.flag("no_embed_class", False),
        "norm": _norm(fields, "embed_norm_layer"),
        "output_norm": norm if pre_norm else None,
        "dropout": dropout if learned else 0.0,  # without positions timm passes over their dropout
        "patch_dropout": fields.number("patch_drop_rate", 0.0, whole=False),
        "flexible": flexible,
        "edges": "pad" if pad else "refuse" if flexible else "cut",
    }


def _block(fields: Fields, width: int, norm: dict[str, Any]) -> dict[str, Any]:
    bias, dropout = fields.flag("proj_bias", True), fields.number("proj_drop_rate", 0.0, whole=False)
    attention = {
        "type": "full",
        "heads": fields.number("num_heads", 12),
        "bias": fields.flag("qkv_bias", True),
        "output_bias": bias,
        "qk_norm": norm if fields.flag("qk_norm", False) else None,
        "output_norm": norm if fields.flag("scale_attn_norm", False) else None,
        "dropout": fields.number("attn_drop_rate", 0.0, whole=False),
    }
    kinds = {"Mlp": "mlp", "SwiGLU": "gated", "SwiGLUPacked": "gated"}
    mlp_layer = fields.take("mlp_layer", "Mlp")
    if not isinstance(mlp_layer, str) or mlp_layer not in kinds:
        raise fields.error("mlp_layer", f"{mlp_layer!r} is not supported{did_you_mean(mlp_layer, kinds)}")
    hidden = int(width * fields.number("mlp_ratio", 4.0, whole=False))
    activation = fields.choice("act_layer", ACTIVATIONS, None)
    feedforward = {
        "type": kinds[mlp_layer],
        "hidden": hidden // 2 if mlp_layer == "SwiGLUPacked" else hidden,
        "activation": activation,
        "bias": bias,
        "dropout": dropout,
        "norm": norm if fields.flag("scale_mlp_norm", False) else None,
    }
    orders = {"Block": "pre", "ResPostBlock": "branch"}
    order = fields.choice("block_fn", orders, "Block")
    scale = fields.take("init_values", None)
    return {
        "type": "residual",
        "order": order,
        "norm": norm,
        "attention": attention,
        "feedforward": feedforward,
        "dropout": dropout,
        "layer_scale": scale if scale and order == "pre" else None,
    }


def _norm(fields: Fields, name: str) -> dict[str, Any] | None:
    value = fields.take(name, None)
    if value is None:
        return None
    spec = value if isinstance(value, dict) else {"name": value}
    types = {"layernorm": "layer-norm", "rmsnorm": "rms-norm"}
    if str(spec.get("name")) not in types:
        raise fields.error(name, f"{value!r} is not supported; expected layernorm or rmsnorm")
    return {"type": types[spec["name"]], "eps": spec.get("eps", 1e-6)}
