"""Dense, sparse, dual-encoder and multi-task models in 2 and 4 processes: losses and gradients of one; killed and resumed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import zoo
from tests.training.many_processes import MODELS, STEPS, main, run_of
from zoo.errors import ConfigError, WeightsError
from zoo.training.regroup import by_name
from zoo.training.run import resolve_run, train

REPOSITORY = Path(__file__).parents[2]
FEW = ("sparse-ddp", "sparse-expert", "sparse-tensor", "dual-data", "multi-unused")
TWO = (
    *("dense-ddp", "dense-data", "dense-tensor", "relative-tensor", "alibi-tensor", "windows-tensor"),
    *("dual-ddp", "dual-tensor", "sparse-data"),
    *("capacity-ddp", "capacity-expert", "capacity-tensor", "multi-data", "multi-expert", "multi-tensor"),
)
FOUR = (
    *("dense-ddp", "dense-data", "dense-tensor", "dense-data_tensor", "relative-data_tensor"),
    *("alibi-tensor", "alibi-data_tensor", "windows-tensor", "windows-data_tensor"),
    *("dual-ddp", "dual-data", "dual-data_tensor"),
    *("sparse-ddp", "sparse-data", "sparse-tensor", "sparse-expert"),
    *("sparse-data_tensor", "sparse-expert_tensor", "sparse-data_expert"),
    *("capacity-expert", "capacity-expert_tensor", "capacity-data_expert"),
    *("multi-unused", "multi-data_expert", "multi-expert_tensor"),
)
GROUPS = {"few": (2, FEW), "two": (2, TWO), "four": (4, FOUR)}


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **more}


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def in_processes(number: int, folder: Path, names: tuple[str, ...]) -> None:
    common = {"WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "NODE_RANK": "0"}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.training.many_processes", str(folder), *names],
            cwd=REPOSITORY, env=environment(RANK=str(place), LOCAL_RANK=str(place), **common), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for place in range(number)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=500)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert all(text.endswith("done\n") for text in said), "\n".join(text[-3000:] for text in said)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Where what a group of processes trained is; each group is started once, when it is first asked for."""
    folders: dict[str, Path] = {}

    def group(name: str) -> Path:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name)
            in_processes(GROUPS[name][0], folders[name], GROUPS[name][1])
        return folders[name]

    return group


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """What one process trains of a model."""
    folder = tmp_path_factory.mktemp("one")

    def one(model: str) -> Path:
        if not (folder / f"{model}-one.json").exists():
            main(folder, [f"{model}-one"])
        return folder / f"{model}-one"

    return one


def cases() -> Iterator[Any]:
    for group, (_, names) in GROUPS.items():
        for name in names:
            yield pytest.param(group, name, id=f"{group}-{name}", marks=[] if group == "few" else [pytest.mark.slow])


@pytest.mark.parametrize(("group", "name"), cases())
def test_losses_and_gradients_are_those_of_one_process(
    trained: Callable[[str], Path], alone: Callable[[str], Path], group: str, name: str
) -> None:
    one, many = alone(name.partition("-")[0]), trained(group) / name
    wanted, found = (json.loads(path.with_suffix(".json").read_text()) for path in (one, many))
    assert len(found) == STEPS and wanted[-1] < wanted[0] - 0.04
    assert found == pytest.approx(wanted, rel=1e-5, abs=1e-5)
    # of the first step, when the weights are the same: those of the whole batch
    expected, gradients = (torch.load(path.with_suffix(".pt"), weights_only=True) for path in (one, many))
    largest = max(float(each.abs().max()) for each in expected.values())
    for place, gradient in expected.items():
        given = gradients.get(place, torch.zeros_like(gradient))
        assert float((given - gradient).abs().max()) <= 1e-6 * max(largest, 1.0), place
    moved, start = dict(zoo.load(many).named_parameters()), dict(zoo.load(one).named_parameters())
    assert all(float((value - moved[place]).detach().abs().max()) < 5e-6 for place, value in start.items())


