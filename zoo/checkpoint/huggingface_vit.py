"""Hugging Face's ViT and DeiT, both ways."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar

from zoo.checkpoint.family import Family, Wanted
from zoo.checkpoint.fields import ACTIVATIONS, HUGGING_FACE_IGNORED, WRITTEN_ACTIVATIONS, Fields, labels, names_of
from zoo.checkpoint.rules import Batched, Rule, module_rules, rule
from zoo.errors import ConfigError, one_of


class HuggingFaceViT(Family):
    """`ViTModel` and `ViTForImageClassification`."""

    library = "transformers"
    model_type: ClassVar[str] = "vit"
    class_name: ClassVar[str] = "ViT"
    registers: ClassVar[int] = 0
    prefix = "vit."
    heads = ("classifier.",)
    ignored = {
        "vit.embeddings.mask_token": "only masked-image training uses it",
        "vit.embeddings.position_ids": "a table of 0, 1, 2, ...",
    }
    taps: ClassVar[tuple[tuple[str, str], ...]] = (
        ("vit.embeddings", "embedding"),
        ("vit.layers.{n}.layernorm_before", "stack.layers.{n}.attention_norm"),
        ("vit.layers.{n}.attention", "stack.layers.{n}.attention"),
        ("vit.layers.{n}.layernorm_after", "stack.layers.{n}.feedforward_norm"),
        ("vit.layers.{n}.mlp", "stack.layers.{n}.feedforward"),
        ("vit.layers.{n}", "stack.layers.{n}"),
        ("vit.layernorm", "stack.final_norm"),
        ("vit.pooler", "head"),
        ("classifier", "head"),
    )

    def recognises(self, values: Mapping[str, Any]) -> bool:
        return values.get("model_type") == self.model_type

    def read_config(self, values: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
        fields = Fields(values, self.model_type, HUGGING_FACE_IGNORED)
        fields.take("encoder_stride", 16)  # of the decoder for masked-image training, which is refused
        norm = {"type": "layer-norm", "eps": fields.number("layer_norm_eps", 1e-12, whole=False)}
        width = fields.number("hidden_size", 768)
        attention = {
            "type": "full",
            "heads": fields.number("num_attention_heads", 12),
            "head_size": fields.take("head_dim", None),
            "bias": fields.flag("qkv_bias", True),
            "dropout": fields.number("attention_probs_dropout_prob", 0.0, whole=False),
        }
        if attention["head_size"] is None and attention["heads"] > 0 and width % attention["heads"]:
            attention["head_size"] = width // attention["heads"]  # the reference rounds down
        feedforward = {
            "type": "mlp",
            "hidden": fields.number("intermediate_size", 3072),
            "activation": fields.choice("hidden_act", ACTIVATIONS, "gelu"),
        }
        image, patch = fields.size("image_size", 224), fields.size("patch_size", 16)
        dropout = fields.number("hidden_dropout_prob", 0.0, whole=False)
        std = values.get("initializer_range", 0.02)
        model = {
            "type": "transformer",
            "init": {"type": "truncated-normal", "std": std},
            "embedding": {
                "type": "patch",
                "image_size": image,
                "patch_size": patch,
                "channels": fields.number("num_channels", 3),
                "registers": self.registers,
                "dropout": dropout,
                "position": {"type": "learned", "resample": "bicubic", "square": not _square_grid(image, patch)},
            },
            "stack": {
                "type": "uniform",
                "width": width,
                "depth": fields.number("num_hidden_layers", 12),
                "final_norm": norm,
                "block": {
                    "type": "residual", "order": "pre", "norm": norm, "attention": attention,
                    "feedforward": feedforward, "dropout": dropout,
                },
            },
        }  # fmt: skip
        size, activation = fields.take("pooler_output_size", None), fields.choice("pooler_act", ACTIVATIONS, "tanh")
        fields.finish()
        if self._classifies(values, names):
            count, words = labels(values)
            model["head"] = {"type": "classifier", "classes": count, "labels": words, "pool": "class-token"}
        elif any(name.endswith("pooler.dense.weight") for name in names):
            model["head"] = {"type": "pooler", "size": size, "activation": activation, "pool": "class-token"}
        return model

    def write_config(self, config: Any) -> dict[str, Any]:
        wanted = Wanted(f"Hugging Face's {self.class_name}")
        embedding, stack = config.embedding, config.stack
        wanted.part("stack", stack, "uniform")
        self._check_embedding(wanted, embedding)
        wanted.expect("stack.pattern", stack.pattern, None)
        self._check_block(wanted, stack)
        attention, feedforward = stack.block.attention, stack.block.feedforward
        wanted.training_only("embedding.dropout", embedding.dropout, stack.block.dropout)
        wanted.training_only("embedding.patch_dropout", embedding.patch_dropout)
        wanted.training_only("stack.drop_path", stack.drop_path)
        wanted.training_only("stack.block.feedforward.dropout", feedforward.dropout)
        wanted.training_only("head.dropout", getattr(config.head, "dropout", 0.0))
        values = {
            "model_type": self.model_type,
            "hidden_size": stack.width,
            "num_hidden_layers": stack.depth,
            "num_attention_heads": attention.heads,
            "intermediate_size": feedforward.inner(stack.width),
            "hidden_act": WRITTEN_ACTIVATIONS[feedforward.activation],
            "hidden_dropout_prob": stack.block.dropout,
            "attention_probs_dropout_prob": attention.dropout,
            "initializer_range": getattr(config.init, "std", 0.02),
            "layer_norm_eps": stack.block.norm.eps,
            "image_size": _one_or_two(embedding.image_size),
            "patch_size": _one_or_two(embedding.patch_size),
            "num_channels": embedding.channels,
            "qkv_bias": attention.bias,
        }
        if attention.head_size is not None and attention.head_size != stack.width // attention.heads:
            values["head_dim"] = attention.head_size
        return {**values, **self._head(wanted, config.head)}

    def rules(self, config: Any, names: Collection[str] = ()) -> Iterable[Rule]:
        layer, ours = "vit.encoder.layer.{n}", "stack.layers.{n}"
        table = [
            rule("vit.embeddings.cls_token", "embedding.class_token"),
            rule("vit.embeddings.distillation_token", "embedding.register_tokens"),
            rule("vit.embeddings.position_embeddings", "embedding.position.table", operation=Batched()),
            *module_rules("vit.embeddings.patch_embeddings.projection", "embedding"),
            *module_rules(f"{layer}.layernorm_before", f"{ours}.attention_norm"),
            *module_rules(f"{layer}.attention.attention.query", f"{ours}.attention.query"),
            *module_rules(f"{layer}.attention.attention.key", f"{ours}.attention.key"),
            *module_rules(f"{layer}.attention.attention.value", f"{ours}.attention.value"),
            *module_rules(f"{layer}.attention.output.dense", f"{ours}.attention.output"),
            *module_rules(f"{layer}.layernorm_after", f"{ours}.feedforward_norm"),
            *module_rules(f"{layer}.intermediate.dense", f"{ours}.feedforward.up"),
            *module_rules(f"{layer}.output.dense", f"{ours}.feedforward.down"),
            *module_rules("vit.layernorm", "stack.final_norm"),
            *module_rules(
                "classifier" if getattr(config.head, "type", "") == "classifier" else "vit.pooler.dense", "head.output"
            ),
        ]
        return [
            Rule(tuple(name.replace("vit.", self.prefix, 1) for name in each.theirs), each.ours, each.operation)
            for each in table
        ]

    def _classifies(self, values: Mapping[str, Any], names: Collection[str]) -> bool:
        known = [f"{self.class_name}Model", f"{self.class_name}ForImageClassification"]
        listed = values.get("architectures") or [None]
        if not isinstance(listed, list):
            raise ConfigError(f"{self.model_type}: architectures: expected a list, got {listed!r:.60}")
        architecture = listed[0]
        if architecture is None:
            return any(name.startswith("classifier.") for name in names)
        if architecture not in known:
            raise ConfigError(f"{self.model_type}: architectures: {architecture} is not supported; expected {one_of(known)}")
        return bool(architecture == known[1])

    def _check_embedding(self, wanted: Wanted, embedding: Any) -> None:
        wanted.part("embedding", embedding, "patch")
        for name, value in {
            "class_token": True, "registers": self.registers, "bias": True, "prefix_position": True, "norm": None,
            "output_norm": None, "flexible": False, "edges": "cut",
        }.items():  # fmt: skip
            wanted.expect(f"embedding.{name}", getattr(embedding, name), value)
        wanted.part("embedding.position", embedding.position, "learned")
        # how a table is resampled is an argument of the call there, always bicubic; no weight depends on it
        wanted.expect("embedding.position.resample", embedding.position.resample, "bicubic", "bicubic-antialias")
        if not _square_grid(embedding.image_size, embedding.patch_size):
            wanted.expect("embedding.position.square", embedding.position.square, True)

    def _check_block(self, wanted: Wanted, stack: Any) -> None:
        block = stack.block
        wanted.part("stack.block", block, "residual")
        wanted.expect("stack.block.order", block.order, "pre")
        wanted.expect("stack.block.layer_scale", block.layer_scale, None)
        wanted.expect("stack.block.attention_output_dropout", block.attention_output_dropout, None, block.dropout)
        wanted.part("stack.block.norm", block.norm, "layer-norm")
        wanted.expect("stack.block.norm.bias", block.norm.bias, True)
        wanted.equal("stack.final_norm", stack.final_norm, "stack.block.norm", block.norm)
        wanted.part("stack.block.attention", block.attention, "full")
        heads = block.attention.heads
        for name, allowed in {
            "kv_heads": (None, heads), "output_bias": (True,), "qk_norm": (None,), "output_norm": (None,), "causal": (False,),
            "scale": (None, (block.attention.head_size or stack.width // heads) ** -0.5),
        }.items():  # fmt: skip
            wanted.expect(f"stack.block.attention.{name}", getattr(block.attention, name), *allowed)
        wanted.part("stack.block.feedforward", block.feedforward, "mlp")
        wanted.expect("stack.block.feedforward.bias", block.feedforward.bias, True)
        wanted.expect("stack.block.feedforward.norm", block.feedforward.norm, None)

    def _head(self, wanted: Wanted, head: Any) -> dict[str, Any]:
        wanted.part("head", head, "classifier", "pooler", None)
        if head is None:
            return {"architectures": [f"{self.class_name}Model"]}
        wanted.part("head.pool", head.pool, "class-token")
        wanted.expect("head.norm", head.norm, None)
        if head.type == "pooler":
            wanted.expect("head.projection", head.projection, True)
            size = {} if head.size is None else {"pooler_output_size": head.size}
            act = {"pooler_act": WRITTEN_ACTIVATIONS[head.activation]}
            return {"architectures": [f"{self.class_name}Model"], **size, **act}
        wanted.expect("head.dense", head.dense, None)
        wanted.expect("head.bias", head.bias, True)
        return {"architectures": [f"{self.class_name}ForImageClassification"], **names_of(wanted.family, head)}


class HuggingFaceDeiT(HuggingFaceViT):
    """`DeiTModel` and `DeiTForImageClassification`; the distillation token is a register here."""

    model_type = "deit"
    class_name = "DeiT"
    registers = 1
    prefix = "deit."
    ignored = {"deit.embeddings.mask_token": "only masked-image training uses it"}
    taps = tuple((theirs.replace("vit.", "deit.", 1), ours) for theirs, ours in HuggingFaceViT.taps)


def _one_or_two(size: tuple[int, int]) -> int | list[int]:
    return size[0] if size[0] == size[1] else list(size)


def _square_grid(image: Any, patch: Any) -> bool:
    images, patches = (size if isinstance(size, (list, tuple)) else (size, size) for size in (image, patch))
    return bool(images[0] // patches[0] == images[1] // patches[1])
