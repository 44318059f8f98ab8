"""Training: what it leaves behind, that it repeats itself, and how it ends when it goes wrong."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch.utils.data import DataLoader

import zoo
from zoo.errors import ConfigError, DataError, ZooError
from zoo.task.classification import Classification
from zoo.training.data_module import DataModule
from zoo.training.evaluate import evaluate
from zoo.training.module import ZooModule
from zoo.training.run import resolve_run, train

RUN = "vit-tiny-digits"


def parameters(source: Any) -> dict[str, torch.Tensor]:
    model = zoo.load(source) if isinstance(source, (str, Path)) else source
    return {name: value.detach() for name, value in model.named_parameters()}


def same(first: Any, second: Any) -> bool:
    first, second = parameters(first), parameters(second)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_folder_holds_everything(finished: Any) -> None:
    names = {path.name for path in finished.folder.iterdir()}
    assert {"config.yaml", "environment.json", "metrics.csv", "curve.png", "last.ckpt", "best.ckpt", "model", "logs"} <= names
    assert list((finished.folder / "logs").glob("*/events.out.tfevents*"))
    rows = list(csv.DictReader((finished.folder / "metrics.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert {"train_loss", "train_accuracy", "validation_loss", "validation_accuracy"} <= rows[0].keys()
    assert json.loads((finished.folder / "result.json").read_text()) == finished.metrics
    assert "torch" in json.loads((finished.folder / "environment.json").read_text())["packages"]
    assert (finished.folder / "curve.png").read_bytes()[:4] == b"\x89PNG"
    assert resolve_run(finished.folder / "config.yaml").folder == str(finished.folder)


def test_a_checkpoint_holds_tensors_and_text_only(finished: Any) -> None:
    for name in ("last.ckpt", "best.ckpt"):
        content = torch.load(finished.folder / name, weights_only=True)
        assert json.loads(content["zoo_model"])["type"] == "transformer"
        assert all(key.startswith("model.") for key in content["state_dict"])
        assert content["hyper_parameters"]["model"] == json.loads(content["zoo_model"])
    module = ZooModule.load_from_checkpoint(finished.folder / "best.ckpt", weights_only=True)
    assert same(module.model, zoo.load(finished.folder / "best.ckpt"))
    assert module.optimizer.name == "muon" and not module.frozen


def test_checkpoint_and_folder_hold_the_same_model(finished: Any) -> None:
    assert same(finished.folder / "last.ckpt", finished.folder / "model")
    assert not zoo.load(finished.folder / "last.ckpt").training


def test_evaluation_repeats_the_runs_figure(finished: Any) -> None:
    for source in (finished.folder, finished.folder / "model", finished.folder / "last.ckpt"):
        result = evaluate(source)
        assert result.examples == 599
        assert result.metrics["accuracy"] == finished.metrics["test_accuracy"]
    counted = (result.predictions.argmax(-1) == result.targets).float().mean()
    assert result.metrics["accuracy"] == pytest.approx(float(counted))


def test_evaluation_needs_fitting_data(finished: Any, tmp_path: Path) -> None:
    model = zoo.load(finished.folder / "model")
    folder = zoo.save(model, tmp_path / "alone")
    with pytest.raises(ConfigError, match=r"data: .* belongs to no run"):
        evaluate(folder)
    assert evaluate(folder, "digits").metrics["accuracy"] == finished.metrics["test_accuracy"]
    with pytest.raises(ConfigError, match="data: unknown data 'digts'; did you mean 'digits'"):
        evaluate(folder, "digts")
    other = zoo.build("vit-tiny", {"stack.depth": 1})
    with pytest.raises(ConfigError, match=r"model\.head\.classes: data 'digits' has 10 classes"):
        evaluate(other, "digits")


def test_equal_seeds_give_equal_weights(small: dict[str, Any], tmp_path: Path) -> None:
    noisy = {**small, "data.shift": 1.0, "model.stack.block.attention.dropout": 0.1}
    state = torch.random.get_rng_state()
    first = train(RUN, {**noisy, "folder": str(tmp_path / "a")}, progress=False)
    assert torch.equal(state, torch.random.get_rng_state())  # the caller's random numbers are not touched
    torch.rand(7)
    second = train(RUN, {**noisy, "folder": str(tmp_path / "b")}, progress=False)
    other = train(RUN, {**noisy, "folder": str(tmp_path / "c"), "seed": 1}, progress=False)
    assert same(first.folder / "model", second.folder / "model")
    assert not same(first.folder / "model", other.folder / "model")


def test_a_finished_run_is_not_overwritten_unasked(finished: Any) -> None:
    config = resolve_run(finished.folder / "config.yaml")
    before = (finished.folder / "model" / "model.safetensors").stat().st_mtime_ns
    with pytest.raises(ConfigError, match="holds a finished run; replace it with --overwrite, or choose folder=PATH"):
        train(config, progress=False)
    with pytest.raises(ConfigError, match="holds a finished run, nothing to resume"):
        train(config, progress=False, resume=True)
    assert (finished.folder / "model" / "model.safetensors").stat().st_mtime_ns == before


def test_overwriting_replaces_the_old_run_only_at_the_end(small: dict[str, Any], monkeypatch: Any) -> None:
    first = train(RUN, {**small, "trainer.max_epochs": 1}, progress=False)
    old = (first.folder / "model" / "model.safetensors").read_bytes()
    monkeypatch.setattr(Classification, "step", _interrupting(Classification.step, after=2))
    with pytest.raises(ZooError, match="interrupted before the first save"):
        train(RUN, {**small, "seed": 1}, overwrite=True, progress=False)
    assert (first.folder / "model" / "model.safetensors").read_bytes() == old
    monkeypatch.undo()
    again = train(RUN, {**small, "seed": 1}, overwrite=True, progress=False)
    assert again.folder == first.folder
    assert (first.folder / "model" / "model.safetensors").read_bytes() != old
    assert [path.name for path in first.folder.parent.iterdir()] == [first.folder.name]


def test_a_folder_of_something_else_is_never_touched(small: dict[str, Any]) -> None:
    folder = Path(small["folder"])
    folder.mkdir()
    (folder / "letter.txt").write_text("dear")
    for flag in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(ConfigError, match="holds files that are no run of zoo"):
            train(RUN, small, progress=False, **flag)
    assert [path.name for path in folder.iterdir()] == ["letter.txt"]


def test_an_interrupted_run_can_be_resumed(small: dict[str, Any], monkeypatch: Any) -> None:
    small = {**small, "trainer.max_epochs": 3, "averaging": 0.9}
    monkeypatch.setattr(Classification, "step", _interrupting(Classification.step, after=7))
    with pytest.raises(ZooError, match=r"interrupted in epoch 2 of 3: .*last\.ckpt holds .* go on with --resume") as caught:
        train(RUN, small, progress=False)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    folder = Path(small["folder"])
    assert zoo.load(folder / "last.ckpt").num_parameters() > 0
    with pytest.raises(ConfigError, match="holds an unfinished run; go on with --resume"):
        train(RUN, small, progress=False)
    with pytest.raises(ConfigError, match=r"optimizer: not what the unfinished run in .* began with"):
        train(RUN, {**small, "optimizer.lr": 1e-5}, progress=False, resume=True)
    result = train(RUN, small, progress=False, resume=True)
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert result.metrics["epochs"] == 3


def test_a_loss_that_is_no_number_ends_with_one_line(small: dict[str, Any]) -> None:
    with pytest.raises(ZooError, match=r"the loss became (nan|inf) in epoch \d, step \d: lower optimizer\.lr") as caught:
        train(RUN, {**small, "optimizer.name": "sgd", "optimizer.lr": 1e30, "optimizer.warmup": 0.0}, progress=False)
    assert "\n" not in str(caught.value)


def test_what_lightning_refuses_is_one_line(small: dict[str, Any]) -> None:
    for fields in ({"trainer.accelerator": "abacus"}, {"trainer.limit_train_batches": 1e-9}):
        with pytest.raises(ConfigError, match=r"^trainer: ") as caught:
            train(RUN, {**small, "folder": small["folder"] + str(len(fields)), **fields}, progress=False, overwrite=True)
        assert "\n" not in str(caught.value)


def test_an_optimizer_that_does_not_know_an_option(small: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"optimizer: 'muon' cannot be made: .*unexpected"):
        train(RUN, {**small, "optimizer.options": {"nestrov": True}}, progress=False)


def test_a_cosine_needs_an_end(small: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.schedule: 'cosine' needs an end"):
        train(RUN, {**small, "trainer.max_epochs": -1}, progress=False)


def test_weights_to_start_from(finished: Any, small: dict[str, Any]) -> None:
    start = {**small, "weights": str(finished.folder / "model"), "optimizer.lr": 1e-12, "averaging": None}
    result = train(RUN, start, progress=False)
    before, after = parameters(finished.folder / "model"), parameters(result.folder / "model")
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)


def test_the_module_works_in_a_trainer_of_ones_own(tmp_path: Path) -> None:
    from tests.training.conftest import SMALL

    module, data = ZooModule.from_run(RUN, SMALL), DataModule.from_run(RUN, SMALL)
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    assert trainer.callback_metrics["test_accuracy"] > 0
    trainer.save_checkpoint(tmp_path / "mine.ckpt")
    assert same(tmp_path / "mine.ckpt", module.model)


def test_the_module_takes_pairs_and_refuses_wrong_labels(tmp_path: Path) -> None:
    model = zoo.build(resolve_run(RUN).model, {"stack.depth": 1})
    pairs = [(torch.zeros(1, 8, 8), label) for label in (3, 12)]
    module = ZooModule(model, task="classification", optimizer={"lr": 1e-4, "schedule": "constant"})
    trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False,
                                enable_model_summary=False, enable_checkpointing=False, default_root_dir=tmp_path)  # fmt: skip
    with pytest.raises(DataError, match="label 12 of example 1 is none of the head's classes, 0 to 9"):
        trainer.fit(module, DataLoader(pairs, batch_size=2))


def _interrupting(step: Any, after: int) -> Any:
    """A task's step that acts as if someone pressed Ctrl-C at the `after`-th call."""
    calls = iter(range(1, 10_000))

    def interrupted(*arguments: Any) -> Any:
        if next(calls) == after:
            raise KeyboardInterrupt
        return step(*arguments)

    return interrupted
