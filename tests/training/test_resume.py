"""Runs that are killed, at any point, go on as if nothing had happened; what was saved before is never lost."""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from zoo.errors import ZooError

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["zoo.training.session", "zoo.training.module", "zoo.training.data_module", "timm"])

SMALL = {
    "model.stack.width": 32,
    "model.stack.depth": 2,
    "model.stack.block.attention.heads": 2,
    "model.stack.block.dropout": 0.1,
    "model.stack.drop_path": 0.1,
    "data.batch_size": 128,  # 9 steps an epoch
    "data.validation": 0.1,
    "trainer.max_epochs": 3,
    "trainer.accelerator": "cpu",
}
STEPS = 27


def start(folder: Path, sabotage: Callable[[], None] | None = None, resume: bool = False, **overrides: Any) -> int | str | None:
    """Trains in a process of its own; its exit code, or the message of its ZooError."""
    answers = processes.SimpleQueue()
    process = processes.Process(target=_train, args=(folder, sabotage, resume, overrides, answers))
    process.start()
    process.join(120)
    assert process.exitcode is not None, "still running"
    return process.exitcode if answers.empty() else answers.get()


def _train(folder: Path, sabotage: Any, resume: bool, overrides: dict[str, Any], answers: Any) -> None:
    torch.set_num_threads(1)
    if sabotage is not None:
        sabotage()
    try:
        zoo.train("vit-tiny-digits", {**SMALL, "folder": str(folder), **overrides}, progress=False, resume=resume)
    except ZooError as error:
        answers.put(str(error))


class KilledInStep:
    """The process kills itself in the training step of this number, as the system or a user would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self) -> None:
        from zoo.training.module import ZooModule

        original, steps = ZooModule.training_step, iter(range(10**6))

        def training_step(module: Any, batch: Any, index: int) -> Any:
            if next(steps) == self.step:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(module, batch, index)

        ZooModule.training_step = training_step  # type: ignore[method-assign]


class KilledInSave:
    """The process is killed when the second checkpoint is half written, or written but not in its place."""

    def __init__(self, half: bool) -> None:
        self.half = half

    def __call__(self) -> None:
        original, saves = os.replace, iter(range(10**6))

        def replace(source: Any, goal: Any, **options: Any) -> None:
            if Path(goal).name == "last.ckpt" and next(saves) == 1:
                if self.half:
                    os.truncate(source, Path(source).stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            original(source, goal, **options)

        os.replace = replace


class FullDisk:
    """From the second checkpoint on nothing larger than some kilobytes can be written."""

    def __init__(self, first: int) -> None:
        self.first = first

    def __call__(self) -> None:
        original, saves = torch.save, iter(range(10**6))

        def save(*arguments: Any, **options: Any) -> None:
            if next(saves) == self.first:
                resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
            original(*arguments, **options)

        torch.save = save


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The checkpoint of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    assert start(folder) == 0
    return checkpoint(folder / "last.ckpt")


def checkpoint(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(path, weights_only=True)
    return found


def assert_equal(one: Any, other: Any, place: str = "") -> None:
    """Bit by bit, through dictionaries and lists."""
    assert type(one) is type(other), place
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), place
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one:
            assert_equal(one[key], other[key], f"{place}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), place
        for index, pair in enumerate(zip(one, other)):
            assert_equal(*pair, f"{place}.{index}")
    else:
        assert one == other, place


POINTS = sorted(random.Random(3).sample(range(1, STEPS), 3))


@pytest.mark.parametrize(("step", "save_every"), [*((step, None) for step in POINTS), (POINTS[1], 4), (9, 4)])
def test_a_killed_run_ends_with_the_weights_of_one_never_killed(
    unbroken: dict[str, Any], tmp_path: Path, step: int, save_every: int | None
) -> None:
    assert start(tmp_path / "run", KilledInStep(step), save_every=save_every) == -signal.SIGKILL
    assert not (tmp_path / "run" / "result.json").exists()
    if save_every is not None and step > save_every:  # in mid-epoch, not from the epoch's beginning
        assert checkpoint(tmp_path / "run" / "last.ckpt")["global_step"] == max(step // 4 * 4, step // 9 * 9)
    assert start(tmp_path / "run", resume=True, save_every=save_every) == 0
    ended = checkpoint(tmp_path / "run" / "last.ckpt")
    for part in ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
        assert_equal(ended[part], unbroken[part], part)


def test_a_run_killed_twice(unbroken: dict[str, Any], tmp_path: Path) -> None:
    assert start(tmp_path / "run", KilledInStep(11)) == -signal.SIGKILL
    assert start(tmp_path / "run", KilledInStep(11), resume=True) == -signal.SIGKILL
    assert start(tmp_path / "run", resume=True) == 0
    assert_equal(checkpoint(tmp_path / "run" / "last.ckpt")["state_dict"], unbroken["state_dict"])


@pytest.mark.parametrize("half", [True, False])
def test_a_kill_during_a_save_leaves_the_checkpoint_before(unbroken: dict[str, Any], tmp_path: Path, half: bool) -> None:
    assert start(tmp_path / "run", KilledInSave(half)) == -signal.SIGKILL
    assert checkpoint(tmp_path / "run" / "last.ckpt")["global_step"] == 9
    assert zoo.load(tmp_path / "run" / "last.ckpt").num_parameters() > 0
    assert start(tmp_path / "run", resume=True) == 0
    assert_equal(checkpoint(tmp_path / "run" / "last.ckpt")["state_dict"], unbroken["state_dict"])
    assert not [path for path in (tmp_path / "run").iterdir() if "unfinished" in path.name]


def test_a_full_disk_is_one_line_and_loses_nothing(unbroken: dict[str, Any], tmp_path: Path) -> None:
    message = start(tmp_path / "run", FullDisk(first=2))
    assert isinstance(message, str) and "last.ckpt cannot be written: File too large" in message and "\n" not in message
    assert "the former last.ckpt is whole" in message and "--resume" in message
    zoo.load(tmp_path / "run" / "last.ckpt")
    assert start(tmp_path / "run", resume=True) == 0
    assert_equal(checkpoint(tmp_path / "run" / "last.ckpt")["state_dict"], unbroken["state_dict"])


def test_a_disk_full_from_the_start_says_that_nothing_was_saved(tmp_path: Path) -> None:
    message = start(tmp_path / "run", FullDisk(first=0))
    assert isinstance(message, str) and "nothing was saved before" in message


def test_resuming_with_another_config_is_refused(tmp_path: Path) -> None:
    assert start(tmp_path / "run", KilledInStep(11)) == -signal.SIGKILL
    message = start(tmp_path / "run", resume=True, seed=1)
    assert isinstance(message, str) and message.startswith("seed: not what the unfinished run")
