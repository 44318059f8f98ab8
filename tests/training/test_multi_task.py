"""Many tasks learned at once: whose batch comes when, resumed orders, figures of each task, a task added to a frozen model."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch.nn import functional

import zoo
from tests.model.multi_task_helpers import MODEL, inputs_of
from zoo.data.multi_task import Mixture, MultiTaskData, shares
from zoo.errors import ConfigError, DataError
from zoo.registry import make
from zoo.task.multi_task import MultiTask
from zoo.task.prefix_language import PrefixLanguage, rows_of
from zoo.training.data_module import DataModule
from zoo.training.evaluate import evaluate
from zoo.training.module import ZooModule
from zoo.training.run import resolve_run, train

DATA: dict[str, Any] = {
    "type": "multi-task",
    "tasks": {
        "recognise": {"type": "digits", "batch_size": 32, "validation": 0.1, "shift": 0.5},
        "caption": {"type": "captioned-digits", "batch_size": 16},
        "write": {"type": "pydoc", "tokenizer": "bytes", "length": 24, "pack": True, "batch_size": 4},
        "dates": {"type": "dates", "locales": ["en"], "batch_size": 8, "size": 64, "measured": 16},
    },
    "weights": {"recognise": 3, "write": 0.5},
    "steps": 11,
}
TASKS: dict[str, Any] = {
    "recognise": "classification",
    "caption": "prefix-language",
    "write": "causal-language",
    "dates": {"type": "prefix-language", "label_smoothing": 0.1},
}
RUN: dict[str, Any] = {
    "type": "train",
    "model": {**MODEL, "tasks": {**MODEL["tasks"], "dates": {"from": "text", "to": "words"}}},
    "data": DATA,
    "task": {"type": "multi-task", "tasks": TASKS},
    "optimizer": {"name": "adamw", "lr": 3e-3, "warmup": 0.1},
    "trainer": {"max_epochs": 2, "accelerator": "cpu"},
}
PAIRS = {"type": "dates", "locales": ["en"], "size": 32, "measured": 8, "batch_size": 4, "pack": False}
SMALL = {"data.tasks.write": PAIRS, "task.tasks.write": "prefix-language"}
"""Changes of the run under which no documentation need be cut into paragraphs first."""


PARTS: dict[str, Any] = {}
"""The data of each task, which are made once."""


def data_of(**changes: Any) -> MultiTaskData:
    fields = copy.deepcopy(DATA) | changes
    fields["tasks"]["write"] = PAIRS
    data: MultiTaskData = make(MultiTaskData.Config(**fields))
    data.parts.update(PARTS or data.parts)
    PARTS.update(data.parts)
    return data


def met(loader: Any) -> list[tuple[int, int]]:
    """Of each batch the task, and a number that tells batches apart."""
    return [(int(batch["task"]), hash(next(iter(batch.values())).numpy().tobytes())) for batch in loader]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of all four tasks, of two epochs of eleven steps."""
    folder = tmp_path_factory.mktemp("many")
    (folder / "text.txt").write_text("".join(f"this is line {number}\n" for number in range(60)), encoding="utf-8")
    texts = {"type": "text-files", "path": str(folder / "text.txt"), "length": 24, "pack": True, "batch_size": 4}
    return train(RUN, {"data.tasks.write": texts, "folder": str(folder / "run")}, progress=False)


