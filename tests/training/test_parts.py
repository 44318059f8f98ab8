"""Data, task, optimiser, pictures and comparisons, each alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import zoo
from zoo.data.base import Examples, check
from zoo.data.digits import Digits
from zoo.errors import DataError
from zoo.task.classification import Classification
from zoo.training.baselines import baselines
from zoo.training.optimizer import OptimizerConfig, make_optimizer, never_decayed
from zoo.training.pictures import learning_curve, prediction_grid
from zoo.training.run import resolve_run


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits(Digits.Config(validation=0.2))


def contents(examples: Examples) -> list[bytes]:
    return [image.numpy().tobytes() for image in examples.tensors["pixel_values"]]


def test_no_test_image_is_trained_or_tuned_on(digits: Digits) -> None:
    train, validation, test = (set(contents(digits.split(name))) for name in ("train", "validation", "test"))
    assert not test & (train | validation)
    assert not train & validation
    assert len(train | validation | test) == 1797
    assert len(test) == 599


def test_the_training_loader_gives_exactly_the_training_part(digits: Digits) -> None:
    seen = [image.numpy().tobytes() for batch in digits.loader("train") for image in batch["pixel_values"]]
    assert sorted(seen) == sorted(contents(digits.split("train")))


def test_the_test_part_never_changes(digits: Digits) -> None:
    torch.manual_seed(3)
    again = Digits(Digits.Config(shift=2.0, batch_size=7)).split("test")
    assert contents(again) == contents(digits.split("test"))
    rows = digits.rows["test"]
    assert (rows[:6].tolist(), int(rows.sum())) == ([1, 4, 10, 21, 24, 25], 548943)
    counts = torch.bincount(again.tensors["labels"])
    assert counts.tolist() == [59, 61, 59, 61, 60, 61, 60, 60, 58, 60]


def test_augmentation(digits: Digits) -> None:
    batch = digits.split("train")[torch.arange(64)]
    assert digits.augment(batch) is batch
    still = Digits(Digits.Config(shift=1e-6)).augment(batch)["pixel_values"]
    assert torch.allclose(still, batch["pixel_values"], atol=1e-4)
    moved = Digits(Digits.Config(shift=1.0, rotation=15.0, zoom=0.1, shear=0.1)).augment(batch)["pixel_values"]
    assert moved.shape == batch["pixel_values"].shape
    assert float(moved.min()) >= -1.0 and float(moved.max()) <= 1.0 + 1e-6
    assert not torch.equal(moved, batch["pixel_values"])


@pytest.mark.parametrize(
    ("pixels", "labels", "message"),
    [
        (torch.zeros(0, 1, 8, 8), torch.zeros(0).long(), "there are no examples"),
        (torch.full((2, 1, 8, 8), torch.nan), torch.zeros(2).long(), "pixel_values of example 0 are not all finite"),
        (torch.zeros(2, 1, 8, 8), torch.tensor([1, 10]), "label 10 of example 1 is none of the head's classes, 0 to 9"),
        (torch.zeros(2, 1, 8, 8), torch.tensor([-1, 1]), "label -1 of example 0"),
        (torch.zeros(2, 1, 8, 8), torch.zeros(3).long(), "3 labels for 2 examples"),
    ],
)
def test_examples_that_cannot_be_learned_from(pixels: torch.Tensor, labels: torch.Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        check(Examples(pixel_values=pixels, labels=labels), 10, "these")


def test_an_empty_part_has_no_loader() -> None:
    with pytest.raises(DataError, match="data 'digits': its validation part is empty"):
        Digits(Digits.Config()).loader("validation")


def test_the_loss_is_torchs_and_smoothed_in_training_only() -> None:
    model = zoo.build(resolve_run("vit-tiny-digits").model, {"stack.depth": 1})
    batch = {"pixel_values": torch.randn(4, 1, 8, 8), "labels": torch.tensor([0, 1, 2, 9])}
    task = Classification(Classification.Config(label_smoothing=0.3))
    for training, smoothing in ((True, 0.3), (False, 0.0)):
        step = task.step(model.train(training), batch)
        wanted = torch.nn.functional.cross_entropy(step.predictions, batch["labels"], label_smoothing=smoothing)
        assert torch.equal(step.loss, wanted)
    with pytest.raises(DataError, match=r"mapping with 'labels', or a pair .* not one with pixel_values"):
        task.step(model, {"pixel_values": batch["pixel_values"]})


def test_only_matrices_are_decayed() -> None:
    model = zoo.build("vit-tiny", {"stack.depth": 1, "embedding.registers": 2})
    spared = set(never_decayed(model))
    assert {"embedding.class_token", "embedding.register_tokens", "embedding.position.table", "head.output.bias"} <= spared
    assert {name for name, value in model.named_parameters() if name not in spared} == {
        "embedding.weight", "head.output.weight",
        *(f"stack.layers.0.attention.{name}.weight" for name in ("query", "key", "value", "output")),
        *(name for name, value in model.named_parameters() if "feedforward" in name and value.ndim == 2),
    }  # fmt: skip
    optimizer = make_optimizer(model, OptimizerConfig(weight_decay=0.1))
    decayed = sum(value.numel() for group in optimizer.param_groups if group["weight_decay"] for value in group["params"])
    assert decayed == sum(value.numel() for name, value in model.named_parameters() if name not in spared)
    assert optimizer.defaults["fused"] is True


@pytest.mark.parametrize("name", ["adamw", "sgd", "lion", "lamb"])
def test_optimizers_of_timm(name: str) -> None:
    make_optimizer(torch.nn.Linear(2, 2), OptimizerConfig(name=name))


def test_simple_models_on_the_same_split() -> None:
    figures = baselines(Digits.Config())
    assert 0.95 < figures["logistic regression"] < 0.98
    assert 0.975 < figures["support vectors (RBF)"] < 0.995


def test_pictures(tmp_path: Path) -> None:
    rows = [{"epoch": 1, "train_loss": 2.0, "train_accuracy": 0.5}, {"epoch": 2, "train_loss": 1.0, "train_accuracy": 0.8}]
    assert learning_curve(rows, {"test_loss": 1.1, "test_accuracy": 0.7}, tmp_path / "c.png").stat().st_size > 10_000
    assert learning_curve([], {}, tmp_path / "empty.png").is_file()
    logits, labels = torch.randn(11, 10), torch.arange(11) % 10
    assert prediction_grid(torch.rand(11, 1, 8, 8), logits, labels, tmp_path / "g.png").stat().st_size > 5_000
