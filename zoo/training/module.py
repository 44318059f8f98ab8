"""A model with its task and its optimiser, for any `lightning.Trainer`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from zoo.api import build
from zoo.checkpoint.load import start_from
from zoo.config import Slot
from zoo.config.messages import config_error
from zoo.config.resolve import resolve
from zoo.errors import ConfigError, ZooError, did_you_mean
from zoo.extras import require
from zoo.inspect.hooks import matches
from zoo.model.routing import count_together
from zoo.registry import make
from zoo.task.base import Task
from zoo.task.gather import mean_over_all
from zoo.training.optimizer import OptimizerConfig, make_optimizer, make_schedule, parameter_groups
from zoo.training.regroup import by_place
from zoo.training.run import whole_model
from zoo.training.sharding import clip_gradients, is_sharded, shard, sum_gradients

lightning: Any = require("lightning", "train", "training")


class ZooModule(lightning.LightningModule):
    """A LightningModule that trains a model of zoo.

    >>> module = ZooModule(zoo.build("vit-tiny"), task="classification", optimizer={"lr": 3e-4})
    >>> lightning.Trainer(max_epochs=3).fit(module, loader)

    Its checkpoints hold tensors and JSON text only, and `zoo.load` opens them.

    Args:
        model: what is trained, or what `zoo.build` takes: a preset's name, a file, fields or a config; its parameters
            are those of `module.model`.
        task: the name, the fields or the config of a task, or a task.
        optimizer: an `OptimizerConfig`, or its fields (default: AdamW with a cosine).
        frozen: parts and parameters that stay as they are, by patterns of their names, such as `embedding`.

    Raises:
        ConfigError: task or optimizer do not describe one, or a pattern names nothing.
    """

    def __init__(self, model: Any, task: Any = "classification", optimizer: Any = None, frozen: Sequence[str] = ()) -> None:
        super().__init__()
        self.model: Any = model if isinstance(model, nn.Module) else build(whole_model(model))
        freeze(self.model, frozen)
        self.frozen = tuple(frozen)
        self.task: Task = task if isinstance(task, Task) else make(_checked_task(task))
        self.optimizer = _checked_optimizer(optimizer)
        self.metrics = nn.ModuleDict(
            {stage: nn.ModuleDict(dict(self.task.metrics(self.model))) for stage in ("train_", "validation_", "test_")}
        )

    @classmethod
    def from_run(cls, run: Any, overrides: Mapping[str, Any] | None = None) -> ZooModule:
        """The module of a run's name, YAML file or config, with a new model."""
        from zoo.training.run import resolve_run

        config = resolve_run(run, overrides)
        torch.manual_seed(config.seed)
        fields = with_class_names(config.model, config.data)
        model = build(fields) if config.weights is None else start_from(config.weights, fields)
        if config.activation_checkpointing:
            model.gradient_checkpointing()
        module = cls(model, config.task, config.optimizer, config.frozen)
        if config.compile:
            model.compile()
        return module

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """What the model gives."""
        return self.model(*inputs, **named)

    def training_step(self, batch: Any, index: int) -> Tensor:
        return self._step(batch, "train", index)

    def validation_step(self, batch: Any, index: int) -> Tensor:
        return self._step(batch, "validation", index)

    def test_step(self, batch: Any, index: int) -> Tensor:
        return self._step(batch, "test", index)

    def configure_model(self) -> None:
        """Divides the model among the processes of a `ModelParallelStrategy`; with any other strategy nothing is to do."""
        if self.device_mesh is not None:
            shard(self.model, self.device_mesh, getattr(self.trainer.strategy, "expert_parallel_size", 1))
            self.task.group = self.device_mesh["data_parallel"].get_group()

    def on_fit_start(self) -> None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            mesh = self.device_mesh
            count_together(self.model, torch.distributed.group.WORLD if mesh is None else mesh["data_parallel"].get_group())

    def on_fit_end(self) -> None:
        count_together(self.model, None)  # no process group is copied or stored with a model

    def optimizer_step(self, *arguments: Any, **named: Any) -> None:
        super().optimizer_step(*arguments, **named)
        self.task.after_step(self.model)

    def on_after_backward(self) -> None:
        sum_gradients(self.model)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Lightning's clipping, also of gradients that are divided among processes in several ways."""
        if gradient_clip_val and is_sharded(self.model):
            parameters = [each for group in optimizer.param_groups for each in group["params"]]
            algorithm = getattr(gradient_clip_algorithm, "value", gradient_clip_algorithm)  # Lightning's is an enumeration
            clip_gradients(parameters, gradient_clip_val, algorithm or "norm")
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def configure_optimizers(self) -> Any:
        precision, clipping = self.trainer.precision, self.trainer.gradient_clip_val
        # with float16 the fused optimiser unscales gradients itself, too late for clipping
        optimizer = make_optimizer(self.model, self.optimizer, not (precision == "16-mixed" and clipping))
        optimizer.register_load_state_dict_pre_hook(lambda each, state: by_place(self, each, state))
        schedule = make_schedule(optimizer, self.optimizer, self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def trained_names(self) -> list[str]:
        """The names of what is trained, in the order in which the optimiser of an undivided model has it."""
        names = {id(parameter): name for name, parameter in self.named_parameters()}
        return [names[id(each)] for group in parameter_groups(self.model, self.optimizer) for each in group["params"]]

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """One step of the schedule; timm's are told how many steps were made."""
        if hasattr(scheduler, "step_update"):
            scheduler.step_update(self.trainer.global_step)
        else:
            scheduler.step()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the whole config of the model, as JSON text, which `zoo.load` reads, and what `load_from_checkpoint` needs.

        Raises:
            ZooError: a weight is no number any more; the checkpoint before stays.
        """
        self._check_weights()
        plain = self.model.config.plain()
        checkpoint["zoo_model"] = json.dumps(plain)
        arguments = {"model": plain, "task": self.task.config.plain(), "optimizer": self.optimizer.plain()}
        checkpoint[self.CHECKPOINT_HYPER_PARAMS_KEY] = {**arguments, "frozen": list(self.frozen)}

    def _step(self, batch: Any, stage: str, index: int) -> Tensor:
        step = self.task.step(self.model, batch)
        if stage == "train":
            self._check_loss(step.loss, index)
        size = len(step.targets)
        self.log(f"{stage}_loss", step.loss, on_step=False, on_epoch=True, batch_size=size, sync_dist=True)
        if step.task is not None:
            self.log(f"{stage}_{step.task}/loss", step.loss, on_step=False, on_epoch=True, batch_size=size, sync_dist=True)
        for name, metric in step.measured(self.metrics[f"{stage}_"]).items():  # type: ignore[arg-type]
            metric.update(step.predictions.detach(), step.targets)
            self.log(f"{stage}_{name}", metric, on_step=False, on_epoch=True, batch_size=size)
        return mean_over_all(step, self.task.group) if stage == "train" else step.loss

    def _check_loss(self, loss: Tensor, index: int) -> None:
        # looking at a number makes an accelerator wait, so that only now and then
        if (loss.device.type == "cpu" or index % 50 == 0) and not bool(torch.isfinite(loss)):
            raise ZooError(
                f"the loss became {float(loss.detach())} in epoch {self.current_epoch + 1}, step {index + 1}: lower "
                f"optimizer.lr ({self.optimizer.lr:g}), raise optimizer.warmup, or set trainer.gradient_clip_val"
            )

    def _check_weights(self) -> None:
        for name, parameter in self.model.named_parameters():
            part = parameter.to_local() if hasattr(parameter, "to_local") else parameter  # of a sharded one, what is here
            if not bool(torch.isfinite(part).all()):
                raise ZooError(
                    f"{name} is not finite any more: lower optimizer.lr "
                    f"({self.optimizer.lr:g}), raise optimizer.warmup, or set trainer.gradient_clip_val"
                )


def with_class_names(model: Any, data: Any) -> Any:
    """A model's config whose classifier knows what its classes are called, if the data say; a saved model then does too."""
    head = model.head
    if getattr(head, "type", None) != "classifier" or head.labels is not None:
        return model
    names = make(data).class_names
    return resolve(model, {"head.labels": names}) if names is not None and len(names) == head.classes else model


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Keeps parameters from being trained: those that a pattern names, and those in a module that it names.

    Args:
        patterns: names as of hook points, such as `embedding` or `stack.layers.[0-3]` (see `zoo.inspect.hooks`).

    Raises:
        ConfigError: a pattern that names nothing, or something else than patterns.
    """
    if isinstance(patterns, str):
        raise ConfigError(f"frozen: expected a list of patterns, got {patterns!r}")
    paths = {name: name.split(".") for name in dict(model.named_parameters())}
    for pattern in patterns:
        wanted = tuple(pattern.split("."))
        matched = [
            name for name, path in paths.items() if any(matches(tuple(path[:end]), wanted) for end in range(1, len(path) + 1))
        ]
        if not matched:
            places = {".".join(path[:end]) for path in paths.values() for end in range(1, len(path) + 1)}
            raise ConfigError(f"frozen: {pattern!r} names no part or parameter{did_you_mean(pattern, sorted(places))}")
        for name in matched:
            model.get_parameter(name).requires_grad_(False)


def _checked_task(task: Any) -> Any:
    try:
        return Slot("task").validate(task)
    except ValidationError as error:
        raise config_error(error, "task") from None
    except ValueError as error:
        raise ConfigError(f"task: {error}") from None


def _checked_optimizer(optimizer: Any) -> OptimizerConfig:
    if isinstance(optimizer, OptimizerConfig):
        return optimizer
    try:
        return OptimizerConfig.model_validate(optimizer or {})
    except ValidationError as error:
        raise config_error(error, "optimizer") from None
