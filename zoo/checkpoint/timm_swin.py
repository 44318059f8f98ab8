"""timm's SwinTransformer, both ways."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from zoo.checkpoint.family import Family, Wanted
from zoo.checkpoint.fields import Fields
from zoo.checkpoint.rules import Rule, module_rules, rule
from zoo.checkpoint.swin import EPS, Stage, check_windows, checked_stages, numbered, pattern
from zoo.checkpoint.timm_config import merged_arguments
from zoo.stack.merging import merged_grid

POOLS = {"avg": "mean", "max": "max", "avgmax": "mean-max", "": "none"}
NORM = {"type": "layer-norm", "eps": EPS}


def _known(width: int, third: int, heads: int, window: Any = 7) -> dict[str, Any]:
    """The arguments that the name of an architecture stands for."""
    return {
        "patch_size": 4,
        "window_size": window,
        "embed_dim": width,
        "depths": [2, 2, third, 2],
        "num_heads": [heads * 2**stage for stage in range(4)],
    }


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "swin_tiny_patch4_window7_224": _known(96, 6, 3),
    "swin_small_patch4_window7_224": _known(96, 18, 3),
    "swin_base_patch4_window7_224": _known(128, 18, 4),
    "swin_base_patch4_window12_384": _known(128, 18, 4, 12),
    "swin_large_patch4_window7_224": _known(192, 18, 6),
    "swin_large_patch4_window12_384": _known(192, 18, 6, 12),
    "swin_s3_tiny_224": _known(96, 6, 3, [7, 7, 14, 7]),
    "swin_s3_small_224": _known(96, 18, 3, [14, 14, 14, 7]),
    "swin_s3_base_224": {**_known(96, 30, 3, [7, 7, 14, 7])},
}
"""timm's names and their arguments, as far as they differ from the defaults (timm 1.0.31); a test holds them against timm."""


