"""The optimiser and its learning rate: a config, and what timm and torch make of it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError
from torch import nn
from torch.optim import Optimizer, lr_scheduler

from zoo.config import Config
from zoo.errors import ConfigError, unknown
from zoo.extras import require


class OptimizerConfig(Config):
    """How weights follow gradients."""

    kind: ClassVar[str] = "optimizer"

    name: str = "adamw"
    """The optimiser, by the name that timm gives it (adamw, sgd, lamb, lion, adafactor, muon, ...)."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """The highest learning rate."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """Decay of weight matrices; biases, norms, tokens and position tables are never decayed."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] | None = None
    """How much of the past the two averages of Adam and its kin keep (default: the optimiser's own)."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the optimiser, such as `eps` or `nesterov`."""
    fused: bool | None = None
    """Whether torch's fused implementation is used (default: wherever there is one)."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """How the learning rate falls after the warm-up: along half a cosine until the end, or not at all."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of all steps in which the learning rate rises from nearly zero, linearly."""
    final_lr: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Where the cosine ends, as a share of `lr`."""

    @field_validator("name")
    @classmethod
    def _known_name(cls, name: str) -> str:
        names = require("timm.optim", "train", "training").list_optimizers()
        if name not in names:
            raise PydanticCustomError("config", str(unknown("optimizer", name, names)).replace("{", "("))  # type: ignore[arg-type]
        return name


def make_optimizer(module: nn.Module, config: OptimizerConfig, fused_allowed: bool = True) -> Optimizer:
    """The optimiser of all parameters of `module` that are trained.

    Raises:
        ConfigError: `options` holds an argument that this optimiser does not take.
    """
    library = require("timm.optim", "train", "training")
    options: dict[str, Any] = dict(config.options)
    if config.betas is not None:
        options["betas"] = config.betas
    # torch's default AdamW costs five times the fused one on the CPU
    offered = "fused" in inspect.signature(library.get_optimizer_class(config.name, bind_defaults=False)).parameters
    if config.fused if config.fused is not None else offered and fused_allowed:
        options["fused"] = True
    groups = library.param_groups_weight_decay(module, config.weight_decay, no_weight_decay_list=list(never_decayed(module)))
    try:
        optimizer: Optimizer = library.create_optimizer_v2(
            groups, config.name, lr=config.lr, weight_decay=config.weight_decay, **options
        )
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise ConfigError(f"optimizer: {config.name!r} cannot be made: {error}") from None
    return optimizer


def make_schedule(optimizer: Optimizer, config: OptimizerConfig, steps: float) -> lr_scheduler.LRScheduler:
    """The learning rate over `steps` steps of the optimiser: a linear warm-up, then a cosine or a constant.

    Raises:
        ConfigError: a cosine without an end.
    """
    if math.isinf(steps):
        if config.schedule == "cosine" or config.warmup:
            what = "schedule: a cosine" if config.schedule == "cosine" else "warmup: a share of all steps"
            raise ConfigError(f"optimizer.{what} needs an end; set trainer.max_epochs or trainer.max_steps")
        steps = 1
    warmup = round(config.warmup * steps)
    rest = max(int(steps) - warmup, 1)
    main: lr_scheduler.LRScheduler
    if config.schedule == "cosine":
        main = lr_scheduler.CosineAnnealingLR(optimizer, rest, eta_min=config.final_lr * config.lr)
    else:
        main = lr_scheduler.ConstantLR(optimizer, factor=1.0)
    if warmup == 0:
        return main
    rise = lr_scheduler.LinearLR(optimizer, start_factor=1.0 / (warmup + 1), total_iters=warmup)
    return lr_scheduler.SequentialLR(optimizer, [rise, main], milestones=[warmup])


def never_decayed(module: nn.Module) -> Iterator[str]:
    """The names of parameters that weight decay would harm: biases, gains, learned tokens, position tables."""
    for place, part in module.named_modules():
        is_position = getattr(getattr(type(part), "Config", None), "kind", "") == "position"
        for name, parameter in part.named_parameters(recurse=False):
            if parameter.ndim <= 1 or is_position or name == "bias" or "token" in name:
                yield f"{place}.{name}" if place else name


__all__ = ["OptimizerConfig", "make_optimizer", "make_schedule", "never_decayed"]
