"""Pairs of texts in two processes: the weights and the figures of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import zoo
from tests.training.pair_helpers import RUN
from zoo.training.run import train

REPOSITORY = Path(__file__).parents[2]
ENGINES = {
    "ddp": ["trainer.strategy=ddp", "trainer.devices=2", "data.batch_size=16"],
    "fsdp": ["trainer.strategy.type=model-parallel", "trainer.strategy.data=2", "data.batch_size=16"],
    "tensor": ["trainer.strategy.type=model-parallel", "trainer.strategy.tensor=2"],
}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp", "tensor"])
def test_two_processes_give_the_weights_of_one(tmp_path: Path, engine: str) -> None:
    # with the usual eps AdamW makes whole steps of gradients that are nothing but rounding
    fields = {**RUN, "optimizer": {"name": "adamw", "lr": 1e-3, "options": {"eps": 1e-3}}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(fields))
    answer = subprocess.run(
        [sys.executable, "-m", "zoo", "train", "run.yaml", "folder=two", *ENGINES[engine]],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr[-3000:]
    one = train(fields, {"folder": str(tmp_path / "one")}, progress=False)
    wanted: dict[str, Any] = dict(zoo.load(one.folder / "model").named_parameters())
    for name, value in zoo.load(tmp_path / "two" / "model").named_parameters():
        assert float((value - wanted[name]).detach().abs().max()) < 1e-6, name
    found = json.loads((tmp_path / "two" / "result.json").read_text())
    assert found.keys() == one.metrics.keys()
    for name in found.keys() - {"seconds"}:
        assert found[name] == pytest.approx(one.metrics[name], rel=1e-5, abs=1e-6), name
