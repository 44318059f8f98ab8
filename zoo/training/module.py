"""A model with its task and its optimiser, for any `lightning.Trainer`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from zoo.config import Slot
from zoo.config.messages import config_error
from zoo.errors import ConfigError, ZooError
from zoo.extras import require
from zoo.model.base import Model
from zoo.registry import make
from zoo.task.base import Task
from zoo.training.optimizer import OptimizerConfig, make_optimizer, make_schedule

lightning: Any = require("lightning", "train", "training")


class ZooModule(lightning.LightningModule):
    """A LightningModule that trains a model of zoo.

    >>> module = ZooModule(zoo.build("vit-tiny"), task="classification", optimizer={"lr": 3e-4})
    >>> lightning.Trainer(max_epochs=3).fit(module, loader)

    Its checkpoints hold tensors and JSON text only, and `zoo.load` opens them.

    Args:
        model: what is trained; its parameters are those of `module.model`.
        task: the name, the fields or the config of a task, or a task.
        optimizer: an `OptimizerConfig`, or its fields (default: AdamW with a cosine).

    Raises:
        ConfigError: task or optimizer do not describe one.
    """

    def __init__(self, model: Model, task: Any = "classification", optimizer: Any = None) -> None:
        super().__init__()
        self.model = model
        self.task: Task = task if isinstance(task, Task) else make(_checked_task(task))
        self.optimizer = _checked_optimizer(optimizer)
        self.metrics = nn.ModuleDict(
            {stage: nn.ModuleDict(dict(self.task.metrics(model))) for stage in ("train_", "validation_", "test_")}
        )

    @classmethod
    def from_run(cls, run: Any, overrides: Mapping[str, Any] | None = None) -> ZooModule:
        """The module of a run's name, YAML file or config, with a new model."""
        from zoo.api import build
        from zoo.training.run import resolve_run

        config = resolve_run(run, overrides)
        torch.manual_seed(config.seed)
        return cls(build(config.model, weights=config.weights), config.task, config.optimizer)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """What the model gives."""
        return self.model(*inputs, **named)

    def training_step(self, batch: Any, index: int) -> Tensor:
        return self._step(batch, "train", index)

    def validation_step(self, batch: Any, index: int) -> Tensor:
        return self._step(batch, "validation", index)

    def test_step(self, batch: Any, index: int) -> Tensor:
        return self._step(batch, "test", index)

    def configure_optimizers(self) -> Any:
        precision, clipping = self.trainer.precision, self.trainer.gradient_clip_val
        # with float16 the fused optimiser unscales gradients itself, too late for clipping
        optimizer = make_optimizer(self.model, self.optimizer, not (precision == "16-mixed" and clipping))
        schedule = make_schedule(optimizer, self.optimizer, self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the whole config of the model, as JSON text; `zoo.load` reads it."""
        checkpoint["zoo_model"] = json.dumps(self.model.config.plain())

    def _step(self, batch: Any, stage: str, index: int) -> Tensor:
        step = self.task.step(self.model, batch)
        if stage == "train":
            self._check_loss(step.loss, index)
        size = len(step.targets)
        self.log(f"{stage}_loss", step.loss, on_step=False, on_epoch=True, batch_size=size, sync_dist=stage != "train")
        for name, metric in self.metrics[f"{stage}_"].items():  # type: ignore[operator, union-attr]
            metric.update(step.predictions.detach(), step.targets)
            self.log(f"{stage}_{name}", metric, on_step=False, on_epoch=True, batch_size=size)
        return step.loss

    def _check_loss(self, loss: Tensor, index: int) -> None:
        # looking at a number makes an accelerator wait, so that only now and then
        if (loss.device.type == "cpu" or index % 50 == 0) and not bool(torch.isfinite(loss)):
            raise ZooError(
                f"the loss became {float(loss.detach())} in epoch {self.current_epoch + 1}, step {index + 1}: lower "
                f"optimizer.lr ({self.optimizer.lr:g}), raise optimizer.warmup, or set trainer.gradient_clip_val"
            )


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
