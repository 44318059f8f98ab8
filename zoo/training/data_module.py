"""A data part as Lightning wants it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from zoo.data.base import Data
from zoo.extras import require
from zoo.registry import make
from zoo.training.evaluate import checked
from zoo.training.randomness import seed_step

lightning: Any = require("lightning", "train", "training")


class DataModule(lightning.LightningDataModule):
    """The loaders of a data part, checked before the first step; augmentation runs where the model is.

    >>> trainer.fit(ZooModule.from_run("vit-tiny-digits"), DataModule.from_run("vit-tiny-digits"))

    Args:
        data: a data part, or the name, the fields or the config of one.
        seed: makes the order of the examples and all random numbers of a step follow from this number, the epoch and
            the batch, so that a resumed training goes on as if there had been no break (default: torch's own).

    Raises:
        ConfigError: data do not describe any.
    """

    def __init__(self, data: Any, seed: int | None = None) -> None:
        super().__init__()
        self.data: Data = data if isinstance(data, Data) else make(checked("data", data))
        self.seed = seed
        self.resumed = (0, 0)  # epochs and batches that were done when the training was saved from which it goes on
        self.loader: Any = None  # of the training part

    @classmethod
    def from_run(cls, run: Any, overrides: Mapping[str, Any] | None = None) -> DataModule:
        """The data of a run's name, YAML file or config."""
        from zoo.training.run import resolve_run

        config = resolve_run(run, overrides)
        return cls(make(config.data), config.seed)

    def setup(self, stage: str | None = None) -> None:
        """Looks through the examples, as far as that costs no reading of files.

        Raises:
            DataError: none, values that are no numbers, a label that is no class.
        """
        module: Any = getattr(self.trainer, "lightning_module", None)
        if hasattr(module, "task"):
            module.task.adapt(self.data)
        classes = getattr(getattr(module, "model", None), "classes", None)
        classes = classes if classes is not None else getattr(self.data.config, "classes", None)
        names: tuple[Any, ...] = ("train", "validation") if stage == "fit" else (stage or "test",)
        for name in names:
            if self.data.has(name):
                self.data.check(name, classes)

    def train_dataloader(self) -> Any:
        epoch, batches = max(self.resumed, self._done())
        seed = torch.initial_seed() if self.seed is None else self.seed
        loader = self.data.loader("train", seed=seed, skip=batches, shard=self._shard())
        if hasattr(loader.sampler, "set_epoch"):
            loader.sampler.set_epoch(epoch)  # Lightning does so too, but not before a stream was asked for its first batch
        self.loader = loader
        return loader

    def val_dataloader(self) -> Any:
        return self.data.loader("validation") if self.data.has("validation") else []

    def test_dataloader(self) -> Any:
        return self.data.loader("test")

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if self.seed is not None and self.trainer is not None and self.trainer.training:
            loop = self.trainer.fit_loop
            epoch, index = loop.epoch_progress.current.processed, loop.epoch_loop.batch_progress.current.ready
            seed_step(self.seed, epoch, index, self._shard()[0], self.trainer.strategy.root_device)
        return batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return self.data.augment(batch) if self.trainer is not None and self.trainer.training else batch

    def state_dict(self) -> dict[str, int]:
        """Where the training is."""
        epochs, batches = self._done()
        return {"epochs": epochs, "batches": batches}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Where the training from which this one goes on was; Lightning asks for loaders before it knows that itself."""
        self.resumed = state_dict["epochs"], state_dict["batches"]
        if hasattr(getattr(self.loader, "sampler", None), "skip"):  # made already, where a divided model is restored later
            self.loader.sampler.set_epoch(state_dict["epochs"])
            self.loader.sampler.skip = state_dict["batches"] * self.loader.batch_size

    def _shard(self) -> tuple[int, int]:
        """Which of how many shares of the examples is for this process: processes that divide the work on one batch have
        the same one, and draw the same random numbers."""
        sampled = None if self.trainer is None else self.trainer.distributed_sampler_kwargs
        return (sampled["rank"], sampled["num_replicas"]) if sampled else (0, 1)

    def _done(self) -> tuple[int, int]:
        """How many epochs are done, and how many batches of the next."""
        if self.trainer is None or self.trainer.state.fn != "fit":
            return 0, 0
        epochs = self.trainer.fit_loop.epoch_progress.current
        batches = self.trainer.fit_loop.epoch_loop.batch_progress
        if epochs.processed >= epochs.started:  # between two epochs
            return epochs.processed, 0
        return (epochs.processed + 1, 0) if batches.is_last_batch else (epochs.processed, batches.current.processed)
