"""What `test_engines` runs in two processes: `python -m tests.training.two_processes FOLDER`, with RANK and so on set.

One pair of processes does it all, since starting one costs more than training in it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader

import zoo
from zoo.training import ZooModule
from zoo.training.processes import rank
from zoo.training.run import train

HALF = {"data.batch_size": 64}
ENGINES: dict[str, dict[str, Any]] = {
    "ddp": {"trainer.strategy": "ddp", "trainer.devices": 2, **HALF},
    "fsdp": {"trainer.strategy": {"type": "model-parallel", "data": 2}, **HALF},
    "tensor": {"trainer.strategy": {"type": "model-parallel", "tensor": 2}},
}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": {"name": "sgd", "lr": 0.1}, "trainer.gradient_clip_val": 0.5},
    # with the usual eps AdamW makes whole steps of gradients that are nothing but rounding, such as that of the keys' bias
    "adamw": {"optimizer": {"name": "adamw", "lr": 1e-3, "options": {"eps": 1e-3}}},
}
RUN: dict[str, Any] = {
    "type": "train",
    "model": {
        "extends": "vit-tiny",
        "embedding": {"image_size": 8, "patch_size": 2, "channels": 1},
        "stack": {"width": 48, "depth": 2, "block": {"attention": {"heads": 4, "qk_norm": "rms-norm"}}},
        "head": {"classes": 10},
    },
    "data": {"type": "digits", "batch_size": 128, "validation": 0.1},
    "trainer": {"max_epochs": 1, "accelerator": "cpu", "limit_train_batches": 6},
}
LONG: dict[str, Any] = {"optimizer": {"schedule": "constant"}, "trainer.max_epochs": 2, "trainer.limit_train_batches": 2}


def main(folder: Path) -> None:
    for engine, settings in ENGINES.items():
        for optimizer, change in OPTIMIZERS.items():
            where = {"folder": str(folder / f"{engine}-{optimizer}")}
            result = train(RUN, {**settings, **change, **where}, progress=False)
            assert result.metrics == json.loads((result.folder / "result.json").read_text())  # on both processes
    whole_and_resumed(folder)
    dropout_with_tensor_parallel(folder)


def whole_and_resumed(folder: Path) -> None:
    """A sharded training of two epochs, and one that is ended after the first and resumed."""
    for name, changes in (("whole", [{}]), ("resumed", [{"trainer.max_epochs": 1}, {}])):
        for number, change in enumerate(changes):
            fields = {**ENGINES["fsdp"], **LONG, **change, "folder": str(folder / name)}
            result = train(RUN, fields, progress=False, resume=number > 0)
            torch.distributed.barrier()
            if rank() == 0 and number + 1 < len(changes):
                (result.folder / "result.json").unlink()  # so that it counts as unfinished
            torch.distributed.barrier()


def dropout_with_tensor_parallel(folder: Path) -> None:
    """In a Trainer of one's own, where nobody seeds the processes alike."""
    torch.manual_seed(rank())
    change = {"stack.block.dropout": 0.2, "stack.block.attention.dropout": 0.2, "stack.drop_path": 0.2}
    fields = {name: value for name, value in RUN["model"].items() if name != "extends"}
    module = ZooModule(zoo.build(zoo.get_config("vit-tiny", fields), change), optimizer={"lr": 1e-2})
    strategy = lightning.pytorch.strategies.ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=2)
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", devices=2, strategy=strategy, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, default_root_dir=folder,
    )  # fmt: skip
    images = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    trainer.fit(module, DataLoader(list(zip(images, torch.arange(32) % 10)), batch_size=8))
    own = {name: value.detach() for name, value in module.model.named_parameters() if not hasattr(value, "device_mesh")}
    both: list[Any] = [None, None]
    torch.distributed.all_gather_object(both, own)
    assert own and all(torch.equal(both[0][name], both[1][name]) for name in own)
    zoo.save(module.model, folder / "own")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    print("done")