def test_shares_are_those_of_the_weights() -> None:
    assert shares([3, 1, 0.5, 1], 11) == [6, 2, 1, 2]
    assert shares([1, 1, 1], 8) == [3, 3, 2] and shares([1.0], 5) == [5] and shares([1, 999], 10) == [0, 10]
    mixture: Any = data_of().loader("train", seed=4)
    assert isinstance(mixture, Mixture) and len(mixture) == 11
    orders = [mixture.order(epoch) for epoch in range(4)]
    assert all(torch.bincount(order).tolist() == [6, 2, 1, 2] for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 4
    assert torch.equal(data_of().loader("train", seed=4).order(1), orders[1])  # type: ignore[union-attr]
    assert len(data_of(steps=None).loader("train")) == 34 + 75 + 8 + 8  # 1078 and 1198 images, 32 and 64 dates


def test_a_batch_is_of_one_task_and_says_which() -> None:
    batches = list(data_of().loader("train"))
    known = [
        {"pixel_values", "labels"},
        {"pixel_values", "input_ids", "labels"},
        *[{"input_ids", "attention_mask", "labels"}] * 2,
    ]
    assert all(set(batch) == {*known[int(batch["task"])], "task"} for batch in batches)
    tested = [int(batch["task"]) for batch in data_of().loader("test")]
    assert tested == sorted(tested) and set(tested) == {0, 1, 2, 3}
    assert {int(batch["task"]) for batch in data_of().loader("validation")} == {0}


def test_the_order_is_the_same_again_and_behind_a_break() -> None:
    whole = data_of().loader("train", seed=7)
    epochs = [met(whole) for _ in range(3)]
    again = data_of().loader("train", seed=7)
    assert [met(again) for _ in range(3)] == epochs
    for epoch, skip in itertools.product(range(3), (0, 4, 10)):
        resumed: Any = data_of().loader("train", seed=7, skip=skip)
        resumed.set_epoch(epoch)
        assert met(resumed) == epochs[epoch][skip:]
        assert epoch == 2 or met(resumed) == epochs[epoch + 1]
    assert met(data_of().loader("train", seed=8)) != epochs[0]


def test_each_task_goes_through_all_its_examples_in_epochs_of_its_own() -> None:
    data = data_of(weights={"recognise": 1e-9, "caption": 1e-9, "write": 1, "dates": 1e-9}, steps=5)
    alone = data.parts["write"]
    loader = data.loader("train", seed=3)
    batches = [batch["input_ids"] for _ in range(4) for batch in loader]
    assert len(batches) == 20  # two epochs and a half of eight batches
    from zoo.data.randomness import mixed

    single = alone.loader("train", seed=mixed(3, 2))
    expected = [batch["input_ids"] for _ in range(3) for batch in single]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(batches, expected))


def test_some_tasks_alone_meet_the_batches_that_they_meet_among_all() -> None:
    every = data_of(weights={}, steps=8)
    alone = data_of(weights={}, steps=4, only=["caption", "dates"])
    first, second = (met(each.loader("train", seed=5)) for each in (every, alone))
    for task in (1, 3):
        own = [batch for batch in first if batch[0] == task]
        assert len(own) == 2 and own == [batch for batch in second if batch[0] == task]
    assert {task for task, _ in second} == {1, 3}
    assert {int(batch["task"]) for batch in alone.loader("test")} == {1, 3}
    assert not alone.has("validation") and every.has("validation")  # recognise alone has such a part


def test_processes_meet_the_same_task_and_other_examples() -> None:
    shards = [list(data_of().loader("train", seed=1, shard=(rank, 2))) for rank in range(2)]
    assert [int(each["task"]) for each in shards[0]] == [int(each["task"]) for each in shards[1]]
    assert not torch.equal(shards[0][0]["input_ids" if "input_ids" in shards[0][0] else "labels"],
                           shards[1][0]["input_ids" if "input_ids" in shards[1][0] else "labels"])  # fmt: skip


def test_rows_of_pairs_by_hand() -> None:
    batch = {
        "input_ids": torch.tensor([[1, 2, 3], [4, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1], [1, 0, 0]]),
        "labels": torch.tensor([[7, -100], [8, 9]]),
    }
    inputs, labels = rows_of(batch)
    assert inputs["input_ids"].tolist()[0] == [1, 2, 3, 7] and inputs["input_ids"][1, :3].tolist() == [4, 8, 9]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert inputs["prefix_lengths"].tolist() == [3, 1]
    assert labels.tolist() == [[-100, -100, -100, 7], [-100, 8, 9, -100]]