class TimmSwin(Family):
    """`timm.models.swin_transformer.SwinTransformer`, as `timm.models.save_for_hf` writes it."""

    library = "timm"
    ignored = {
        "layers.*.relative_position_index": "it follows from the size of a window",
        "layers.*.attn_mask": "it follows from the size of the grid",
    }

    def recognises(self, values: Mapping[str, Any]) -> bool:
        return "architecture" in values and str(values["architecture"]) in ARCHITECTURES

    def tapped(self, config: Any) -> tuple[tuple[str, str], ...]:
        taps = [("patch_embed", "embedding")]
        for stage, block, layer in numbered(config):
            theirs, ours = f"layers.{stage}.blocks.{block}", f"stack.layers.{layer}"
            if block == 0 and stage > 0:
                taps.append((f"layers.{stage}.downsample", f"stack.merges.{stage - 1}"))
            taps += [
                (f"{theirs}.norm1", f"{ours}.attention_norm"),
                # only what is dropped in training sees the windows put together again
                (f"{theirs}.norm1 >> {theirs}.drop_path1", f"{ours}.attention"),
                (f"{theirs}.norm2", f"{ours}.feedforward_norm"),
                (f"{theirs}.mlp", f"{ours}.feedforward"),
                (theirs, ours),
            ]
        return (*taps, ("norm", "stack.final_norm"), ("head.fc", "head"))

    def read_config(self, values: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
        fields = merged_arguments(values, ARCHITECTURES)
        fields.require("embed_layer", "PatchEmbed", why="only plain patches are parts of ours")
        fields.require("norm_layer", why="its norms are layer norms")
        width, depths = fields.number("embed_dim", 96), fields.take("depths", [2, 2, 6, 2])
        if not isinstance(depths, (list, tuple)) or not depths or not all(_whole(depth) for depth in depths):
            raise fields.error("depths", f"expected a list of whole numbers above 0, got {depths!r:.60}")
        always = fields.flag("always_partition", False)
        dynamic = fields.flag("dynamic_img_size", False) | (not fields.flag("strict_img_size", True))
        image, patch = fields.size("img_size", 224), fields.size("patch_size", 4)
        dropout = fields.number("proj_drop_rate", 0.0, whole=False)
        heads = _each(fields, "num_heads", [3, 6, 12, 24], len(depths))
        attention = {
            "type": "window",
            "heads": heads[0],
            "bias": fields.flag("qkv_bias", True),
            "dropout": fields.number("attn_drop_rate", 0.0, whole=False),
            "position": "relative-2d",
            "small": "shift" if always or dynamic else "still-axis",
            "fill": "after-shift",
        }
        stages = _stages(fields, depths, heads, (image, patch), always, dynamic)
        head = {
            "type": "classifier",
            "classes": fields.number("num_classes", 1000),
            "pool": fields.choice("global_pool", POOLS, "avg"),
            "dropout": fields.number("drop_rate", 0.0, whole=False),
        }
        words = values.get("label_names") or (values.get("pretrained_cfg") or {}).get("label_names")
        if isinstance(words, list) and len(words) == head["classes"]:
            head["labels"] = [str(word) for word in words]
        model = {
            "type": "transformer",
            "init": {"type": "truncated-normal", "std": 0.02, "patches": "uniform"},
            "embedding": {
                "type": "patch",
                "image_size": image,
                "patch_size": patch,
                "channels": fields.number("in_chans", 3),
                "class_token": False,
                "position": None,
                "norm": NORM,
                "flexible": dynamic,
                "edges": "refuse" if dynamic else "cut",
            },
            "stack": {
                "type": "stages",
                "width": width,
                "block": {
                    "type": "residual", "order": "pre", "norm": NORM, "attention": attention,
                    "feedforward": {"type": "mlp", "dropout": dropout}, "dropout": dropout,
                },
                "stages": stages,
                "pattern": pattern(),
                "drop_path": fields.number("drop_path_rate", 0.1, whole=False),
                "merge_norm": NORM,
                "final_norm": NORM,
            },
            "head": head,
        }  # fmt: skip
        fields.finish()
        return model

    def write_config(self, config: Any) -> dict[str, Any]:
        wanted = Wanted("timm's SwinTransformer")
        stages = checked_stages(wanted, config)
        embedding, stack, head = config.embedding, config.stack, config.head
        wanted.part("embedding.position", embedding.position, None)
        if any(size % patch for size, patch in zip(embedding.image_size, embedding.patch_size)):
            wanted.expect("embedding.edges", embedding.edges, "cut")
        always, dynamic = _sizes(wanted, config, stages)
        first = stages[0]
        for stage in stages:
            block, attention, feedforward = stage.blocks[0], stage.attention, stage.feedforward
            wanted.equal(f"{stage.path}.norm", block.norm.eps, "the other norms", EPS)
            for name in ("bias", "dropout"):
                value = getattr(attention, name)
                wanted.equal(f"{stage.path}.attention.{name}", value, "the first stage", getattr(first.attention, name))
            wanted.expect(f"{stage.path}.feedforward.activation", feedforward.activation, "gelu")
            wanted.equal(f"{stage.path}.dropout", block.dropout, "the first stage", first.blocks[0].dropout)
            wanted.equal(f"{stage.path}.feedforward.dropout", feedforward.dropout, f"{stage.path}.dropout", block.dropout)
        wanted.expect("embedding.dropout", embedding.dropout, 0.0)
        wanted.training_only("embedding.patch_dropout", embedding.patch_dropout)
        wanted.equal("stack.final_norm", stack.final_norm, "embedding.norm", embedding.norm)
        wanted.part("head", head, "classifier")
        for name, value in {"norm": None, "dense": None, "bias": True}.items():
            wanted.expect(f"head.{name}", getattr(head, name), value)
        pools = {ours: theirs for theirs, ours in POOLS.items()}
        wanted.part("head.pool", head.pool, *pools)
        args = {
            "img_size": list(embedding.image_size),
            "patch_size": embedding.patch_size[0] if len(set(embedding.patch_size)) == 1 else list(embedding.patch_size),
            "in_chans": embedding.channels,
            "num_classes": head.classes,
            "global_pool": pools[head.pool.type],
            "embed_dim": stack.width,
            "depths": [stage.depth for stage in stages],
            "num_heads": [stage.attention.heads for stage in stages],
            "head_dim": [stage.attention.head_size or stage.width // stage.attention.heads for stage in stages],
            "window_size": [list(stage.attention.window) for stage in stages],
            "always_partition": always,
            "strict_img_size": not dynamic,
            "dynamic_img_size": dynamic,
            "mlp_ratio": [_ratio(stage) for stage in stages],
            "qkv_bias": first.attention.bias,
            "drop_rate": head.dropout,
            "proj_drop_rate": first.blocks[0].dropout,
            "attn_drop_rate": first.attention.dropout,
            "drop_path_rate": stack.drop_path,
        }
        pretrained = {
            "input_size": [embedding.channels, *embedding.image_size],
            "fixed_input_size": not dynamic,
            "num_classes": head.classes,
            "first_conv": "patch_embed.proj",
            "classifier": "head.fc",
        }
        values = {"architecture": _architecture(args), "num_classes": head.classes, "num_features": stack.output_width}
        values |= {"global_pool": args["global_pool"], "model_args": args, "pretrained_cfg": pretrained}
        if head.labels:
            values["label_names"] = list(head.labels)
        return values

    def rules(self, config: Any, names: Collection[str] = ()) -> Iterable[Rule]:
        old = "layers.0.downsample.reduction.weight" in names  # where merging ends a stage instead of beginning one
        yield from module_rules("patch_embed.proj", "embedding")
        yield from module_rules("patch_embed.norm", "embedding.norm")
        for stage, block, layer in numbered(config):
            theirs, ours = f"layers.{stage}.blocks.{block}", f"stack.layers.{layer}"
            yield from module_rules(f"{theirs}.norm1", f"{ours}.attention_norm")
            for name in ("weight", "bias"):
                parts = [f"{ours}.attention.{part}.{name}" for part in ("query", "key", "value")]
                yield rule(f"{theirs}.attn.qkv.{name}", *parts)
            yield rule(f"{theirs}.attn.relative_position_bias_table", f"{ours}.attention.position.table")
            yield from module_rules(f"{theirs}.attn.proj", f"{ours}.attention.output")
            yield from module_rules(f"{theirs}.norm2", f"{ours}.feedforward_norm")
            yield from module_rules(f"{theirs}.mlp.fc1", f"{ours}.feedforward.up")
            yield from module_rules(f"{theirs}.mlp.fc2", f"{ours}.feedforward.down")
        for stage in range(len(config.stack.stages) - 1):
            theirs = f"layers.{stage if old else stage + 1}.downsample"
            yield from module_rules(f"{theirs}.norm", f"stack.merges.{stage}.norm")
            yield rule(f"{theirs}.reduction.weight", f"stack.merges.{stage}.reduction.weight")
        yield from module_rules("norm", "stack.final_norm")
        yield from module_rules("head" if old else "head.fc", "head.output")

    def plain_names(self, names: Iterable[str]) -> dict[str, str]:
        return {name: name for name in names}


def _stages(fields: Fields, depths: Any, heads: list[Any], size: Any, always: bool, dynamic: bool) -> list[dict[str, Any]]:
    """The stages, with windows no larger than the grid of an image of the trained size, as timm builds them."""
    windows = fields.take("window_size", 7)
    if not isinstance(windows, (list, tuple)) or (len(windows) == 2 and all(_whole(side) for side in windows)):
        windows = [windows] * len(depths)
    sizes, ratios = _each(fields, "head_dim", None, len(depths)), _each(fields, "mlp_ratio", 4.0, len(depths))
    grid = tuple(length // side for length, side in zip(*(_pair(each) for each in size)))
    stages = []
    if len(windows) != len(depths):
        raise fields.error("window_size", f"{len(windows)} sizes for {len(depths)} stages")
    for number, (depth, window) in enumerate(zip(depths, windows)):
        window = _pair(window)
        if len(window) != 2 or not all(_whole(side) for side in window):
            raise fields.error("window_size", f"expected whole numbers above 0, got {window!r:.60}")
        attention: dict[str, Any] = {"window": list(window), "head_size": sizes[number]}
        whole = [length <= side for length, side in zip(grid, window)]
        if not always:
            attention["window"] = [min(pair) for pair in zip(grid, window)]
            if dynamic and all(whole):
                attention["shift"] = False
            elif dynamic and any(whole) and depth > 1:
                raise fields.error("dynamic_img_size", f"windows that are shifted along one axis only, as in stage {number}")
        change = {"attention": attention, "feedforward": {"ratio": float(ratios[number])}}
        stages.append({"depth": depth, "heads": heads[number], "block": change})
        grid = merged_grid((grid[0], grid[1]))
    return stages


def _sizes(wanted: Wanted, config: Any, stages: list[Stage]) -> tuple[bool, bool]:
    """Whether timm is to shift windows in grids of one window too, and whether it is to take images of other sizes.

    A model that takes every size, but others than that it was trained on in another way than timm, becomes one that takes
    the trained size alone.
    """
    from zoo.attention.window import WindowAttention

    rule = stages[0].blocks[-1].attention
    dynamic = config.embedding.flexible and config.embedding.edges == "refuse" and rule.fill == "after-shift"
    always = any(
        side >= length and shift > 0
        for stage in stages
        for block in stage.blocks
        for side, length, shift in zip(stage.attention.window, stage.grid, block.attention.windows(stage.grid).shift)
    )
    for stage in stages:
        if not always:
            for side, length in zip(stage.attention.window, stage.grid):
                wanted.expect(f"{stage.path}.attention.window", side, *([side] if side <= length else [length]))
        small = "shift" if always else "still-axis"
        theirs = WindowAttention.Config(heads=1, window=stage.attention.window, small=small, fill="after-shift")
        check_windows(wanted, stage, theirs, any_size=False)
        if dynamic and any(block.attention.shift for block in stage.blocks):
            wanted.expect(f"{stage.path}.attention.small", stage.attention.small, "shift")
    return always, dynamic


def _architecture(args: Mapping[str, Any]) -> str:
    """timm's name for these sizes, or that of its smallest where it has none."""
    side = args["window_size"][0][0]
    for name, known in ARCHITECTURES.items():
        if (known["embed_dim"], known["depths"], known["window_size"]) == (args["embed_dim"], args["depths"], side):
            return name
    return next(iter(ARCHITECTURES))


def _each(fields: Fields, name: str, default: Any, stages: int) -> list[Any]:
    """A value for each stage, of a list or of one value."""
    value = fields.take(name, default)
    values = list(value) if isinstance(value, (list, tuple)) else [value] * stages
    if len(values) < stages or any(isinstance(each, (bool, str, list, dict)) for each in values):
        raise fields.error(name, f"expected a number, or one for each of {stages} stages, got {value!r:.60}")
    return values


def _ratio(stage: Stage) -> float:
    """A ratio that timm, which rounds down, turns back into the inner width."""
    hidden = stage.feedforward.inner(stage.width)
    ratio = hidden / stage.width
    return ratio if int(stage.width * ratio) == hidden else (hidden + 0.5) / stage.width


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _pair(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value, value)
