"""The optimiser and its learning rate: a config, and what timm and torch make of it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError
from torch import nn
from torch.optim import Optimizer

from zoo.config import Config
from zoo.errors import ConfigError, unknown
from zoo.extras import require
from zoo.training.sharding import FUSED, is_sharded, one_mesh_each


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
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """How much smaller the learning rate of each layer is than that of the layer above, such as 0.75; the head has
    `lr` itself (default: the same for all). Usual in fine-tuning; Clark et al. 2020, https://arxiv.org/abs/2003.10555."""
    schedule: Literal["cosine", "linear", "constant", "one-cycle"] = "cosine"
    """How the learning rate falls after the warm-up: along half a cosine or a line until the end, or not at all.
    `one-cycle` rises and falls along cosines and moves the momentum the other way (Smith 2018,
    https://arxiv.org/abs/1803.09820)."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of all steps in which the learning rate rises from nearly zero, linearly."""
    final_lr: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Where the schedule ends, as a share of `lr`."""

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
    offered = offered and (config.name in FUSED or not is_sharded(module))
    if config.fused if config.fused is not None else offered and fused_allowed:
        options["fused"] = True
    groups = one_mesh_each(parameter_groups(module, config))
    if not groups:
        raise ConfigError("optimizer: nothing is trained, because every parameter is frozen")
    try:
        optimizer: Optimizer = library.create_optimizer_v2(
            groups, config.name, lr=config.lr, weight_decay=config.weight_decay, **options
        )
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise ConfigError(f"optimizer: {config.name!r} cannot be made: {error}") from None
    return optimizer


def make_schedule(optimizer: Optimizer, config: OptimizerConfig, steps: float) -> Any:
    """The learning rate over `steps` steps of the optimiser: a schedule of timm, or torch's one-cycle.

    Raises:
        ConfigError: a schedule that falls, without an end.
    """
    if math.isinf(steps):
        if config.schedule != "constant" or config.warmup:
            what = f"schedule: {config.schedule!r}" if config.schedule != "constant" else "warmup: a share of all steps"
            raise ConfigError(f"optimizer.{what} needs an end; set trainer.max_epochs or trainer.max_steps")
        steps = 1
    steps = max(int(steps), 1)
    warmup = round(config.warmup * steps)
    if config.schedule == "one-cycle":
        return _one_cycle(optimizer, config, steps, warmup)
    schedule, _ = require("timm.scheduler", "train", "training").create_scheduler_v2(
        optimizer,
        "poly" if config.schedule == "linear" else config.schedule,
        num_epochs=max(steps - warmup, 1),
        updates_per_epoch=1,  # so that "epochs" are steps
        step_on_epochs=False,
        decay_rate=1.0,  # the power of "poly"
        min_lr=config.final_lr * config.lr,
        warmup_epochs=warmup,
        warmup_lr=config.lr / (warmup + 1),
        warmup_prefix=True,
    )
    schedule.step_update(0)  # timm sets the groups' own shares only when it steps
    return schedule


def _one_cycle(optimizer: Optimizer, config: OptimizerConfig, steps: int, warmup: int) -> Any:
    from torch.optim.lr_scheduler import OneCycleLR

    highest = [config.lr * group.get("lr_scale", 1.0) for group in optimizer.param_groups]
    start = 25.0  # torch's default: the first rate is a 25th of the highest
    return OneCycleLR(
        optimizer,
        highest,
        total_steps=steps + 1,  # Lightning steps once more after the last batch
        pct_start=warmup / steps if warmup else 0.3,
        cycle_momentum="betas" in optimizer.defaults or "momentum" in optimizer.defaults,
        div_factor=start,
        final_div_factor=1.0 / (start * config.final_lr) if config.final_lr else 1e4,
    )


def parameter_groups(module: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """The parameters that are trained, by weight decay and, if asked for, by layer."""
    library = require("timm.optim", "train", "training")
    spared = list(never_decayed(module))
    if config.layer_decay is None:
        return list(library.param_groups_weight_decay(module, config.weight_decay, no_weight_decay_list=spared))
    groups = library.param_groups_layer_decay(
        _Layers(module), config.weight_decay, no_weight_decay_list=spared, layer_decay=config.layer_decay
    )
    return list(groups)


class _Layers:
    """What timm asks of a module when it decays by layer: the embedding is the lowest layer, the head the highest."""

    def __init__(self, module: nn.Module) -> None:
        self.named_parameters = module.named_parameters

    def group_matcher(self, coarse: bool) -> dict[str, Any]:
        # 99999 is timm's word for "with the group before"; what nothing matches, such as the head, comes last
        return {"stem": r"^embedding\b", "blocks": [(r"^stack\.layers\.(\d+)", None), (r"^stack\.(?!layers)", (99999,))]}


def never_decayed(module: nn.Module) -> Iterator[str]:
    """The names of parameters that weight decay would harm: biases, gains, learned tokens, position tables."""
    for place, part in module.named_modules():
        is_position = getattr(getattr(type(part), "Config", None), "kind", "") == "position"
        for name, parameter in part.named_parameters(recurse=False):
            if parameter.ndim <= 1 or is_position or name == "bias" or "token" in name:
                yield f"{place}.{name}" if place else name


__all__ = ["OptimizerConfig", "make_optimizer", "make_schedule", "never_decayed", "parameter_groups"]
