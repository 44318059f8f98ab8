"""Checkpoints that are whole or not there: written beside their place, then put into it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from zoo.checkpoint.sharded import is_distributed
from zoo.errors import ZooError
from zoo.extras import require
from zoo.training.folder import UNFINISHED, reason, what_is_left
from zoo.training.regroup import whole_checkpoint
from zoo.training.swap import swap_in

io: Any = require("lightning.pytorch.plugins.io", "train", "training")


class CheckpointFile(io.TorchCheckpointIO):
    """Lightning's way to store a checkpoint, in one step: a kill or a full disk leaves the former one as it was."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes `checkpoint` to `path`.

        Raises:
            ZooError: it cannot be written, because the disk is full for example.
        """
        goal = Path(path)
        beside = goal.with_name(f".{goal.name}{UNFINISHED}")
        try:
            goal.parent.mkdir(parents=True, exist_ok=True)
            with beside.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            swap_in(beside, goal)
        except (OSError, RuntimeError) as error:  # torch hides an error of the disk in one of its own
            beside.unlink(missing_ok=True)
            raise ZooError(f"{goal} cannot be written: {reason(error)}; {what_is_left(goal)}") from None

    def load_checkpoint(self, path: Any, *arguments: Any, **named: Any) -> dict[str, Any]:
        """Reads what this wrote, or puts together what the processes of a divided model wrote."""
        if is_distributed(Path(path)):
            return whole_checkpoint(Path(path))
        state: dict[str, Any] = super().load_checkpoint(path, *arguments, **named)
        return state

    def remove_checkpoint(self, path: Any) -> None:
        """Removes a checkpoint, and what an interrupted save left beside it."""
        super().remove_checkpoint(path)
        Path(path).with_name(f".{Path(path).name}{UNFINISHED}").unlink(missing_ok=True)