RUN: dict[str, Any] = {
    "type": "train",
    "model": MODELS["sparse"]["model"],
    "data": {"type": "digits", "batch_size": 32, "validation": 0.1},
    "optimizer": run_of("sparse", "one")["optimizer"],
    "save_every": 2,
    "trainer": {"max_epochs": 2, "accelerator": "cpu", "limit_train_batches": 5},
}
KILLED = """
import os
from zoo.cli import main
from zoo.task.classification import Classification

step, calls = Classification.step, []

def failing(*arguments):
    calls.append(1)
    if len(calls) == 4 and os.environ.get("LOCAL_RANK", "0") == os.environ.get("KILLED"):
        os.kill(os.getpid(), 9)
    return step(*arguments)

Classification.step = failing
main()
"""
DIVIDED = ["trainer.strategy.data=4", "trainer.strategy.expert=2", "data.batch_size=8"]
EXPERT = ["trainer.strategy.expert=2", "data.batch_size=16"]
DDP = ["trainer.strategy=ddp", "trainer.devices=2", "data.batch_size=16"]
SHARDED = ["trainer.strategy.data=2", "data.batch_size=16"]
BOTH = ["trainer.strategy.data=2", "trainer.strategy.tensor=2", "trainer.strategy.expert=2", "data.batch_size=16"]
FULL = ["trainer.strategy.data=4", "data.batch_size=8"]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process trains without a break."""
    return train(RUN, {"folder": str(tmp_path_factory.mktemp("unbroken") / "run")}, progress=False).folder


def command(folder: Path, words: list[str], run: Any = RUN, **more: str) -> subprocess.CompletedProcess[str]:
    (folder / "run.yaml").write_text(yaml.safe_dump(run))
    (folder / "script.py").write_text(KILLED)
    return subprocess.run(
        [sys.executable, "script.py", "train", "run.yaml", "folder=run", *words], cwd=folder, env=environment(**more),
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(EXPERT, [], id="expert 2, then one process"),
        pytest.param(DDP, DDP, id="ddp 2", marks=pytest.mark.slow),
        pytest.param(SHARDED, SHARDED, id="data 2", marks=pytest.mark.slow),
        pytest.param(SHARDED, DIVIDED, id="data 2, then data 4 expert 2", marks=pytest.mark.slow),
        pytest.param(DIVIDED, SHARDED, id="data 4 expert 2, then data 2", marks=pytest.mark.slow),
        pytest.param(DIVIDED, DDP, id="data 4 expert 2, then ddp 2", marks=pytest.mark.slow),
        pytest.param(BOTH, FULL, id="data 2 expert 2 tensor 2, then data 4", marks=pytest.mark.slow),
        pytest.param(DDP, BOTH, id="ddp 2, then data 2 expert 2 tensor 2", marks=pytest.mark.slow),
        pytest.param(FULL, BOTH, id="data 4, then data 2 expert 2 tensor 2", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_goes_on_elsewhere(tmp_path: Path, unbroken: Path, before: list[str], after: list[str]) -> None:
    """A worker is killed in the fourth step, after the save of the second; the run goes on from there."""
    answer = command(tmp_path, before, KILLED="1")
    assert answer.returncode == 1, answer.stderr
    assert answer.stderr.startswith("zoo: another process of this training ended without a word")
    assert len(answer.stderr.splitlines()) == 1 and not answer.stdout
    saved = zoo.load(tmp_path / "run" / "last.ckpt")  # it is whole
    assert saved.num_parameters() == zoo.load(unbroken / "model").num_parameters()
    if after:
        resumed(tmp_path, after)
    else:
        train(RUN, {"folder": str(tmp_path / "run")}, progress=False, resume=True)
    ends_as(unbroken, tmp_path / "run")
    # the sharded checkpoint and the exported folder are the same, bit by bit
    again = dict(zoo.load(tmp_path / "run" / "last.ckpt").named_parameters())
    exported = dict(zoo.load(tmp_path / "run" / "model").named_parameters())
    assert all(torch.equal(value, again[name]) for name, value in exported.items())


@pytest.mark.slow
@pytest.mark.parametrize(
    "after", [EXPERT, SHARDED, BOTH, FULL], ids=["expert 2", "data 2", "data 2 expert 2 tensor 2", "data 4"]
)
def test_a_run_of_one_process_goes_on_divided(tmp_path: Path, unbroken: Path, after: list[str]) -> None:
    assert command(tmp_path, [], KILLED="0").returncode == -9 and (tmp_path / "run" / "last.ckpt").is_file()
    resumed(tmp_path, after)
    assert (tmp_path / "run" / "last.ckpt").is_dir()
    ends_as(unbroken, tmp_path / "run")


def test_the_state_of_another_optimiser_is_one_line() -> None:
    state = {"state": {}, "param_groups": [{"params": [0, 1], "lr": 0.1}]}
    assert by_name(["one", "other"], state, "last.ckpt")["param_groups"] == [{"params": ["one", "other"], "lr": 0.1}]
    with pytest.raises(WeightsError, match=r"last\.ckpt: the optimiser in it has 2 parameters, and that of this model 1"):
        by_name(["one"], state, "last.ckpt")


@pytest.mark.slow
@pytest.mark.parametrize(("before", "gone"), [([], "0"), (EXPERT[:1], "1")], ids=["one process", "expert 2"])
def test_a_task_that_had_no_step_before_the_kill(tmp_path: Path, before: list[str], gone: str) -> None:
    """With this seed the first two steps are of one task, so that the optimiser has nothing of the other's head yet."""
    digits = {"type": "digits", "batch_size": 32, "validation": 0.1}
    data = {"type": "multi-task", "tasks": {"one": digits, "other": digits}, "steps": 10}
    run = {**RUN, **MODELS["multi"], "data": data, "seed": 3}
    share = [f"data.tasks.{name}.batch_size=16" for name in ("one", "other")]
    unbroken = train(run, {"folder": str(tmp_path / "unbroken")}, progress=False).folder
    assert command(tmp_path, [*before, *(share if before else [])], run, KILLED=gone).returncode
    if not before:
        (state,) = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["optimizer_states"]
        assert 0 < len(state["state"]) < sum(len(group["params"]) for group in state["param_groups"])
    resumed(tmp_path, [*EXPERT[:1], *share], run)
    ends_as(unbroken, tmp_path / "run")


