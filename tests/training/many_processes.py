"""What `test_parallel` runs in 1, 2 or 4 processes: `python -m tests.training.many_processes FOLDER NAME...`, with RANK set.

Each name is a model and an engine, `sparse-expert`; the losses of 20 steps and the gradients of the first, which are those of
the whole batch, are written to FOLDER. One group of processes does many, since starting one costs more than training in it.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

import zoo
from zoo.feedforward.mixture_of_experts import MixtureOfExperts
from zoo.model.routing import count_together
from zoo.registry import make
from zoo.task.causal_language import CausalLanguage
from zoo.task.gather import mean_over_all
from zoo.training import ZooModule
from zoo.training.data_module import DataModule
from zoo.training.expert_parallel import divide_experts
from zoo.training.run import resolve_run
from zoo.training.trainer import make_trainer

STEPS, BATCH = 20, 32
WORLD = int(os.environ.get("WORLD_SIZE", "1"))
VIT: dict[str, Any] = {
    "extends": "vit-tiny",
    "init": {"type": "truncated-normal", "std": 0.1},
    "embedding": {"image_size": 8, "patch_size": 2, "channels": 1},
    "stack": {"width": 32, "depth": 2, "block": {"attention": {"heads": 4}, "feedforward": {"hidden": 64}}},
    "head": {"classes": 10},
}
EXPERTS: dict[str, Any] = {
    "type": "mixture-of-experts",
    "experts": 4,
    "top_k": 2,
    "expert": {"type": "gated", "hidden": 24},
    "shared": {"type": "mlp", "hidden": 16},
    "balance": 0.05,
    "z_loss": 0.01,
}
SPARSE: dict[str, Any] = {"feedforward": EXPERTS}
RELATIVE: dict[str, Any] = {"type": "relative-bucket", "distance": 16, "std": 0.5}
WINDOWS = {"type": "window", "heads": 4, "window": [2, 2], "position": {"type": "relative-2d", "std": 0.5}}
MOVED = [{}, {"attention": {"shift": True}}]
TOWER: dict[str, Any] = {"width": 32, "depth": 1, "block": {"attention": {"heads": 2}, "feedforward": {"hidden": 64}}}
TWO_WAYS: dict[str, Any] = {
    "type": "multi-task",
    "init": {"type": "truncated-normal", "std": 0.1},
    "embeddings": {"image": {"type": "patch", "image_size": 8, "patch_size": 2, "channels": 1, "class_token": False}},
    "stack": {
        "width": 32,
        "depth": 2,
        "final_norm": "rms-norm",
        "block": {"norm": "rms-norm", "attention": {"type": "full", "heads": 4}, "feedforward": EXPERTS},
    },
    "heads": {name: {"type": "classifier", "classes": 10, "pool": "mean"} for name in ("one", "other")},
    "tasks": {name: {"from": "image", "to": name} for name in ("one", "other")},
}
MODELS: dict[str, dict[str, Any]] = {
    "dense": {"model": VIT},
    "sparse": {"model": {**VIT, "stack": {**VIT["stack"], "depth": 3, "pattern": [SPARSE, {}, SPARSE]}}},
    # few tokens for each expert, first choices only: many tokens come too late, and some experts get none
    "capacity": {
        "model": {
            **VIT,
            "stack": {
                **VIT["stack"],
                "pattern": [{}, {"feedforward": {**EXPERTS, "top_k": 1, "normalise": False, "capacity": 4, "shared": None}}],
            },
        }
    },
    "relative": {"model": {**VIT, "stack": {**VIT["stack"], "position": RELATIVE}}},
    "alibi": {"model": {**VIT, "stack": {**VIT["stack"], "position": "alibi"}}},
    "windows": {
        "model": {**VIT, "stack": {**VIT["stack"], "block": {**VIT["stack"]["block"], "attention": WINDOWS}, "pattern": MOVED}}
    },
    "dual": {
        "model": {
            "extends": "clip-vit-b32",
            "vision": {"embedding": {"image_size": 8, "patch_size": 4, "channels": 1}, "stack": TOWER, "head": {"size": 16}},
            "text": {"embedding": {"vocabulary": 260, "position": {"length": 64}}, "stack": TOWER,
                     "head": {"size": 16, "pool": {"type": "end-of-text", "id": 258}}},
        },
        "data": {"type": "captioned-digits"},
        "task": "contrastive",
    },
    "multi": {
        "model": TWO_WAYS,
        "data": {"type": "multi-task", "tasks": {name: {"type": "digits"} for name in ("one", "other")}, "steps": STEPS},
        "task": {"type": "multi-task", "tasks": dict.fromkeys(("one", "other"), "classification")},
    },
}  # fmt: skip
ENGINES: dict[str, Any] = {
    "one": "auto",
    "ddp": "ddp",
    "unused": "ddp_find_unused_parameters_true",
    "data": {"data": WORLD},
    "tensor": {"tensor": WORLD},
    "expert": {"expert": WORLD},
    "data_tensor": {"data": 2, "tensor": 2},
    "expert_tensor": {"data": 2, "tensor": 2, "expert": 2},
    "data_expert": {"data": 4, "expert": 2},
}


def run_of(model: str, engine: str) -> dict[str, Any]:
    """A run of the batches that one process would have."""
    strategy = ENGINES[engine]
    if isinstance(strategy, dict):
        groups = strategy.get("data") or strategy.get("expert", 1)
        strategy = {"type": "model-parallel", **strategy}
    else:
        groups = WORLD
    data = {"type": "digits", **MODELS[model].get("data", {})}
    size = BATCH // groups
    data = (
        {**data, "tasks": {name: {**each, "batch_size": size} for name, each in data["tasks"].items()}}
        if "tasks" in data
        else {**data, "batch_size": size}
    )
    return {
        "type": "train",
        **MODELS[model],
        "data": data,
        # with the usual eps AdamW makes steps of rounding alone, as in the keys' bias, whose gradient is zero
        "optimizer": {"name": "adamw", "lr": 5e-3, "options": {"eps": 1e-4}},
        "trainer": {
            "accelerator": "cpu",
            "max_steps": STEPS,
            "strategy": strategy,
            "gradient_clip_val": 1.0,
            **({} if isinstance(strategy, dict) else {"devices": WORLD}),
        },
    }


class Watch(lightning.Callback):
    """Keeps each step's loss, the mean over the processes, and the first step's gradients, made whole."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.gradients: dict[str, torch.Tensor] = {}

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        if not self.losses:
            for name, parameter in module.model.named_parameters():
                gradient = parameter.grad
                if gradient is not None:
                    whole = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
                    self.gradients[name] = whole.detach().clone()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        loss = outputs["loss"].detach().clone()
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(loss)
            loss /= torch.distributed.get_world_size()
        self.losses.append(float(loss))


