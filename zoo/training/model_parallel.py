"""Lightning's ModelParallelStrategy, with checkpoints that survive a kill and that run no code when they are opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.api import CheckpointException

from zoo.checkpoint.sharded import EXTRAS, check
from zoo.checkpoint.tensors import open_pickle
from zoo.errors import WeightsError, ZooError
from zoo.extras import require
from zoo.training.folder import UNFINISHED, reason, what_is_left
from zoo.training.regroup import by_name, regrouped, saved_groups, saved_states, without_groups
from zoo.training.swap import remove, swap_in

strategies: Any = require("lightning.pytorch.strategies", "train", "training")


class ModelParallel(strategies.ModelParallelStrategy):
    """FSDP2, tensor and expert parallel; a checkpoint is a folder to which every process writes its share.

    Args:
        expert_parallel_size: among how many of the processes of `data_parallel_size` experts are divided.
        sizes: the other arguments of Lightning's strategy.
    """

    def __init__(self, *, expert_parallel_size: int = 1, **sizes: Any) -> None:
        super().__init__(**sizes)
        self.expert_parallel_size = expert_parallel_size

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
        """Reads a checkpoint that this strategy wrote, among as many processes or others, or the file of an undivided model.

        Raises:
            WeightsError: it is damaged, does not fit the model and its optimiser, or asks to run code, which torch's own
                reader would do.
        """
        path = Path(self.broadcast(checkpoint_path))
        if path.is_file():
            return self._load_whole(path)
        check(path)
        try:
            return self._load(path)
        except CheckpointException as error:
            raise _misfit(path, _why(error)) from None

    def _load(self, path: Path) -> dict[str, Any]:
        from torch.distributed.checkpoint import state_dict as states
        from torch.distributed.checkpoint.state_dict_loader import load

        model = states.get_model_state_dict(self.model)
        load({"state_dict": model}, checkpoint_id=path)
        self.model.load_state_dict(model)
        for optimizer in self.optimizers:
            own: Any = states.get_optimizer_state_dict(self.model, optimizer)
            known = saved_states(path)
            if wanted := {name: state for name, state in own["state"].items() if name in known}:
                load({"optimizer_0": {"state": wanted}}, checkpoint_id=path)
            own["param_groups"] = regrouped(own["param_groups"], saved_groups(path), path)
            options = states.StateDictOptions(cpu_offload=True)
            states.set_optimizer_state_dict(self.model, optimizer, optim_state_dict=own, options=options)
            self._forget(optimizer, known)
        return without_groups(dict(open_pickle(path / EXTRAS)))

    def _load_whole(self, path: Path) -> dict[str, Any]:
        """Every process reads the whole file, and keeps its share."""
        from torch.distributed.checkpoint import state_dict as states

        checkpoint, options = dict(open_pickle(path)), states.StateDictOptions(full_state_dict=True)
        try:
            states.set_model_state_dict(self.model, checkpoint.pop("state_dict"), options=options)
            options = states.StateDictOptions(full_state_dict=True, strict=False)  # some may have no state yet
            for optimizer, saved in zip(self.optimizers, checkpoint.pop("optimizer_states")):
                saved = by_name(self.lightning_module.trained_names(), saved, path)
                own: Any = states.get_optimizer_state_dict(self.model, optimizer)
                groups = regrouped(own["param_groups"], saved["param_groups"], path)
                whole = {"state": saved["state"], "param_groups": groups}
                states.set_optimizer_state_dict(self.model, optimizer, optim_state_dict=whole, options=options)
                self._forget(optimizer, set(saved["state"]))
        except (KeyError, RuntimeError) as error:
            raise _misfit(path, reason(error)) from None
        return without_groups(checkpoint)

    def _forget(self, optimizer: Any, known: set[str]) -> None:
        """Parameters that took part in no step yet, as those of another task, begin with the first one in which they do."""
        for name, parameter in self.lightning_module.named_parameters():
            if name not in known:
                optimizer.state.pop(parameter, None)


def _misfit(path: Path, why: str) -> WeightsError:
    return WeightsError(
        f"{path}: the state in it does not fit model and optimiser: {why}; go on with the trainer.strategy "
        "with which it was written"
    )


def _why(error: Any) -> str:
    """What went wrong in the first of the processes in which anything did."""
    first, _ = next(iter(error.failures.values()))
    return reason(first)
