"""Trainings whose processes a launcher starts: torchrun, and SLURM's srun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.training.many_processes import VIT
from tests.training.test_parallel import EXPERT, KILLED, REPOSITORY, RUN, SHARDED, environment, free_port, resumed
from zoo.training.processes import rank


def once(folder: Path, answer: subprocess.CompletedProcess[str]) -> None:
    """One process spoke, and everything was written once."""
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count("accuracy") == 1 and answer.stdout.startswith("run: accuracy")
    assert answer.stderr.count("epoch 1 of 1") == 1
    assert {path.name for path in (folder / "run" / "logs").iterdir()} == {"attempt-0"}
    assert len(list((folder / "run" / "logs" / "attempt-0").glob("events*"))) == 1
    assert len((folder / "run" / "metrics.csv").read_text().splitlines()) == 2


@pytest.mark.slow
def test_torchrun(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**RUN, "model": VIT}))
    starter = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", free_port()]
    words = ["trainer.strategy=ddp", "trainer.devices=2", "trainer.max_epochs=1", "folder=run"]
    answer = subprocess.run(
        [*starter, "-m", "zoo", "train", "run.yaml", *words],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    once(tmp_path, answer)


@pytest.mark.slow
@pytest.mark.parametrize("gone", ["0", "1"])
def test_a_process_killed_under_torchrun(tmp_path: Path, gone: str) -> None:
    """One of those that are left says so in one line, whichever is gone; what else is said is torchrun's."""
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(RUN))
    (tmp_path / "script.py").write_text(KILLED)
    starter = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", free_port()]
    answer = subprocess.run(
        [*starter, "script.py", "train", "run.yaml", *SHARDED, "folder=run"],
        cwd=tmp_path, env=environment(KILLED=gone), capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    said = [line for line in answer.stderr.splitlines() if line.startswith("zoo:")]
    assert answer.returncode and len(said) == 1, answer.stderr
    assert said[0].startswith("zoo: another process of this training ended without a word")
    assert answer.stderr.count("Traceback") <= 1  # torchrun's
    resumed(tmp_path, SHARDED)


SRUN = """#!/bin/bash
# Stands for SLURM's: starts the tasks of all machines on this one.
while [[ $1 == --* ]]; do shift; done
export SLURM_JOB_NAME=zoo SLURM_JOB_ID=1 SLURM_STEP_ID=0 SLURM_NODELIST=localhost SLURM_JOB_NODELIST=localhost
export SLURM_NTASKS=$((SLURM_NNODES * SLURM_NTASKS_PER_NODE)) tasks=()
for ((task = 0; task < SLURM_NTASKS; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$((task % SLURM_NTASKS_PER_NODE)) SLURM_NODEID=$((task / SLURM_NTASKS_PER_NODE)) "$@" &
done
wait
"""


@pytest.mark.slow
def test_slurm(tmp_path: Path) -> None:
    """Two machines with one task each, as SLURM's environment describes them."""
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(RUN))
    (tmp_path / "srun").write_text(SRUN)
    (tmp_path / "srun").chmod(0o755)
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    words = [*EXPERT, "trainer.max_epochs=1", "folder=run"]
    answer = subprocess.run(
        ["bash", str(REPOSITORY / "examples" / "cluster.sbatch"), "run.yaml", *words], cwd=tmp_path,
        env=environment(PATH=path, SLURM_NNODES="2", SLURM_NTASKS_PER_NODE="1", MASTER_PORT=free_port()),
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    once(tmp_path, answer)


def test_which_process_is_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.utilities import rank_zero_only

    monkeypatch.setattr(rank_zero_only, "rank", 0)
    assert rank() == 0
    monkeypatch.setenv("NODE_RANK", "1")  # the first of another machine
    assert rank() == 1
    monkeypatch.setenv("RANK", "0")  # torchrun counts all processes
    assert rank() == 0
