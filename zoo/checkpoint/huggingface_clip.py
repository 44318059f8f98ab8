"""Hugging Face's CLIP, both towers together, both ways."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from zoo.checkpoint.clip import WantedTower
from zoo.checkpoint.family import Family
from zoo.checkpoint.fields import Fields, text_fields
from zoo.checkpoint.huggingface_clip_towers import HuggingFaceCLIPText, HuggingFaceCLIPVision, tower_fields
from zoo.checkpoint.rules import Rule, Scalar, expand, rule
from zoo.errors import ConfigError

TOWERS = {"text": HuggingFaceCLIPText(), "vision": HuggingFaceCLIPVision()}
CLASS = "CLIPModel"


class HuggingFaceCLIP(Family):
    """`CLIPModel`."""

    assembly = "dual-encoder"
    library = "transformers"
    model_type = "clip"
    heads = ("",)  # no name carries a prefix
    ignored = {
        "text_model.embeddings.position_ids": "a table of 0, 1, 2, ...",
        "vision_model.embeddings.position_ids": "a table of 0, 1, 2, ...",
    }

    def recognises(self, values: Mapping[str, Any]) -> bool:
        return values.get("model_type") == self.model_type

    def read_config(self, values: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
        listed = values.get("architectures") or [CLASS]
        if not isinstance(listed, list) or listed[0] != CLASS:
            raise ConfigError(f"clip: architectures: {listed!r:.60} is not supported; expected [{CLASS!r}]")
        fields = text_fields(values, "clip")
        fields.take("tie_word_embeddings", None)  # nothing is tied
        fields.take("initializer_factor", 1.0)  # of fresh projections alone; that of each tower stands for them here
        size = fields.number("projection_dim", 512)
        model: dict[str, Any] = {
            "type": "dual-encoder",
            "logit_scale": fields.number("logit_scale_init_value", 2.6592, whole=False),
        }
        for name, family in TOWERS.items():
            own = tower_fields(self._tower(fields, f"{name}_config"), f"clip: {name}_config")
            own.take("projection_dim", None)  # there only the other classes read it
            own.require("model_type", family.model_type, why="a tower of another family")
            model[name] = family.read_tower(own, size)
            own.finish()
        fields.finish()
        return model

    def write_config(self, config: Any) -> dict[str, Any]:
        family = "Hugging Face's CLIP"
        WantedTower(family).expect("logit_bias", config.logit_bias, None)
        values = {
            f"{name}_config": each.write_tower(WantedTower(family, f"{name}."), getattr(config, name), "projection")
            for name, each in TOWERS.items()
        }
        WantedTower(family).expect("text.head.size", config.text.head.size, config.vision.head.size or 0)
        return {
            "architectures": [CLASS],
            "model_type": self.model_type,
            "projection_dim": config.text.head.size,
            "logit_scale_init_value": config.logit_scale,
            "initializer_factor": values["text_config"]["initializer_factor"],
            **values,
        }

    def rules(self, config: Any, names: Collection[str] = ()) -> Iterable[Rule]:
        return [rule("logit_scale", "logit_scale", operation=Scalar())]

    def table(self, config: Any, ours: Iterable[str], names: Collection[str] = ()) -> list[Rule]:
        rules = {name: each.rules(getattr(config, name), names) for name, each in TOWERS.items()}
        return tower_tables(self, config, ours, rules)

    def tapped(self, config: Any) -> tuple[tuple[str, str], ...]:
        return tower_taps(config, {name: each.taps for name, each in TOWERS.items()})

    def _tower(self, fields: Fields, name: str) -> dict[str, Any]:
        """The fields of a tower. Where an old file states them a second time, that is what counts, defaults included."""
        values, old = fields.take(name, None) or {}, fields.take(f"{name}_dict", None)
        for each in (values, old):
            if each is not None and not isinstance(each, Mapping):
                raise fields.error(name, f"expected fields of a tower, got {each!r:.60}")
        if old is None:
            return dict(values)
        unknown = {key: value for key, value in values.items() if key not in KNOWN}
        return {**unknown, **old}


KNOWN = (
    "vocab_size", "hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers", "num_attention_heads",
    "max_position_embeddings", "hidden_act", "layer_norm_eps", "attention_dropout", "initializer_range", "initializer_factor",
    "eos_token_id", "num_channels", "image_size", "patch_size",
)  # fmt: skip
"""The fields of towers that stand at their defaults where the second statement of an old file lacks them."""


def tower_tables(
    family: Family, config: Any, ours: Iterable[str], towers: Mapping[str, Iterable[Rule]], stored: Collection[str] = ()
) -> list[Rule]:
    """The rules for a model of two towers with the tensors `ours`, from those of each tower alone."""
    names = set(ours)
    table = expand(family.rules(config, stored), 0, names)
    for tower, rules in towers.items():
        inside = [Rule(each.theirs, tuple(f"{tower}.{name}" for name in each.ours), each.operation) for each in rules]
        table += expand(inside, getattr(config, tower).stack.depth, names)
    return table


def tower_taps(config: Any, towers: Mapping[str, Iterable[tuple[str, str]]]) -> tuple[tuple[str, str], ...]:
    """The taps of a model of two towers, layers numbered, from those of each tower alone."""
    found: list[tuple[str, str]] = []
    for tower, taps in towers.items():
        listed = list(taps)
        numbered = [tap for tap in listed if "{n}" in tap[1]]
        first = listed.index(numbered[0])
        layers = range(getattr(config, tower).stack.depth)
        inner = [(theirs.replace("{n}", str(n)), ours.replace("{n}", str(n))) for n in layers for theirs, ours in numbered]
        rest = [tap for tap in listed[first:] if tap not in numbered]
        found += [(theirs, f"{tower}.{ours}") for theirs, ours in [*listed[:first], *inner, *rest]]
    return tuple(found)
