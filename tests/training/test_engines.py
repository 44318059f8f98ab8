"""Several processes give what one gives: the same weights, the same figures, one checkpoint, and one line when they fail."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import zoo
from tests.training.two_processes import ENGINES, OPTIMIZERS, RUN
from zoo.errors import ConfigError
from zoo.feedforward.mlp import MLP
from zoo.training.run import resolve_run, train
from zoo.training.sharding import misfits
from zoo.training.swap import restore, swap_in

REPOSITORY = Path(__file__).parents[2]
FSDP = {"trainer.strategy": {"type": "model-parallel", "data": 2}}
TENSOR = {"trainer.strategy": {"type": "model-parallel", "tensor": 2}}


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **more}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what two processes trained in every way."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "tests.training.two_processes", str(folder)]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": "0"}
    both = [
        subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=environment(RANK=rank, LOCAL_RANK=rank, **common),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in ("0", "1")
    ]
    try:
        said = [process.communicate(timeout=300)[0] for process in both]
    finally:
        for process in both:
            process.kill()
    assert all(text.endswith("done\n") for text in said), "\n".join(text[-3000:] for text in said)
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process trains with the same batches."""
    folder = tmp_path_factory.mktemp("one")
    return {name: train(RUN, {**change, "folder": str(folder / name)}, progress=False) for name, change in OPTIMIZERS.items()}


def difference(first: Any, second: Any) -> float:
    theirs = dict(zoo.load(second).named_parameters())
    return max(float((value - theirs[name]).detach().abs().max()) for name, value in zoo.load(first).named_parameters())


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_give_the_weights_of_one(trained: Path, alone: dict[str, Any], engine: str, optimizer: str) -> None:
    assert difference(alone[optimizer].folder / "model", trained / f"{engine}-{optimizer}" / "model") < 1e-6
    start = zoo.build(resolve_run(RUN).model)
    moved = dict(zoo.load(alone[optimizer].folder / "model").named_parameters())
    assert all(not torch.allclose(value, moved[name], atol=1e-4) for name, value in start.named_parameters() if "up" in name)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("engine", ENGINES)
def test_metrics_are_those_of_all_examples(trained: Path, alone: dict[str, Any], engine: str, optimizer: str) -> None:
    found = json.loads((trained / f"{engine}-{optimizer}" / "result.json").read_text())
    wanted = alone[optimizer].metrics
    assert found.keys() == wanted.keys()
    for name in wanted.keys() - {"seconds"}:
        assert found[name] == pytest.approx(wanted[name], rel=1e-5), name
    assert (trained / f"{engine}-{optimizer}" / "curve.png").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["fsdp", "tensor"])
def test_a_sharded_checkpoint_is_the_gathered_model(trained: Path, engine: str) -> None:
    folder = trained / f"{engine}-adamw"
    assert (folder / "last.ckpt").is_dir() and (folder / "last.ckpt" / "__1_0.distcp").is_file()
    assert difference(folder / "last.ckpt", folder / "model") == 0.0
    assert zoo.load(folder / "best.ckpt").num_parameters() == zoo.load(folder / "model").num_parameters()
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_a_sharded_training_is_resumed_bit_by_bit(trained: Path) -> None:
    assert difference(trained / "whole" / "model", trained / "resumed" / "model") == 0.0
    assert json.loads((trained / "resumed" / "result.json").read_text())["epochs"] == 2


@pytest.mark.slow
def test_a_trainer_of_ones_own(trained: Path) -> None:
    """Dropout under tensor parallelism was compared there; here, that all processes' shares were saved."""
    model = zoo.load(trained / "own")
    assert model.stack.layers[0].attention.query.weight.shape == (48, 48)


