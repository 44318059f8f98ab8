"""open_clip's CLIP, both ways."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from zoo.checkpoint.clip import WantedTower, check_images, check_texts, patches, tower
from zoo.checkpoint.family import Family, Wanted, plain_names
from zoo.checkpoint.fields import Fields
from zoo.checkpoint.huggingface_clip import tower_tables, tower_taps
from zoo.checkpoint.rules import Flat, Rule, Scalar, Transposed, module_rules, rule

TOWERS = ("vision", "text")
BLOCK = "transformer.resblocks.{n}"
ACTIVATIONS = {False: "gelu", True: "quick-gelu"}
WITHOUT_INFLUENCE = {
    "output_tokens": "the form of the output",
    "final_ln_after_pool": "of one token, a norm before is a norm behind",
    "hf_tokenizer_name": "read by the tokenizer", "tokenizer_mode": "read by the tokenizer",
    "tokenizer_kwargs": "read by the tokenizer", "pad_id": "only masks of texts without causal attention read it",
    "hf_model_pretrained": "of towers of another library", "hf_proj_type": "of towers of another library",
    "hf_pooler_type": "of towers of another library", "timm_model_pretrained": "of towers of another library",
    "timm_pool": "of towers of another library", "timm_proj": "of towers of another library",
    "timm_proj_bias": "of towers of another library", "timm_drop": "of towers of another library",
    "timm_drop_path": "of towers of another library", "attn_pooler_queries": "only attentional pooling reads it",
    "attn_pooler_heads": "only attentional pooling reads it",
}  # fmt: skip
BLOCKS_OF_ITS_OWN = ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc")


class OpenClip(Family):
    """`open_clip.CLIP` and `open_clip.CustomTextCLIP`, as `open_clip.push_to_hf_hub.save_for_hf` writes them."""

    assembly = "dual-encoder"
    library = "open_clip"
    files = ("open_clip_config.json", "open_clip_model.safetensors")
    ignored = {
        "attn_mask": "a table of which token sees which",
        **dict.fromkeys(("input_resolution", "context_length", "vocab_size"), "a size, which the config says"),
    }

    def recognises(self, values: Mapping[str, Any]) -> bool:
        return isinstance(values.get("model_cfg"), Mapping)

    def read_config(self, values: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
        top = Fields(values, "open_clip", {"preprocess_cfg": "how images are read", "tokenizer_cfg": "read by the tokenizer"})
        fields = Fields(_mapping(top, "model_cfg"), "open_clip: model_cfg", {"custom_text": "how tensors are named"})
        top.finish()
        size, activation = fields.number("embed_dim"), ACTIVATIONS[fields.flag("quick_gelu", False)]
        fields.require("nonscalar_logit_scale", False, why="one scale for all scores")
        bias = fields.take("init_logit_bias", None)
        towers = {name: Fields(_mapping(fields, f"{name}_cfg"), f"open_clip: {name}_cfg", WITHOUT_INFLUENCE) for name in TOWERS}
        model = {
            "type": "dual-encoder",
            "logit_scale": fields.number("init_logit_scale", math.log(1 / 0.07), whole=False),
            "logit_bias": bias,
            "vision": self._vision(towers["vision"], activation),
            "text": self._text(towers["text"], activation),
        }
        for name in TOWERS:
            model[name]["head"]["size"] = size
        fields.finish()
        return model

    def write_config(self, config: Any) -> dict[str, Any]:
        family = "open_clip's CLIP"
        both = Wanted(family)
        vision, text = config.vision, config.text
        check_images(WantedTower(family, "vision."), vision, "projection")
        check_texts(WantedTower(family, "text."), text, "projection")
        both.expect("vision.embedding.channels", vision.embedding.channels, 3)
        both.expect("vision.embedding.flexible", vision.embedding.flexible, False)
        activations = [each.stack.block.feedforward.activation for each in (vision, text)]
        both.expect("vision.stack.block.feedforward.activation", activations[0], *ACTIVATIONS.values())
        path = "vision.stack.block.feedforward.activation"
        both.equal("text.stack.block.feedforward.activation", activations[1], path, activations[0])
        for name, each in (("vision", vision), ("text", text)):
            both.training_only(f"{name}.stack.block.attention.dropout", each.stack.block.attention.dropout)
        both.expect("text.head.size", text.head.size, vision.head.size or 0)
        end = text.head.pool.id
        return {
            "model_cfg": {
                "embed_dim": text.head.size,
                "quick_gelu": activations[0] == "quick-gelu",
                "init_logit_scale": config.logit_scale,
                **({} if config.logit_bias is None else {"init_logit_bias": config.logit_bias}),
                "vision_cfg": {
                    "image_size": _one_or_two(vision.embedding.image_size),
                    "patch_size": _one_or_two(vision.embedding.patch_size),
                    "patch_dropout": vision.embedding.patch_dropout,
                    "head_width": vision.stack.width // vision.stack.block.attention.heads,
                    **_written(vision.stack),
                },
                "text_cfg": {
                    "context_length": text.embedding.position.length,
                    "vocab_size": text.embedding.vocabulary,
                    "heads": text.stack.block.attention.heads,
                    **({} if end is None else {"pool_type": "eos", "eos_id": end}),
                    **_written(text.stack),
                },
            },
            "preprocess_cfg": {},
        }

    def rules(self, config: Any, names: Collection[str] = ()) -> Iterable[Rule]:
        return [rule(name, name, operation=Scalar()) for name in ("logit_scale", "logit_bias")]

    def table(self, config: Any, ours: Iterable[str], names: Collection[str] = ()) -> list[Rule]:
        vision = [
            rule("visual.class_embedding", "embedding.class_token", operation=Flat()),
            rule("visual.conv1.weight", "embedding.weight"),
            rule("visual.positional_embedding", "embedding.position.table"),
            *module_rules("visual.ln_pre", "embedding.output_norm"),
            *_layers("visual."),
            *module_rules("visual.ln_post", "head.norm"),
            rule("visual.proj", "head.output.weight", operation=Transposed()),
        ]
        text = [
            rule("token_embedding.weight", "embedding.table"),
            rule("positional_embedding", "embedding.position.table"),
            *_layers(""),
            *module_rules("ln_final", "stack.final_norm"),
            rule("text_projection", "head.output.weight", operation=Transposed()),
        ]
        return tower_tables(self, config, ours, {"vision": vision, "text": text})

    def tapped(self, config: Any) -> tuple[tuple[str, str], ...]:
        layers = {
            "ln_1": ".attention_norm", "attn": ".attention", "ln_2": ".feedforward_norm", "mlp": ".feedforward", "": "",
        }  # fmt: skip
        text = [(f"{BLOCK}.{theirs}".rstrip("."), f"stack.layers.{{n}}{ours}") for theirs, ours in layers.items()]
        vision = [("visual.ln_pre", "embedding"), *((f"visual.{theirs}", ours) for theirs, ours in text)]
        return tower_taps(config, {"vision": vision, "text": [*text, ("ln_final", "stack.final_norm")]})

    def plain_names(self, names: Iterable[str]) -> dict[str, str]:
        """The names on disk by those of a whole model: that of several processes, and of texts apart, has a prefix."""
        whole = {name: name.removeprefix("module.").removeprefix("text.") for name in names}
        plain = plain_names(whole.values(), "", ("",))
        back = {short: name for name, short in whole.items()}
        return {name: back[short] for name, short in plain.items()}

    def _vision(self, fields: Fields, activation: str) -> dict[str, Any]:
        fields.require("timm_model_name", None, why="a tower of timm")
        fields.require("attentional_pool", False, why="only the class token is pooled")
        fields.require("pool_type", "tok", why="only the class token is pooled")
        fields.require("no_ln_pre", False, why="a norm stands behind the embedding")
        fields.require("pos_embed_type", "learnable", why="only learned positions")
        if isinstance(fields.values.get("layers"), (list, tuple)):
            raise fields.error("layers", "a ResNet is not supported; expected the number of a transformer's layers")
        width, head = fields.number("width", 768), fields.number("head_width", 64)
        if head < 1 or width % head:
            raise fields.error("head_width", f"{width} cannot be divided into heads of {head}")
        stack = _stack(fields, width, width // head, activation)
        norm = stack["block"]["norm"]
        embedding = patches(fields.size("image_size", 224), fields.size("patch_size", 16), 3, norm, "bicubic-antialias")
        dropped = fields.number("patch_dropout", 0.0, whole=False)
        fields.finish()
        return {
            "type": "transformer",
            "init": {"type": "width-scaled"},
            "embedding": {**embedding, "patch_dropout": dropped},
            "stack": stack,
            "head": {"type": "projection", "pool": "class-token", "norm": norm},
        }

    def _text(self, fields: Fields, activation: str) -> dict[str, Any]:
        fields.require("hf_model_name", None, why="a tower of transformers")
        fields.require("embed_cls", False, why="no class token stands behind texts")
        fields.require("no_causal_mask", False, why="attention of texts is causal")
        fields.require("proj_type", "linear", why="a linear projection")
        fields.require("proj_bias", False, why="a projection without a bias")
        pools = {"argmax": None, "eos": fields.number("eos_id", 2)}
        pool = {"type": "end-of-text", "id": fields.choice("pool_type", pools, "argmax")}
        stack = _stack(fields, fields.number("width", 512), fields.number("heads", 8), activation, causal=True)
        position = {"type": "learned", "length": fields.number("context_length", 77), "std": 0.01}
        embedding = {"type": "tokens", "vocabulary": fields.number("vocab_size", 49408), "position": position}
        fields.finish()
        return {
            "type": "transformer",
            "init": {"type": "width-scaled"},
            "embedding": embedding,
            "stack": {**stack, "final_norm": stack["block"]["norm"]},
            "head": {"type": "projection", "pool": pool},
        }


def _mapping(fields: Fields, name: str) -> Mapping[str, Any]:
    value = fields.take(name)
    if not isinstance(value, Mapping):
        raise fields.error(name, f"expected fields, got {value!r:.60}")
    return value


def _stack(fields: Fields, width: int, heads: int, activation: str, **attention: Any) -> dict[str, Any]:
    for name in BLOCKS_OF_ITS_OWN:
        fields.require(name, False, why="a block of open_clip's own")
    fields.require("block_type", None, "default", why="a block of open_clip's own")
    fields.require("ls_init_value", None, why="no scale of branches")
    fields.require("act_kwargs", None, {}, why="an activation without arguments")
    norms = fields.take("norm_kwargs", None) or {}
    if not isinstance(norms, Mapping) or set(norms) - {"eps"}:
        raise fields.error("norm_kwargs", f"expected eps alone, got {norms!r:.60}")
    hidden = int(width * fields.number("mlp_ratio", 4.0, whole=False))
    norm = {"type": "layer-norm", "eps": norms.get("eps", 1e-5)}
    return tower(width, fields.number("layers", 12), heads, hidden, norm, activation, **attention)


def _written(stack: Any) -> dict[str, Any]:
    """Their fields for our blocks."""
    hidden, eps = stack.block.feedforward.inner(stack.width), stack.block.norm.eps
    ratio = hidden / stack.width
    return {
        "width": stack.width,
        "layers": stack.depth,
        "mlp_ratio": ratio if int(stack.width * ratio) == hidden else (hidden + 0.5) / stack.width,  # they round down
        **({} if eps == 1e-5 else {"norm_kwargs": {"eps": eps}}),
    }


def _layers(tower: str) -> list[Rule]:
    theirs, ours = f"{tower}{BLOCK}", "stack.layers.{n}"
    parts = ("query", "key", "value")
    return [
        *module_rules(f"{theirs}.ln_1", f"{ours}.attention_norm"),
        *(rule(f"{theirs}.attn.in_proj_{kind}", *(f"{ours}.attention.{part}.{kind}" for part in parts))
          for kind in ("weight", "bias")),
        *module_rules(f"{theirs}.attn.out_proj", f"{ours}.attention.output"),
        *module_rules(f"{theirs}.ln_2", f"{ours}.feedforward_norm"),
        *module_rules(f"{theirs}.mlp.c_fc", f"{ours}.feedforward.up"),
        *module_rules(f"{theirs}.mlp.c_proj", f"{ours}.feedforward.down"),
    ]  # fmt: skip


def _one_or_two(size: tuple[int, int]) -> int | list[int]:
    return size[0] if size[0] == size[1] else list(size)