def test_the_loss_of_pairs_is_that_of_their_targets() -> None:
    torch.manual_seed(0)
    model = zoo.build(MODEL).eval()
    task: Any = make(PrefixLanguage.Config())
    batch = {"input_ids": torch.tensor([[1, 2, 3]]), "labels": torch.tensor([[7, 8]])}
    step = task.step(model.route("write"), batch)
    row, prefix = torch.tensor([[1, 2, 3, 7, 8]]), torch.tensor([3])
    scores = model(row, task="write", prefix_lengths=prefix).logits[0, 2:4]
    torch.testing.assert_close(step.loss, functional.cross_entropy(scores, torch.tensor([7, 8])))
    assert step.targets.tolist() == [7, 8] and step.predictions[:, 0].tolist() == scores.argmax(-1).tolist()
    assert step.predictions[:, 1].tolist() == [0, -1]
    with pytest.raises(DataError, match="is a mapping with 'input_ids'"):
        task.step(model.route("write"), {"labels": batch["labels"]})


def test_captions_are_guessed_up_to_their_end() -> None:
    torch.manual_seed(0)
    model = zoo.build(MODEL).eval()
    task: Any = make(PrefixLanguage.Config())
    data = data_of().parts["caption"]
    task.adapt(data)
    batch = next(iter(data.loader("test")))
    step = task.step(model.route("caption"), batch)
    ends = (batch["input_ids"] == 258).long().argmax(1)
    assert len(step.targets) == int(ends.sum()) and int((step.targets == 258).sum()) == len(ends)


def test_figures_are_those_of_each_task(finished: Any) -> None:
    metrics = finished.metrics
    own = {"recognise": "accuracy", "caption": "exact_match", "write": "bits_per_byte", "dates": "accuracy"}
    for stage, (name, metric) in itertools.product(("train", "test"), own.items()):
        assert {f"{stage}_{name}/{metric}", f"{stage}_{name}/loss"} <= set(metrics)
    assert metrics["steps"] == 22 and "validation_recognise/accuracy" in metrics
    model = zoo.load(finished.folder / "model")
    alone = evaluate(model.route("recognise"), DATA["tasks"]["recognise"], "classification")
    assert metrics["test_recognise/accuracy"] == pytest.approx(alone.metrics["accuracy"])
    assert metrics["test_recognise/loss"] == pytest.approx(alone.metrics["loss"], rel=1e-5)
    rows = (finished.folder / "metrics.csv").read_text(encoding="utf-8").splitlines()
    assert "train_dates/loss" in rows[0] and len(rows) == 3
    measured = evaluate(finished.folder, changes={"data.tasks.dates.measured": 8})
    assert {"loss", "dates/loss", "dates/exact_match", "recognise/accuracy"} <= set(measured.metrics)
    assert len(measured.predictions) == 0 and measured.examples == len(measured.targets)
    assert measured.experts is not None and measured.experts.tasks == list(own)
    assert (finished.folder / "experts.png").is_file()
    some = evaluate(finished.folder, changes={"data.only": ["recognise"]})
    assert set(some.metrics) == {"loss", "recognise/loss", "recognise/accuracy"} and some.examples == 599