def test_the_command_starts_its_second_process(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(RUN))
    words = ["trainer.strategy=ddp", "trainer.devices=2", "data.batch_size=64", "trainer.max_epochs=1", "folder=run"]
    answer = subprocess.run(
        [sys.executable, "-m", "zoo", "train", "run.yaml", *words],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count("accuracy") == 1 and answer.stdout.startswith("run: accuracy")
    assert answer.stderr.count("epoch 1 of 1") == len(answer.stderr.splitlines()) == 1
    assert {"model", "last.ckpt", "result.json", "metrics.csv"} <= {path.name for path in (tmp_path / "run").iterdir()}


FAILING = """
import os, sys, time
from pathlib import Path
from zoo.cli import main
from zoo.errors import ZooError
from zoo.task.classification import Classification

step, calls, rank = Classification.step, [], int(os.environ.get("LOCAL_RANK", 0))

def failing(*arguments):
    calls.append(1)
    if len(calls) == 3:
        how = os.environ["HOW"]
        if how == "wait":
            Path(f"waiting-{rank}").touch()
            time.sleep(0 if rank else 60)
        if how == "killed" and rank == 1:
            os.kill(os.getpid(), 9)
        if how in ("all", str(rank)):
            raise ZooError(f"{how} had enough")
    return step(*arguments)

Classification.step = failing
main()
"""


def start_failing(folder: Path, how: str, *words: str) -> subprocess.Popen[str]:
    (folder / "script.py").write_text(FAILING)
    (folder / "run.yaml").write_text(yaml.safe_dump(RUN))
    common = ["train", "run.yaml", "folder=run", "trainer.devices=2", "data.batch_size=64"]
    return subprocess.Popen(
        [sys.executable, "script.py", *common, *(words or ["trainer.strategy=ddp"])],
        cwd=folder, env=environment(HOW=how), start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


def ended(process: subprocess.Popen[str]) -> str:
    """What a training said on its end, after which none of its processes is left."""
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1, errors
    for _ in range(100):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return errors
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    raise AssertionError("a process is left")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        pytest.param("1", "zoo: 1 had enough\n", marks=pytest.mark.slow),
        pytest.param("0", "zoo: 0 had enough\n", marks=pytest.mark.slow),
        pytest.param("all", "zoo: all had enough\n", marks=pytest.mark.slow),
        pytest.param("killed", "zoo: another process of this training ended without a word", marks=pytest.mark.slow),
    ],
)
def test_what_fails_in_one_process_ends_both_with_one_line(tmp_path: Path, how: str, message: str) -> None:
    errors = ended(start_failing(tmp_path, how))
    assert errors.startswith(message) and len(errors.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), ("trainer.strategy.type=model-parallel", "trainer.strategy.data=2")])
def test_ctrl_c_ends_both_with_one_line(tmp_path: Path, words: tuple[str, ...]) -> None:
    process = start_failing(tmp_path, "wait", *words)
    for _ in range(600):
        if (tmp_path / "waiting-0").exists():
            break
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    errors = ended(process)
    assert errors.startswith("zoo: interrupted before the first save") and len(errors.splitlines()) == 1


