"""Train mode: with one dropout site at 1 in turn, chance is gone and its place can be compared exactly."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from zoo.checkpoint.load import load_model
from zoo.checkpoint.save import family_for
from zoo.config.resolve import merge_overrides, validate
from zoo.errors import ConfigError
from zoo.verification.cases import cases
from zoo.verification.compare import answered, error
from zoo.verification.reference import Library, redraw
from zoo.verification.shrink import shrink

SITES: dict[str, tuple[str, ...]] = {
    "embedding and block dropout": ("embedding.dropout", "stack.block.dropout"),
    "embedding, block and head dropout": ("embedding.dropout", "stack.block.dropout", "head.dropout"),
    "embedding dropout": ("embedding.dropout",),
    "block dropout": ("stack.block.dropout",),
    "block and feed-forward dropout": ("stack.block.dropout", "stack.block.feedforward.dropout"),
    "attention dropout": ("stack.block.attention.dropout",),
    "attention dropout of texts": ("text.stack.block.attention.dropout",),
    "attention dropout of images": ("vision.stack.block.attention.dropout",),
    "embedding and block dropout of both sides": tuple(
        f"{side}.{field}" for side in ("encoder", "decoder") for field in ("embedding.dropout", "stack.block.dropout")
    ),
    "attention dropout of both sides": (
        "encoder.stack.block.attention.dropout",
        *(f"decoder.stack.block.{part}.dropout" for part in ("attention", "cross_attention")),
    ),
    "feed-forward dropout of both sides": tuple(f"{side}.stack.block.feedforward.dropout" for side in ("encoder", "decoder")),
    "drop path": ("stack.drop_path",),
    "head dropout": ("head.dropout",),
    "both head dropouts": ("head.dropout", "head.dense_dropout"),
}
"""Fields that are set to 1 together; a reference that cannot say a combination is not asked."""


def training_errors(library: Library, config: Any, seed: int) -> dict[str, float]:
    """For each site that the library has, the largest difference of any output in train mode, on a small model."""
    small, found = shrink(config, stages=2), {}  # two blocks, whose shares of dropped paths are 0 and 1
    sites = dict.fromkeys(field for group in SITES.values() for field in group)
    still = {field: 0.0 for field in sites if _at(small, field)}  # chance of any other site would hide the one at 1
    for name, fields in SITES.items():
        try:
            changed = validate(merge_overrides(small.model_dump(), still | dict.fromkeys(fields, 1.0)))
            family, values = family_for(changed, library.name)
            if family.read_config(values, ["pooler.dense.weight"]) is None:
                continue
        except ConfigError:
            continue
        if not _says(family, values, changed, fields):
            continue
        worst = _error(library, values, changed, seed)
        if worst is not None:
            found[name] = worst
    return found


def _says(family: Any, values: dict[str, Any], config: Any, fields: tuple[str, ...]) -> bool:
    """Whether their config still says, when read back, what ours says about every dropout."""
    sites = {field for group in SITES.values() for field in group}
    back = validate(family.read_config(values, ["pooler.dense.weight"]))
    return all(_at(back, field) == _at(config, field) for field in sites)


def _at(config: Any, path: str) -> Any:
    for step in path.split("."):
        config = getattr(config, step, 0.0)
    return config


def _error(library: Library, values: dict[str, Any], config: Any, seed: int) -> float | None:
    """The largest difference; None where the reference itself divides by the share that it keeps, which is nothing."""
    with tempfile.TemporaryDirectory() as folder:
        theirs = library.build(values, config).double()
        redraw(theirs, 1.5, seed)
        library.save(theirs, Path(folder))
        # timm leaves its dropouts out of what it saves; otherwise the model is the one that was saved
        changes = config.model_dump() if library.name == "timm" else None
        ours = load_model(folder, changes, None, torch.float64)
    inputs = next(iter(cases(config, library.name, seed).values()))
    with torch.no_grad():
        answers, mine = library.call(theirs.train(), inputs), answered(ours.train()(**inputs))
    if not all(bool(torch.isfinite(answer).all()) for answer in answers.values()):
        return None
    return max(error(mine[name], answer) for name, answer in answers.items())
