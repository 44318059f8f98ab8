"""Lightning's ModelParallelStrategy, with checkpoints that survive a kill and that run no code when they are opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.api import CheckpointException

from zoo.checkpoint.sharded import check
from zoo.errors import WeightsError, ZooError
from zoo.extras import require
from zoo.training.folder import UNFINISHED, reason, what_is_left
from zoo.training.swap import remove, swap_in

strategies: Any = require("lightning.pytorch.strategies", "train", "training")


class ModelParallel(strategies.ModelParallelStrategy):
    """FSDP2 and tensor parallel; a checkpoint is a folder to which every process writes its share."""

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Writes beside `filepath`; when all processes are done, the first puts it into its place.

        Raises:
            ZooError: it cannot be written, because the disk is full for example; what was there stays.
        """
        goal = Path(self.broadcast(filepath))
        fresh = goal.with_name(f".{goal.name}{UNFINISHED}")
        if self.is_global_zero:
            remove(fresh)
        self.barrier()
        try:
            super().save_checkpoint(checkpoint, fresh, storage_options)
        except CheckpointException as error:  # which is no Exception; every process gets it
            if self.is_global_zero:
                remove(fresh)
            raise ZooError(f"{goal} cannot be written: {_why(error)}; {what_is_left(goal)}") from None
        self.barrier()
        if self.is_global_zero:
            swap_in(fresh, goal)
        self.barrier()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads a checkpoint that this strategy wrote.

        Raises:
            WeightsError: it is damaged, does not fit the model and its optimiser, or asks to run code, which torch's own
                reader would do.
        """
        path = Path(self.broadcast(checkpoint_path))
        if path.is_dir():
            check(path)
        try:
            state: dict[str, Any] = super().load_checkpoint(path, weights_only=True)
        except CheckpointException as error:
            raise WeightsError(
                f"{path}: the state in it does not fit model and optimiser: {_why(error)}; go on with the trainer.strategy "
                "with which it was written"
            ) from None
        return state


def _why(error: Any) -> str:
    """What went wrong in the first of the processes in which anything did."""
    first, _ = next(iter(error.failures.values()))
    return reason(first)