def resumed(folder: Path, words: list[str], run: Any = RUN) -> None:
    answer = command(folder, [*words, "--resume"], run)
    assert answer.returncode == 0, answer.stderr
    assert len(answer.stderr.splitlines()) == RUN["trainer"]["max_epochs"]


def ends_as(unbroken: Path, run: Path) -> None:
    """Weights and figures are those of an unbroken run."""
    wanted, found = (load_file(folder / "model" / "model.safetensors") for folder in (unbroken, run))
    assert wanted.keys() == found.keys()
    assert max(float((found[name] - value).abs().max()) for name, value in wanted.items()) < 2e-6
    figures, expected = (json.loads((folder / "result.json").read_text()) for folder in (run, unbroken))
    for name in expected.keys() - {"seconds"}:
        assert figures[name] == pytest.approx(expected[name], rel=1e-5), name


def test_what_differs_in_all_batches_is_not_resumed(tmp_path: Path) -> None:
    from zoo.training.folder import claim

    began = resolve_run(RUN, {"trainer.strategy": {"data": 2}, "data.batch_size": 16, "folder": str(tmp_path / "run")})
    claim(tmp_path / "run", began)
    same = resolve_run(RUN, {"folder": str(tmp_path / "run")})
    assert claim(tmp_path / "run", same, resume=True).checkpoint is None
    with pytest.raises(ConfigError, match="data: not what the unfinished run"):
        claim(tmp_path / "run", resolve_run(RUN, {"folder": str(tmp_path / "run"), "data.batch_size": 16}), resume=True)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"trainer.strategy": {"data": 2, "expert": 4}}, r"strategy\.expert: data 2 cannot be divided evenly among 4 proc"),
        ({"trainer.strategy": {"expert": 3}},
         r"strategy\.expert: stack\.layers\.0\.feedforward\.experts: 4 experts cannot be divided evenly among 3 processes"),
        ({"trainer.strategy": {"expert": 4, "tensor": 2}}, r"strategy\.expert: .* 4 experts .* evenly among 4 x 2 processes"),
        ({"trainer.strategy": {"expert": 2}, "model.stack.pattern": None}, r"strategy\.expert: no part of this model has exp"),
        ({"trainer.strategy": {"tensor": 8}, "model.stack.block.attention.heads": 8}, r"strategy\.tensor: .* 4 experts cannot"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        resolve_run(RUN, overrides)
    assert "\n" not in str(caught.value)


def test_sizes_of_expert_parallel() -> None:
    from zoo.training.trainer import parallel, shares

    strategy = parallel({"strategy": {"expert": 2}})
    assert strategy is not None and strategy.groups({"strategy": {"expert": 2}}) == 2
    assert shares({"strategy": {"data": 4, "expert": 2}}) == 4 and shares({"strategy": {"tensor": 2}}) == 1
    assert shares({"strategy": "ddp", "devices": 2, "num_nodes": 2}) == 4 and shares({"accelerator": "gpu"}) is None
