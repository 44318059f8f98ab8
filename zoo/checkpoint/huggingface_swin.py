"""Hugging Face's Swin, both ways."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar

from zoo.checkpoint.family import Family, Wanted
from zoo.checkpoint.fields import ACTIVATIONS, HUGGING_FACE_IGNORED, WRITTEN_ACTIVATIONS, Fields, labels, names_of
from zoo.checkpoint.rules import Batched, Rule, module_rules, rule
from zoo.checkpoint.swin import EPS, check_windows, checked_stages, numbered, pattern
from zoo.errors import ConfigError, one_of

CLASSES = ("SwinModel", "SwinForImageClassification", "SwinBackbone")
NORM = {"type": "layer-norm", "eps": EPS}


class HuggingFaceSwin(Family):
    """`SwinModel`, `SwinForImageClassification` and `SwinBackbone`."""

    library = "transformers"
    model_type: ClassVar[str] = "swin"
    prefix = "swin."
    heads = ("classifier.", "hidden_states_norms.")
    ignored = {
        "swin.embeddings.mask_token": "only masked-image training uses it",
        "*.relative_position_index": "it follows from the size of a window",
        "swin.layernorm.*": "a backbone norms its feature maps instead",
    }

    def recognises(self, values: Mapping[str, Any]) -> bool:
        return values.get("model_type") == self.model_type

    def tapped(self, config: Any) -> tuple[tuple[str, str], ...]:
        taps = [("swin.embeddings", "embedding")]
        last = len(config.stack.stages) - 1
        for stage, block, layer in numbered(config):
            theirs, ours = f"swin.encoder.layers.{stage}.blocks.{block}", f"stack.layers.{layer}"
            taps += [
                (f"{theirs}.layernorm_before", f"{ours}.attention_norm"),
                # only what is dropped in training sees the windows put together again
                (f"{theirs}.layernorm_before >> {theirs}.drop_path", f"{ours}.attention"),
                (f"{theirs}.layernorm_after", f"{ours}.feedforward_norm"),
                (f"{theirs}.mlp", f"{ours}.feedforward"),
                (theirs, ours),
            ]
            if block == config.stack.stages[stage].depth - 1 and stage < last:
                taps.append((f"swin.encoder.layers.{stage}.downsample", f"stack.merges.{stage}"))
        norms = [(f"hidden_states_norms.{name}", f"head.norms.{name}") for name in getattr(config.head, "features", ())]
        return (*taps, ("swin.layernorm", "stack.final_norm"), *norms, ("classifier", "head"))

    def read_config(self, values: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
        fields = Fields(values, self.model_type, HUGGING_FACE_IGNORED)
        fields.take("encoder_stride", 32)  # of the decoder for masked-image training, which is refused
        fields.require("path_norm", True, why="written into old files, read by no code")
        kind = self._class(values, names)
        depths, heads = _numbers(fields, "depths", [2, 2, 6, 2]), _numbers(fields, "num_heads", [3, 6, 12, 24])
        if len(heads) < len(depths):
            raise fields.error("num_heads", f"{len(heads)} numbers for {len(depths)} stages")
        for name in ("num_layers", "hidden_size", "stage_names", "num_hidden_layers", "num_attention_heads"):
            fields.take(name, None)  # what follows from the fields above
        width = fields.number("embed_dim", 96)
        norm = {"type": "layer-norm", "eps": fields.number("layer_norm_eps", 1e-5, whole=False)}
        dropout = fields.number("hidden_dropout_prob", 0.0, whole=False)
        attention = {
            "type": "window",
            "heads": heads[0],
            "window": fields.number("window_size", 7),
            "bias": fields.flag("qkv_bias", True),
            "dropout": fields.number("attention_probs_dropout_prob", 0.0, whole=False),
            "position": "relative-2d",
            "small": "shift" if kind == "SwinBackbone" else "still",
            "fill": "before-shift",
        }
        feedforward = {
            "type": "mlp",
            "ratio": float(fields.number("mlp_ratio", 4.0, whole=False)),
            "activation": fields.choice("hidden_act", ACTIVATIONS, "gelu"),
        }
        absolute = fields.flag("use_absolute_embeddings", False)
        model = {
            "type": "transformer",
            "init": {"type": "truncated-normal", "std": values.get("initializer_range", 0.02)},
            "embedding": {
                "type": "patch",
                "image_size": fields.size("image_size", 224),
                "patch_size": fields.size("patch_size", 4),
                "channels": fields.number("num_channels", 3),
                "class_token": False,
                "position": {"type": "learned", "resample": "bicubic", "square": True} if absolute else None,
                "norm": NORM,
                "dropout": dropout,
                "flexible": not absolute,
                "edges": "pad",
            },
            "stack": {
                "type": "stages",
                "width": width,
                "block": {
                    "type": "residual", "order": "pre", "norm": norm, "attention": attention, "feedforward": feedforward,
                    "dropout": dropout,
                },
                "stages": [{"depth": depth, "heads": number} for depth, number in zip(depths, heads)],
                "pattern": pattern(),
                "drop_path": fields.number("drop_path_rate", 0.1, whole=False),
                "merge_norm": NORM,
                "final_norm": None if kind == "SwinBackbone" else norm,
            },
        }  # fmt: skip
        maps = _maps(fields, len(depths))
        fields.finish()
        if kind == "SwinForImageClassification":
            count, words = labels(values)
            model["head"] = {"type": "classifier", "classes": count, "labels": words, "pool": "mean"}
        elif kind == "SwinBackbone":
            model["head"] = {"type": "feature-maps", "features": maps, "norm": NORM}
        else:
            model["head"] = {"type": "pooler", "pool": "mean", "projection": False}
        return model

    def write_config(self, config: Any) -> dict[str, Any]:
        from zoo.attention.window import WindowAttention

        wanted = Wanted("Hugging Face's Swin")
        stages = checked_stages(wanted, config)
        embedding, stack = config.embedding, config.stack
        block, attention = stages[0].blocks[0], stages[0].attention
        position = embedding.position
        wanted.part("embedding.position", position, "learned", None)
        if position is not None:
            wanted.expect("embedding.position.square", position.square, True)
            wanted.expect("embedding.flexible", embedding.flexible, False)
        if embedding.flexible or any(size % patch for size, patch in zip(embedding.image_size, embedding.patch_size)):
            wanted.expect("embedding.edges", embedding.edges, "pad")
        wanted.expect("stack.block.attention.window", attention.window[0], attention.window[1])
        window, backbone = attention.window[0], getattr(config.head, "type", None) == "feature-maps"
        theirs = WindowAttention.Config(heads=1, window=window, small="shift" if backbone else "still")
        for stage in stages:
            size = stage.attention.head_size
            wanted.expect(f"{stage.path}.attention.head_size", size, None, stage.width // stage.attention.heads)
            check_windows(wanted, stage, theirs, any_size=embedding.flexible or position is not None)
            if not backbone and window > min(stage.grid):
                wanted.expect(f"{stage.path}.attention.window", window, f"at most {min(stage.grid)}")
            wanted.equal(f"{stage.path}.norm", stage.blocks[0].norm, "the first stage", block.norm)
            for name in ("bias", "dropout"):
                value = getattr(stage.attention, name)
                wanted.equal(f"{stage.path}.attention.{name}", value, "the first stage", getattr(attention, name))
            hidden = int(stage.width * stages[0].feedforward.ratio)
            wanted.equal(f"{stage.path}.feedforward", stage.feedforward.inner(stage.width), "mlp_ratio x width", hidden)
            for name in ("activation", "dropout"):
                value = getattr(stage.feedforward, name)
                wanted.equal(f"{stage.path}.feedforward.{name}", value, "the first", getattr(stages[0].feedforward, name))
            wanted.equal(f"{stage.path}.dropout", stage.blocks[0].dropout, "the first stage", block.dropout)
        wanted.training_only("embedding.dropout", embedding.dropout, block.dropout)
        wanted.training_only("embedding.patch_dropout", embedding.patch_dropout)
        wanted.training_only("stack.block.feedforward.dropout", stages[0].feedforward.dropout)
        wanted.training_only("head.dropout", getattr(config.head, "dropout", 0.0))
        if backbone:
            wanted.part("stack.final_norm", stack.final_norm, None)
        else:
            wanted.equal("stack.final_norm", stack.final_norm, "stack.block.norm", block.norm)
        return {
            "model_type": self.model_type,
            "image_size": _one_or_two(embedding.image_size),
            "patch_size": _one_or_two(embedding.patch_size),
            "num_channels": embedding.channels,
            "embed_dim": stack.width,
            "depths": [stage.depth for stage in stages],
            "num_heads": [stage.attention.heads for stage in stages],
            "window_size": window,
            "mlp_ratio": stages[0].feedforward.ratio,
            "qkv_bias": attention.bias,
            "hidden_dropout_prob": block.dropout,
            "attention_probs_dropout_prob": attention.dropout,
            "drop_path_rate": stack.drop_path,
            "hidden_act": WRITTEN_ACTIVATIONS[stages[0].feedforward.activation],
            "use_absolute_embeddings": position is not None,
            "initializer_range": getattr(config.init, "std", 0.02),
            "layer_norm_eps": block.norm.eps,
            **self._head(wanted, config.head),
        }

    def rules(self, config: Any, names: Collection[str] = ()) -> Iterable[Rule]:
        yield from module_rules("swin.embeddings.patch_embeddings.projection", "embedding")
        yield from module_rules("swin.embeddings.norm", "embedding.norm")
        yield rule("swin.embeddings.position_embeddings", "embedding.position.table", operation=Batched())
        for stage, block, layer in numbered(config):
            theirs, ours = f"swin.encoder.layers.{stage}.blocks.{block}", f"stack.layers.{layer}"
            yield from module_rules(f"{theirs}.layernorm_before", f"{ours}.attention_norm")
            for name in ("query", "key", "value"):
                yield from module_rules(f"{theirs}.attention.self.{name}", f"{ours}.attention.{name}")
            yield rule(f"{theirs}.attention.self.relative_position_bias_table", f"{ours}.attention.position.table")
            yield from module_rules(f"{theirs}.attention.output.dense", f"{ours}.attention.output")
            yield from module_rules(f"{theirs}.layernorm_after", f"{ours}.feedforward_norm")
            yield from module_rules(f"{theirs}.intermediate.dense", f"{ours}.feedforward.up")
            yield from module_rules(f"{theirs}.output.dense", f"{ours}.feedforward.down")
        for stage in range(len(config.stack.stages) - 1):
            yield from module_rules(f"swin.encoder.layers.{stage}.downsample.norm", f"stack.merges.{stage}.norm")
            yield rule(f"swin.encoder.layers.{stage}.downsample.reduction.weight", f"stack.merges.{stage}.reduction.weight")
        yield from module_rules("swin.layernorm", "stack.final_norm")
        yield from module_rules("classifier", "head.output")
        for name in getattr(config.head, "features", ()):
            yield from module_rules(f"hidden_states_norms.{name}", f"head.norms.{name}")

    def _class(self, values: Mapping[str, Any], names: Collection[str]) -> str:
        listed = values.get("architectures") or [None]
        if not isinstance(listed, list):
            raise ConfigError(f"{self.model_type}: architectures: expected a list, got {listed!r:.60}")
        if listed[0] is None:
            if any(name.startswith("hidden_states_norms.") for name in names):
                return "SwinBackbone"
            return CLASSES[any(name.startswith("classifier.") for name in names)]
        if listed[0] not in CLASSES:
            raise ConfigError(f"{self.model_type}: architectures: {listed[0]} is not supported; expected {one_of(CLASSES)[7:]}")
        return str(listed[0])

    def _head(self, wanted: Wanted, head: Any) -> dict[str, Any]:
        wanted.part("head", head, "classifier", "pooler", "feature-maps", None)
        if head is None:
            return {"architectures": ["SwinModel"]}
        if head.type == "feature-maps":
            wanted.part("head.norm", head.norm, "layer-norm")
            wanted.expect("head.norm.eps", head.norm.eps, EPS)
            wanted.expect("head.norm.bias", head.norm.bias, True)
            in_order = ["stem", *sorted(set(head.features) - {"stem"}, key=lambda name: int(name.removeprefix("stage")))]
            return {"architectures": ["SwinBackbone"], "out_features": [n for n in in_order if n in head.features]}
        wanted.part("head.pool", head.pool, "mean")
        if head.type == "pooler":
            wanted.expect("head.projection", head.projection, False)
            wanted.expect("head.norm", head.norm, None)
            return {"architectures": ["SwinModel"]}
        for name, value in {"norm": None, "dense": None, "bias": True}.items():
            wanted.expect(f"head.{name}", getattr(head, name), value)
        return {"architectures": ["SwinForImageClassification"], **names_of(wanted.family, head)}


def _numbers(fields: Fields, name: str, default: list[int]) -> list[int]:
    values = fields.take(name, default)
    whole = isinstance(values, (list, tuple)) and all(
        isinstance(value, int) and not isinstance(value, bool) and value > 0 for value in values
    )
    if not whole or not values:
        raise fields.error(name, f"expected a list of whole numbers above 0, got {values!r:.60}")
    return list(values)


def _maps(fields: Fields, stages: int) -> list[str]:
    """The feature maps of a backbone, by name or by number; the last one where neither is given."""
    known = ["stem", *(f"stage{number + 1}" for number in range(stages))]
    names = fields.take("out_features", fields.values.get("_out_features"))
    numbers = fields.take("out_indices", fields.values.get("_out_indices"))
    fields.left -= {"_out_features", "_out_indices"}
    if names is None and numbers is not None:
        try:
            names = [known[number] for number in numbers]
        except (TypeError, IndexError):
            raise fields.error("out_indices", f"expected numbers of {len(known)} maps, got {numbers!r:.60}") from None
    if names is None:
        names = known[-1:]
    if not isinstance(names, list) or not names or not all(name in known for name in names):
        raise fields.error("out_features", f"expected {one_of(known)[7:]}, got {names!r:.60}")
    return [name for name in known if name in names]


def _one_or_two(size: tuple[int, int]) -> int | list[int]:
    return size[0] if size[0] == size[1] else list(size)