@pytest.mark.slow
def test_two_by_two(tmp_path: Path, alone: dict[str, Any]) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(RUN))
    words = ["trainer.strategy.type=model-parallel", "trainer.strategy.data=2", "trainer.strategy.tensor=2"]
    optimizer = ["optimizer.name=adamw", "optimizer.lr=1e-3", "optimizer.options.eps=1e-3"]
    answer = subprocess.run(
        [sys.executable, "-m", "zoo", "train", "run.yaml", *words, *optimizer, "data.batch_size=64", "folder=run"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    for name in ("model", "last.ckpt"):
        assert difference(alone["adamw"].folder / "model", tmp_path / "run" / name) < 1e-6


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"trainer.strategy": "dpp"}, r"trainer\.strategy: unknown strategy 'dpp'; did you mean 'ddp'\?"),
        ({"trainer.strategy": "model_paralel"}, r"trainer\.strategy: .* did you mean 'model-parallel'\?"),
        ({"trainer.strategy": "ddp_spawn"}, r"trainer\.strategy: 'ddp_spawn' brings no figures back .* use 'ddp'"),
        ({"trainer.strategy": {"type": "modelparalel"}}, r"trainer\.strategy\.type: expected 'model-parallel'"),
        ({"trainer.strategy": {"type": "model-parallel", "dat": 2}}, r"did you mean 'data'\?"),
        ({"trainer.strategy": {"type": "model-parallel", "data": 0}}, r"strategy\.data: expected greater than 0"),
        ({"trainer.strategy": "model-parallel"}, r"trainer\.strategy\.data: this field is needed"),
        ({"trainer.strategy": "model-parallel", "trainer.devices": 1}, r"one process has nothing to divide"),
        ({**FSDP, "trainer.devices": 4}, r"trainer\.devices: data 2 x tensor 1 are 2 processes, and not 4"),
        ({**FSDP, "averaging": 0.9}, r"averaging: not with a model that is divided"),
        ({**FSDP, "optimizer.name": "adafactor"}, r"optimizer\.name: 'adafactor' is not for .* expected one of adamw, adam"),
        ({**TENSOR, "optimizer.name": "lamb"}, r"optimizer\.name: 'lamb' is not for a model that is divided"),
        ({**FSDP, "optimizer": {"name": "sgd", "fused": True}}, r"optimizer\.fused: torch cannot fuse 'sgd'"),
        ({"trainer.strategy": {"type": "model-parallel", "tensor": 3}},
         r"tensor: stack\.layers\.0\.attention\.heads: 4 cannot be divided evenly among 3 processes"),
        ({**TENSOR, "model.stack.block.attention.kv_heads": 1}, r"attention\.kv_heads: 1 cannot be divided evenly among 2"),
        ({**TENSOR, "model.stack.block.attention.output_norm": "layer-norm"}, r"attention\.output_norm needs all columns"),
        ({**TENSOR, "model.stack.block.feedforward.norm": "layer-norm"}, r"feedforward\.norm needs all columns at once"),
        ({**TENSOR, "model.stack.block.feedforward.hidden": 99}, r"feedforward\.up: 99 columns cannot be divided evenly"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        resolve_run(RUN, overrides)
    assert "\n" not in str(caught.value)


def test_sizes_that_follow_from_devices() -> None:
    from zoo.training.trainer import parallel

    for fields, groups in (
        ({"strategy": "model-parallel", "devices": 4}, 4),
        ({"strategy": {"type": "model-parallel", "tensor": 2}, "devices": "4", "num_nodes": 2}, 4),
        ({"strategy": {"type": "model-parallel", "tensor": 2}}, 1),
    ):
        strategy = parallel(fields)
        assert strategy is not None and strategy.groups(fields) == groups
    assert parallel({"strategy": "ddp"}) is None and parallel({}) is None


def test_a_part_must_say_all_of_what_it_holds() -> None:
    class Own(MLP):
        def __init__(self, config: Any, *, width: int) -> None:
            super().__init__(config, width=width)
            self.gain = nn.Parameter(torch.ones(width))

    class Odd(Own):
        sharding = {**MLP.sharding, "gain": "colum"}

    class Right(Own):
        sharding = {**MLP.sharding, "gain": "same"}

    def model(part: Any) -> nn.Module:
        return nn.ModuleDict({"feedforward": part(MLP.Config(), width=8)})

    assert "feedforward.gain: Own.sharding says nothing of it" in next(misfits(model(Own), 2))
    assert "feedforward.gain: 'colum' is no way to divide it; did you mean 'column'?" in next(misfits(model(Odd), 2))
    assert list(misfits(model(Right), 2)) == list(misfits(model(Own), 1)) == []
    assert "no part of this model says" in next(misfits(nn.Linear(2, 2), 2))


def test_a_folder_is_replaced_or_as_it_was(tmp_path: Path) -> None:
    def folder(name: str, content: str) -> Path:
        path = tmp_path / name
        path.mkdir()
        (path / "file").write_text(content)
        return path

    goal = folder("last.ckpt", "old")
    swap_in(folder("fresh", "new"), goal)
    assert (goal / "file").read_text() == "new" and [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    goal.rename(tmp_path / ".last.ckpt.former")  # a kill between the two renames
    restore(tmp_path)
    assert (goal / "file").read_text() == "new"
    folder(".last.ckpt.former", "old")  # a kill before the former one was removed
    restore(tmp_path)
    assert (goal / "file").read_text() == "new" and [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
