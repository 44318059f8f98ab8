"""A run's config: how it is read, and what its errors say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from zoo.errors import ConfigError, UnknownNameError, ZooError
from zoo.presets import list_runs
from zoo.training.run import resolve_run

RUN = "vit-tiny-digits"


@pytest.mark.parametrize("name", list_runs())
def test_every_shipped_run_is_one(name: str) -> None:
    config = resolve_run(name)
    assert config.folder == f"runs/{name}"
    assert resolve_run(config) == config
    assert resolve_run(config.model_dump(mode="json")) == config


def test_the_model_is_whole_and_overrides_are_merged_into_it() -> None:
    config = resolve_run(RUN, {"model.stack.depth": 7, "optimizer.lr": 5e-4, "trainer.max_epochs": 3})
    assert (config.model.stack.depth, config.model.stack.width) == (7, 192)
    assert config.model.embedding.position.std == 0.5
    assert config.optimizer.lr == 5e-4
    assert config.trainer["max_epochs"] == 3


def test_another_preset_keeps_the_runs_own_changes() -> None:
    config = resolve_run(RUN, {"model.extends": "vit-small"})
    assert config.model.stack.width == 384
    assert (config.model.embedding.channels, config.model.head.classes) == (1, 10)


def test_a_preset_alone_replaces_the_model() -> None:
    with pytest.raises(ConfigError, match=r"model\.embedding\.image_size: data 'digits' are images of \(8, 8\)"):
        resolve_run(RUN, {"model": "vit-small"})


def test_runs_extend_each_other(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"extends: {RUN}\nmodel: {{stack: {{depth: 2}}}}\ntrainer: {{max_epochs: 1}}\n")
    config = resolve_run(path)
    assert config.model.stack.depth == 2
    assert config.model.head.classes == 10
    assert config.folder == "runs/mine"


def test_a_file_that_changes_the_model_of_one_that_names_a_preset(tmp_path: Path) -> None:
    (tmp_path / "first.yaml").write_text("model: vit-tiny\ndata: digits\n")
    (tmp_path / "second.yaml").write_text(
        "extends: first.yaml\nmodel: {embedding: {image_size: 8, patch_size: 2, channels: 1}, head: {classes: 10}}\n"
    )
    assert resolve_run(tmp_path / "second.yaml").model.stack.depth == 12


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"trainer.max_epoch": 3}, r"trainer\.max_epoch: unknown field of lightning\.Trainer; did you mean 'max_epochs'"),
        ({"trainer.max_epochs": "three"}, r"trainer\.max_epochs: expected a valid integer, got 'three'"),
        ({"trainer.callbacks": []}, r"trainer\.callbacks: this is set by the run itself"),
        ({"optimizer.learning_rate": 1}, r"optimizer\.learning_rate: unknown field of optimizer"),
        ({"optimizer.name": "adamww"}, r"optimizer\.name: unknown optimizer 'adamww'; did you mean 'adamw'"),
        ({"optimizer.lr": -1}, r"optimizer\.lr: expected greater than 0, got -1"),
        ({"data": "digit"}, r"data: unknown data 'digit'; did you mean 'digits'"),
        ({"data.shfit": 1}, r"data\.shfit: unknown field of data 'digits'; did you mean 'shift'"),
        ({"task": "clasification"}, r"task: unknown task 'clasification'; did you mean 'classification'"),
        ({"model.head.classes": 7}, r"model\.head\.classes: data 'digits' has 10 classes, and this is 7"),
        ({"model.head": None}, r"model\.head: task 'classification' needs a head of type 'classifier'"),
        ({"model.embedding.channels": 3}, r"model\.embedding\.channels: data 'digits' have 1 channel, not 3"),
        ({"model.stack.deph": 3}, r"model\.stack\.deph: unknown field of stack 'uniform'; did you mean 'depth'"),
        ({"model.extends": "vit-tny"}, r"model: unknown model 'vit-tny'; did you mean 'vit-tiny'"),
        ({"modle": 1}, r"modle: unknown field of run 'train'; did you mean 'model'"),
        ({"seed": -1}, r"seed: expected greater than or equal to 0, got -1"),
    ],
)
def test_errors_name_place_value_and_nearest(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ZooError, match=message) as caught:
        resolve_run(RUN, overrides)
    assert "\n" not in str(caught.value)


def test_unknown_run() -> None:
    with pytest.raises(UnknownNameError, match="unknown run 'vit-tiny-digit'; did you mean 'vit-tiny-digits'"):
        resolve_run("vit-tiny-digit")


def test_a_run_without_a_model() -> None:
    with pytest.raises(ConfigError, match="model: this field is needed"):
        resolve_run({"data": "digits"})


def test_the_config_imports_no_training_library() -> None:
    code = (
        "import sys, zoo.training.run, zoo.data.digits, zoo.task.classification; "
        "print([name for name in ('lightning', 'timm', 'sklearn', 'torchmetrics', 'matplotlib') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_the_schema_covers_runs() -> None:
    from zoo.config.schema import json_schema

    schema = json_schema("run")
    fields = schema["$defs"]["run.train"]["properties"]
    assert {"model", "data", "task", "optimizer", "trainer", "seed", "folder"} <= fields.keys()
    assert {"type": "string"}.items() <= fields["model"]["anyOf"][1].items()


def test_zoo_train_stays_callable() -> None:
    import zoo
    import zoo.training.folder  # binds the package's name

    assert callable(zoo.train)
    with pytest.raises(UnknownNameError):
        zoo.train("no-such-run")
