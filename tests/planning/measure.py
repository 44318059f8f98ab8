"""How much memory a real training takes on CPUs, beside what `zoo.plan` says: `python -m tests.planning.measure`.

Each training runs in processes of its own, which train a small model first, so that libraries and connections are there
before anything is measured. The peak is that of the second step and those after it (Linux only).
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
TEXT = {"embedding.vocabulary": 8000, "stack.depth": 8, "stack.width": 512, "stack.block.attention.heads": 8}
IMAGE: dict[str, Any] = {"stack.depth": 8}
EXPERTS = {"type": "mixture-of-experts", "experts": 4, "expert": {"type": "mlp", "activation": "gelu-tanh", "hidden": 1024}}
SPARSE = {**TEXT, "stack.block.feedforward": {**EXPERTS, "balance": 0.01}}
CASES: dict[str, dict[str, Any]] = {
    "single": {"model": "gpt2", "overrides": TEXT, "batch": 4, "tokens": 256},
    "single, checkpointing": {"model": "gpt2", "overrides": TEXT, "batch": 8, "tokens": 256, "checkpointing": True},
    "single, bf16-mixed": {"model": "gpt2", "overrides": TEXT, "batch": 8, "tokens": 256, "precision": "bf16-mixed"},
    "single, SGD": {"model": "vit-small", "overrides": IMAGE, "batch": 16, "optimizer": "sgd"},
    "ddp": {"model": "gpt2", "overrides": TEXT, "batch": 4, "tokens": 256, "strategy": "ddp"},
    "fsdp": {"model": "gpt2", "overrides": TEXT, "batch": 4, "tokens": 256, "strategy": "fsdp"},
    "fsdp, checkpointing": {
        "model": "gpt2", "overrides": TEXT, "batch": 4, "tokens": 256, "strategy": "fsdp", "checkpointing": True
    },
    "tensor": {"model": "gpt2", "overrides": TEXT, "batch": 4, "tokens": 256, "strategy": "tensor"},
    "expert": {"model": "gpt2", "overrides": SPARSE, "batch": 4, "tokens": 256, "strategy": {"data": 2, "expert": 2}},
    "expert, checkpointing": {
        "model": "gpt2", "overrides": SPARSE, "batch": 4, "tokens": 256, "strategy": {"data": 2, "expert": 2},
        "checkpointing": True,
    },
    "expert among 4": {
        "model": "gpt2", "overrides": SPARSE, "batch": 4, "tokens": 256, "strategy": {"data": 4, "expert": 2}
    },
    "experts, tensor": {"model": "gpt2", "overrides": SPARSE, "batch": 4, "tokens": 256, "strategy": {"tensor": 2}},
}  # fmt: skip
"""`batch` is that of each process."""
SIZES: dict[str, dict[str, int]] = {"ddp": {"data": 2}, "fsdp": {"data": 2}, "tensor": {"tensor": 2}}


def sizes(case: dict[str, Any]) -> tuple[int, int, int]:
    """Among how many processes data, work on one batch, and experts are divided."""
    strategy = case.get("strategy", "single")
    named = SIZES.get(strategy, {}) if isinstance(strategy, str) else strategy
    return named.get("data", 1), named.get("tensor", 1), named.get("expert", 1)


def measured(case: dict[str, Any]) -> int:
    """By how many bytes the first process of a training grows."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    data, tensor, _ = sizes(case)
    processes = data * tensor
    common = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": "0"}
    common = (common if processes > 1 else {}) | {
        "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1",
        "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536",  # what is freed goes back at once
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.planning.measure", json.dumps(case)]
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {} for rank in range(processes)]
    started = [
        subprocess.Popen(command, cwd=REPOSITORY, env={**os.environ, **common, **own}, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for own in ranks
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=300)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    if any(process.returncode for process in started):
        raise RuntimeError("\n".join(text[-3000:] for text in said))
    return int(said[0].splitlines()[-1])


def planned(case: dict[str, Any]) -> Any:
    """What the plan says of it."""
    from zoo.planning.plan import plan

    strategy, (data, tensor, _) = case.get("strategy", "single"), sizes(case)
    settings = {name: case[name] for name in ("tokens", "precision", "checkpointing", "optimizer") if name in case}
    found = plan(
        case["model"], case["overrides"], devices=data * tensor, strategy=strategy, batch=case["batch"] * data,
        accelerator="cpu", **settings,
    )  # fmt: skip
    estimate = found.estimates[0]
    assert estimate.micro_batch == case["batch"], estimate
    return estimate


def work(case: dict[str, Any]) -> int:
    """Trains, in one of the processes, and gives by how many bytes it grew."""
    import lightning
    import torch
    from torch.utils.data import DataLoader, Dataset

    import zoo
    from zoo.training import ZooModule
    from zoo.training.model_parallel import ModelParallel

    class Examples(Dataset):  # type: ignore[type-arg]
        def __init__(self, model: Any, tokens: int) -> None:
            self.config, self.tokens = model.config.embedding, tokens

        def __len__(self) -> int:
            return 1024

        def __getitem__(self, place: int) -> Any:
            if self.config.type == "tokens":
                return {"input_ids": torch.randint(0, self.config.vocabulary, (self.tokens,))}
            return torch.randn(self.config.channels, *self.config.image_size), 1

    class Peak(lightning.Callback):
        bytes = 0

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
            if index == 0:
                Path("/proc/self/clear_refs").write_text("5")
            else:
                self.bytes = status("VmHWM")

    def train(overrides: dict[str, Any], batch: int, tokens: int) -> int:
        model = zoo.build(case["model"], overrides)
        if case.get("checkpointing"):
            model.gradient_checkpointing()
        task = "causal-language" if model.config.embedding.type == "tokens" else "classification"
        module, peak = ZooModule(model, task, {"name": case.get("optimizer", "adamw"), "schedule": "constant"}), Peak()
        engines: dict[str, Any] = {"single": "auto", "ddp": "ddp"}
        strategy = case.get("strategy", "single")
        data, tensor, expert = sizes(case)
        engine = (engines.get(strategy) if isinstance(strategy, str) else None) or ModelParallel(
            data_parallel_size=data, tensor_parallel_size=tensor, expert_parallel_size=expert
        )
        trainer = lightning.Trainer(
            max_steps=4, accelerator="cpu", devices=data * tensor, strategy=engine, callbacks=[peak],
            precision=case.get("precision", "32-true"), logger=False, enable_progress_bar=False, enable_model_summary=False,
            enable_checkpointing=False,
        )  # fmt: skip
        loader = DataLoader(Examples(model, tokens), batch_size=batch)
        del model
        trainer.fit(module, loader)
        return peak.bytes

    small = {"stack.depth": 1, "stack.width": 64, "stack.block.attention.heads": 4}
    small |= {name: value for name, value in case["overrides"].items() if name == "stack.block.feedforward"}
    train({**small, "embedding.vocabulary": 100} if "tokens" in case else small, 2, 16)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = status("VmRSS")
    grown = train(case["overrides"], case["batch"], case.get("tokens", 0)) - before
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # or its threads may abort the process at its end
    return grown


def status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def main() -> None:
    """Prints the table of the docs, of all cases or of those named."""
    for name in sys.argv[1:] or CASES:
        estimate, found = planned(CASES[name]), measured(CASES[name])
        total = estimate.memory.total
        print(f"| {name} | {total / 1e6:.0f} MB | {found / 1e6:.0f} MB | {total / found - 1:+.1%} |", estimate.when, flush=True)


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1].startswith("{"):
        print(work(json.loads(sys.argv[1])))
    else:
        main()