def idle() -> None:
    """One expert takes all tokens, of inputs that need no gradient: the other processes' experts have none."""
    torch.manual_seed(0)
    config = MixtureOfExperts.Config(experts=4, top_k=1, router_bias=True, expert={"type": "mlp", "hidden": 8})
    whole = MixtureOfExperts(config, width=8)
    for parameter in whole.parameters():
        nn.init.normal_(parameter, std=0.5)
    nn.init.constant_(whole.router.bias[:1], 50.0)
    part, x = copy.deepcopy(whole), torch.randn(2 * WORLD, 5, 8)
    mesh = init_device_mesh("cpu", (WORLD, 1), mesh_dim_names=("expert", "tensor_parallel"))
    divide_experts(part.experts, mesh["expert"], mesh["tensor_parallel"], mesh["expert"])
    rank = torch.distributed.get_rank()
    wanted, found = whole(x), part(x.chunk(WORLD)[rank])
    torch.testing.assert_close(found, wanted.chunk(WORLD)[rank])
    wanted.square().mean().backward()
    found.square().mean().backward()
    expected = dict(whole.experts.named_parameters())
    for name, parameter in part.experts.named_parameters():
        torch.testing.assert_close(parameter.grad.full_tensor(), expected[name].grad)


def uneven() -> None:
    """Texts of different lengths: processes have different numbers of tokens to guess, and routers that count those of all."""
    sparse = {"type": "mixture-of-experts", "experts": 4, "expert": {"type": "gated", "hidden": 8}, "balance": 0.1}
    change = {"embedding.vocabulary": 50, "stack.width": 16, "stack.depth": 1, "stack.block.attention.heads": 2}
    whole = zoo.build("gpt-mini", {**change, "stack.block.feedforward": sparse}).double().train()
    part, task = copy.deepcopy(whole), make(CausalLanguage.Config())
    lengths = torch.tensor([9, 2, 3, 2, 7, 2, 2, 2])[: 2 * WORLD]
    ids, real = torch.randint(0, 50, (2 * WORLD, 9)), (torch.arange(9) < lengths[:, None]).long()
    batch = {"input_ids": ids, "attention_mask": real}
    expected = task.step(whole, batch).loss
    expected.backward()
    rows = slice(2 * torch.distributed.get_rank(), 2 * torch.distributed.get_rank() + 2)
    count_together(part, torch.distributed.group.WORLD)
    found = mean_over_all(task.step(part, {name: each[rows] for name, each in batch.items()}))
    found.backward()
    wanted = dict(whole.named_parameters())
    for name, given in (("loss", found.detach()), *((name, each.grad) for name, each in part.named_parameters())):
        torch.distributed.all_reduce(given)
        goal = expected.detach() if name == "loss" else wanted[name].grad
        torch.testing.assert_close(given / WORLD, goal, rtol=1e-6, atol=1e-7)  # routers count in float32


def main(folder: Path, names: list[str]) -> None:
    for name in names:
        model, _, engine = name.partition("-")
        run, watch = resolve_run(run_of(model, engine)), Watch()
        lightning.seed_everything(0, verbose=False)
        module = ZooModule.from_run(run)
        trainer = make_trainer(
            run.trainer, callbacks=[watch], logger=False, enable_progress_bar=False, enable_model_summary=False,
            enable_checkpointing=False, default_root_dir=folder,
        )  # fmt: skip
        data = DataModule.from_run(run)
        setattr(data.data, "augment", lambda batch: batch)  # each process draws phrasings of its own, like dropout
        trainer.fit(module, data)
        zoo.save(module.model, folder / name)
        if trainer.is_global_zero:
            torch.save(watch.gradients, folder / f"{name}.pt")
            (folder / f"{name}.json").write_text(json.dumps(watch.losses))
            print(f"{name}: {watch.losses[0]:.4f} -> {watch.losses[-1]:.4f}", flush=True)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    for logger in ("lightning.pytorch", "torch.distributed.tensor._redistribute"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    main(Path(sys.argv[1]), sys.argv[2:])
    if WORLD > 1:
        idle()
        uneven()
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    print("done")