class Stop(lightning.Callback):
    """Ends a training in the middle of an epoch, as a kill would, behind a save."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 15:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "middle.ckpt")


def fit(folder: Path, checkpoint: Path | None = None) -> Any:
    run = resolve_run(RUN, SMALL)
    module, data = ZooModule.from_run(run), DataModule.from_run(run)
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", default_root_dir=folder, callbacks=[Stop()], logger=False, enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    return module.model


@pytest.mark.slow
def test_a_resumed_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = fit(tmp_path)
    resumed = fit(tmp_path, tmp_path / "middle.ckpt")
    for (name, ours), theirs in zip(whole.named_parameters(), resumed.parameters()):
        assert torch.equal(ours, theirs), name


def test_a_task_learned_behind_a_frozen_stack_leaves_the_others_as_they_were(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, given = zoo.build(MODEL).eval(), inputs_of()
    images, texts = given["pixel_values"].float(), given["input_ids"]

    def said(each: Any) -> list[torch.Tensor]:
        return [
            each(images, task="recognise").logits,
            each(texts, task="write").logits,
            each(texts, pixel_values=images, task="caption").logits,
            each.generate(texts, pixel_values=images, task="caption", max_new_tokens=4),
        ]

    before = said(model)
    zoo.save(model, tmp_path / "model")
    more = {
        "embeddings.small": {"type": "patch", "image_size": 8, "patch_size": 2, "channels": 1, "class_token": False},
        "heads.again": {"type": "classifier", "classes": 10, "pool": "mean"},
        "tasks.again": {"from": "small", "to": "again"},
    }
    grown = zoo.build(MODEL, more, weights=tmp_path / "model")
    first = copy.deepcopy(grown.state_dict())
    run = {
        **RUN,
        "model": grown.config.plain(),
        "weights": str(tmp_path / "model"),
        "frozen": ["stack", "embeddings.image", "embeddings.text", "heads.digit"],
        "data": {"type": "multi-task", "tasks": {"again": {"type": "digits", "batch_size": 64}}, "steps": 20},
        "task": {"type": "multi-task", "tasks": {"again": "classification"}},
        "folder": str(tmp_path / "run"),
    }
    result = train(run, {"trainer.max_epochs": 1, "optimizer.lr": 1e-2}, progress=False)
    learned = zoo.load(result.folder / "model")
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(said(learned), before))
    moved = {name for name, each in learned.state_dict().items() if not torch.equal(each, first[name])}
    assert {name.split(".")[1] for name in moved} == {"small", "again"}
    assert json.loads((result.folder / "result.json").read_text())["test_again/accuracy"] > 0.15


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data.tasks.recognize": {"type": "digits"}}, "data.tasks.recognize: the model has no task 'recognize'; did you mean"),
        (
            {"data.weights.captions": 2},
            "data.weights.captions: there are no data of a task 'captions'; did you mean 'caption'?",
        ),
        ({"data.weights.caption": 0}, "data.weights.caption: "),
        ({"data.only": ["write", "captions"]}, "data.only.1: there are no data of a task 'captions'; did you mean 'caption'?"),
        ({"data.only": []}, "data.only: "),
        ({"model.heads.digit.classes": 9}, "model.heads.digit.classes: data 'digits' has 10 classes, and this is 9"),
        ({"task.tasks.recognise": "causal-language"}, "model.heads.digit: task 'causal-language' needs a head of type"),
        ({"data.tasks.dates": "digits"}, "model.embeddings.text: "),
        ({"data.tasks.dates.length": 200}, "model has positions for 160 tokens"),
        ({"data": "digits"}, "data: task 'multi-task' needs data of type 'multi-task', and these are 'digits'"),
        ({"task": "classification"}, "model.head: task 'classification' needs a head of type 'classifier', and this is none"),
        ({"model": "vit-tiny"}, "model.type: task 'multi-task' needs a model of type 'multi-task', and this is 'transformer'"),
    ],
)
def test_runs_that_do_not_fit(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_run(RUN, change)
    assert words in str(caught.value)


def test_tasks_and_data_have_the_same_names_in_the_same_order() -> None:
    turned = {**RUN, "task": {"type": "multi-task", "tasks": dict(reversed(TASKS.items()))}}
    with pytest.raises(ConfigError, match=r"task.tasks: the data are of recognise, caption, write, dates, and these are dates"):
        resolve_run(turned)
    task: Any = make(MultiTask.Config(tasks={"write": "causal-language"}))
    with pytest.raises(DataError, match="a batch of several tasks has 'task', a number from 0 to 0, got None"):
        task.step(zoo.build(MODEL), {"input_ids": inputs_of()["input_ids"]})


def test_a_stream_cannot_be_mixed(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("one line of text\n" * 30, encoding="utf-8")
    data: Any = make(
        MultiTaskData.Config(tasks={"write": {"type": "text-files", "path": str(tmp_path / "text.txt"), "streaming": True}})
    )
    with pytest.raises(DataError, match="a stream cannot be mixed with other data; use streaming: false"):
        data.loader("train")
