"""The towers of Hugging Face's CLIP, alone and with their projection, both ways."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar

from zoo.checkpoint.clip import WantedTower, check_images, check_texts, patches, tower
from zoo.checkpoint.family import Family, Wanted
from zoo.checkpoint.fields import ACTIVATIONS, WRITTEN_ACTIVATIONS, Fields, text_fields
from zoo.checkpoint.rules import Flat, Rule, module_rules, rule
from zoo.errors import ConfigError, one_of

HIGHEST = 2
"""The `eos_token_id` of old configs, with which transformers looks for the token with the highest number instead."""
OLD = {
    "dropout": "written into old files, read by no code",
    "is_decoder": "written into old files, read by no code",
    "tie_word_embeddings": "nothing is tied",
    "pad_token_id": "read by the tokenizer",
}


class HuggingFaceCLIPTower(Family):
    """One tower of a CLIP: what both share."""

    library = "transformers"
    model_type: ClassVar[str]
    class_name: ClassVar[str]
    projected: ClassVar[str]
    """The name of the projection."""

    def recognises(self, values: Mapping[str, Any]) -> bool:
        return bool(values.get("model_type") == self.model_type)

    def read_config(self, values: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
        listed = values.get("architectures") or [None]
        known = {self.class_name: False, f"{self.class_name}WithProjection": True}
        if not isinstance(listed, list):
            raise ConfigError(f"{self.model_type}: architectures: expected a list, got {listed!r:.60}")
        if listed[0] is not None and listed[0] not in known:
            raise ConfigError(f"{self.model_type}: architectures: {listed[0]} is not supported; expected {one_of(known)}")
        projects = f"{self.projected}.weight" in names if listed[0] is None else known[listed[0]]
        fields = tower_fields(values, self.model_type)
        size = fields.number("projection_dim", 512) if projects else fields.take("projection_dim", None) and None
        model = self.read_tower(fields, size)
        fields.finish()
        return model

    @abstractmethod
    def read_tower(self, fields: Fields, size: int | None) -> dict[str, Any]:
        """Our fields for the tower, with a projection to `size`, if it has one."""

    @abstractmethod
    def write_tower(self, wanted: Wanted, config: Any, *heads: str) -> dict[str, Any]:
        """Their fields for our tower, whose head has one of these types."""

    def write_config(self, config: Any) -> dict[str, Any]:
        values = self.write_tower(WantedTower(f"Hugging Face's {self.class_name}"), config, "pooler", "projection")
        end = "WithProjection" if config.head.type == "projection" else ""
        return {"architectures": [f"{self.class_name}{end}"], **values}


class HuggingFaceCLIPText(HuggingFaceCLIPTower):
    """`CLIPTextModel` and `CLIPTextModelWithProjection`."""

    model_type = "clip_text_model"
    class_name = "CLIPTextModel"
    projected = "text_projection"
    prefix = "text_model."
    heads = ("text_projection.", "vision_model.", "visual_projection.", "logit_scale")
    ignored = {
        "text_model.embeddings.position_ids": "a table of 0, 1, 2, ...",
        "text_projection.*": "of a head that this model does not have",
        "vision_model.*": "of the other tower", "visual_projection.*": "of the other tower",
        "logit_scale": "compares the two towers",
    }  # fmt: skip
    taps = (
        ("text_model.embeddings", "embedding"),
        ("text_model.encoder.layers.{n}.layer_norm1", "stack.layers.{n}.attention_norm"),
        ("text_model.encoder.layers.{n}.self_attn", "stack.layers.{n}.attention"),
        ("text_model.encoder.layers.{n}.layer_norm2", "stack.layers.{n}.feedforward_norm"),
        ("text_model.encoder.layers.{n}.mlp", "stack.layers.{n}.feedforward"),
        ("text_model.encoder.layers.{n}", "stack.layers.{n}"),
        ("text_model.final_layer_norm", "stack.final_norm"),
        ("text_projection", "head"),
    )

    def read_tower(self, fields: Fields, size: int | None) -> dict[str, Any]:
        stack = read_stack(fields, 512, 2048, 8, causal=True)
        end = fields.take("eos_token_id", 49407)
        if isinstance(end, bool) or not isinstance(end, int) or end < 0:
            raise fields.error("eos_token_id", f"expected one token, which is looked for in the text, got {end!r:.60}")
        pool = {"type": "end-of-text", "id": None if end == HIGHEST else end}
        embedding = {
            "type": "tokens",
            "vocabulary": fields.number("vocab_size", 49408),
            "position": {"type": "learned", "length": fields.number("max_position_embeddings", 77)},
        }
        return {
            "type": "transformer",
            "init": read_init(fields),
            "embedding": embedding,
            "stack": {**stack, "final_norm": stack["block"]["norm"]},
            "head": read_head(size, pool, None),
        }

    def write_tower(self, wanted: Wanted, config: Any, *heads: str) -> dict[str, Any]:
        check_texts(wanted, config, *heads)
        end = config.head.pool.id
        if end == HIGHEST:
            wanted.expect("head.pool.id", end, None, f"another than {HIGHEST}, which there means the highest of a text")
        return {
            "model_type": self.model_type,
            "vocab_size": config.embedding.vocabulary,
            "max_position_embeddings": config.embedding.position.length,
            "eos_token_id": HIGHEST if end is None else end,
            **write_stack(config),
        }

    def rules(self, config: Any, names: Collection[str] = ()) -> Iterable[Rule]:
        return [
            rule("text_model.embeddings.token_embedding.weight", "embedding.table"),
            rule("text_model.embeddings.position_embedding.weight", "embedding.position.table"),
            *layer_rules("text_model"),
            *module_rules("text_model.final_layer_norm", "stack.final_norm"),
            rule("text_projection.weight", "head.output.weight"),
        ]


class HuggingFaceCLIPVision(HuggingFaceCLIPTower):
    """`CLIPVisionModel` and `CLIPVisionModelWithProjection`."""

    model_type = "clip_vision_model"
    class_name = "CLIPVisionModel"
    projected = "visual_projection"
    prefix = "vision_model."
    heads = ("visual_projection.", "text_model.", "text_projection.", "logit_scale")
    ignored = {
        "vision_model.embeddings.position_ids": "a table of 0, 1, 2, ...",
        "visual_projection.*": "of a head that this model does not have",
        "text_model.*": "of the other tower", "text_projection.*": "of the other tower",
        "logit_scale": "compares the two towers",
    }  # fmt: skip
    taps = (
        ("vision_model.embeddings > vision_model.pre_layrnorm", "embedding"),
        *((theirs.replace("text_", "vision_"), ours) for theirs, ours in HuggingFaceCLIPText.taps if "{n}" in theirs),
        ("vision_model.post_layernorm", "head.norm"),
        ("visual_projection", "head"),
    )

    def read_tower(self, fields: Fields, size: int | None) -> dict[str, Any]:
        stack = read_stack(fields, 768, 3072, 12)
        norm = stack["block"]["norm"]
        image, patch = (fields.number(name, default) for name, default in (("image_size", 224), ("patch_size", 32)))
        return {
            "type": "transformer",
            "init": read_init(fields),
            "embedding": patches(image, patch, fields.number("num_channels", 3), norm),
            "stack": stack,
            "head": read_head(size, "class-token", norm),
        }

    def write_tower(self, wanted: Wanted, config: Any, *heads: str) -> dict[str, Any]:
        check_images(wanted, config, *heads)
        embedding = config.embedding
        wanted.expect("embedding.flexible", embedding.flexible, False)
        for name in ("image_size", "patch_size"):
            size = getattr(embedding, name)
            wanted.expect(f"embedding.{name}", size, (size[0], size[0]))
        wanted.training_only("embedding.patch_dropout", embedding.patch_dropout)
        return {
            "model_type": self.model_type,
            "image_size": embedding.image_size[0],
            "patch_size": embedding.patch_size[0],
            "num_channels": embedding.channels,
            **write_stack(config),
        }

    def rules(self, config: Any, names: Collection[str] = ()) -> Iterable[Rule]:
        return [
            rule("vision_model.embeddings.class_embedding", "embedding.class_token", operation=Flat()),
            rule("vision_model.embeddings.patch_embedding.weight", "embedding.weight"),
            rule("vision_model.embeddings.position_embedding.weight", "embedding.position.table"),
            *module_rules("vision_model.pre_layrnorm", "embedding.output_norm"),
            *layer_rules("vision_model"),
            *module_rules("vision_model.post_layernorm", "head.norm"),
            rule("visual_projection.weight", "head.output.weight"),
        ]


def tower_fields(values: Mapping[str, Any], place: str) -> Fields:
    """The fields of a tower, without those that change nothing."""
    fields = text_fields(values, place)
    for name in OLD:
        fields.take(name, None)
    return fields


def read_stack(fields: Fields, width: int, hidden: int, heads: int, **attention: Any) -> dict[str, Any]:
    """Our fields for the blocks; the numbers are what transformers means where there are none."""
    norm = {"type": "layer-norm", "eps": fields.number("layer_norm_eps", 1e-5, whole=False)}
    return tower(
        fields.number("hidden_size", width),
        fields.number("num_hidden_layers", 12),
        fields.number("num_attention_heads", heads),
        fields.number("intermediate_size", hidden),
        norm,
        fields.choice("hidden_act", ACTIVATIONS, "quick_gelu"),
        dropout=fields.number("attention_dropout", 0.0, whole=False),
        **attention,
    )


def read_init(fields: Fields) -> dict[str, Any]:
    factor = fields.number("initializer_factor", 1.0, whole=False)
    return {"type": "width-scaled", "std": fields.values.get("initializer_range", 0.02), "factor": factor}


def read_head(size: int | None, pool: Any, norm: Any) -> dict[str, Any]:
    if size is None:
        return {"type": "pooler", "projection": False, "pool": pool, "norm": norm}
    return {"type": "projection", "size": size, "pool": pool, "norm": norm}


def write_stack(config: Any) -> dict[str, Any]:
    """Their fields for our blocks, the head and the initialisation."""
    stack, head = config.stack, config.head
    return {
        "hidden_size": stack.width,
        "intermediate_size": stack.block.feedforward.inner(stack.width),
        "num_hidden_layers": stack.depth,
        "num_attention_heads": stack.block.attention.heads,
        "hidden_act": WRITTEN_ACTIVATIONS[stack.block.feedforward.activation],
        "layer_norm_eps": stack.block.norm.eps,
        "attention_dropout": stack.block.attention.dropout,
        "initializer_range": getattr(config.init, "std", 0.02),
        "initializer_factor": getattr(config.init, "factor", 1.0),
        **({} if head.size is None else {"projection_dim": head.size}),
    }


def layer_rules(body: str) -> list[Rule]:
    """The rules for the blocks of a tower."""
    theirs, ours = f"{body}.encoder.layers.{{n}}", "stack.layers.{n}"
    return [
        each
        for their_name, our_name in {
            "layer_norm1": "attention_norm",
            "self_attn.q_proj": "attention.query",
            "self_attn.k_proj": "attention.key",
            "self_attn.v_proj": "attention.value",
            "self_attn.out_proj": "attention.output",
            "layer_norm2": "feedforward_norm",
            "mlp.fc1": "feedforward.up",
            "mlp.fc2": "feedforward.down",
        }.items()
        for each in module_rules(f"{theirs}.{their_name}", f"{ours}.{our_name}")
    ]
