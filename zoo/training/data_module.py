"""A data part as Lightning wants it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoo.data.base import Data, Examples, check
from zoo.extras import require
from zoo.registry import make

lightning: Any = require("lightning", "train", "training")


class DataModule(lightning.LightningDataModule):
    """The loaders of a data part, checked before the first step; augmentation runs where the model is.

    >>> trainer.fit(ZooModule.from_run("vit-tiny-digits"), DataModule.from_run("vit-tiny-digits"))
    """

    def __init__(self, data: Data) -> None:
        super().__init__()
        self.data = data

    @classmethod
    def from_run(cls, run: Any, overrides: Mapping[str, Any] | None = None) -> DataModule:
        """The data of a run's name, YAML file or config."""
        from zoo.training.run import resolve_run

        return cls(make(resolve_run(run, overrides).data))

    def setup(self, stage: str | None = None) -> None:
        """Looks through examples that lie in memory.

        Raises:
            DataError: none, values that are no numbers, a label that is no class.
        """
        names = ("train", "validation") if stage == "fit" else (stage or "test",)
        classes = getattr(self.data.config, "classes", None)
        for name in names:
            examples = None if name == "validation" and not self.data.config.validation else self.data.split(name)  # type: ignore[arg-type]
            if isinstance(examples, Examples) and classes is not None:
                check(examples, classes, f"data {self.data.config.type!r}, {name} part")  # type: ignore[attr-defined]

    def train_dataloader(self) -> Any:
        return self.data.loader("train")

    def val_dataloader(self) -> Any:
        return self.data.loader("validation") if self.data.config.validation else []

    def test_dataloader(self) -> Any:
        return self.data.loader("test")

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return self.data.augment(batch) if self.trainer is not None and self.trainer.training else batch
