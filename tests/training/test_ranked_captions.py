"""Captions ranked by likelihood among those of all classes, and what fills them up, of which no expert takes account."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import zoo
from tests.model.multi_task_helpers import MODEL
from zoo.data.captioned_digits import CaptionedDigits
from zoo.errors import ConfigError, DataError
from zoo.registry import make
from zoo.task.multi_task import MultiTask
from zoo.task.prefix_language import PrefixLanguage
from zoo.training.run import resolve_run

END = 258


@pytest.fixture(scope="module")
def parts() -> tuple[Any, Any, Any]:
    """A model, a task that ranks, and a batch of the test part."""
    torch.manual_seed(0)
    model = zoo.build(MODEL).eval()
    data: Any = make(CaptionedDigits.Config(batch_size=24))
    task: Any = make(PrefixLanguage.Config(ranked=True))
    task.adapt(data)
    batch = {name: each[:24] for name, each in next(iter(data.loader("test"))).items()}
    return model.route("caption"), task, batch


def likelihood(model: Any, image: torch.Tensor, ids: torch.Tensor) -> float:
    """The logarithm of the probability of one text, without what fills it up."""
    ids = ids[: int((ids == END).long().argmax()) + 1]
    with torch.no_grad():
        scores = model(input_ids=ids[None], pixel_values=image[None]).logits[0].log_softmax(-1)
    return float(scores[:-1].gather(1, ids[1:, None]).sum())


def test_the_likeliest_sentence_by_hand(parts: Any) -> None:
    model, task, batch = parts
    with torch.no_grad():
        step = task.step(model, batch)
    judged = step.predictions[:, 2]
    assert step.predictions.shape[1] == 3 and int((judged >= 0).sum()) == 24 and step.without == ()
    hits = []
    for image, ids, label in zip(batch["pixel_values"], batch["input_ids"], batch["labels"]):
        (phrasing,) = (task.prompts[:, label] == ids).all(-1).nonzero().flatten().tolist()
        found = [likelihood(model, image, each) for each in task.prompts[phrasing]]
        hits.append(int(max(range(10), key=found.__getitem__) == int(label)))
    assert judged[judged >= 0].tolist() == hits and 0 < sum(hits) < 24
    metric = task.metrics(model)["class_accuracy"]
    metric.update(step.predictions, step.targets)
    assert float(metric.compute()) == pytest.approx(sum(hits) / 24)


def test_nothing_is_ranked_in_training(parts: Any) -> None:
    model, task, batch = parts
    model.stack.train()
    try:
        step = task.step(model, batch)
    finally:
        model.stack.eval()
    assert step.predictions.shape[1] == 2 and step.without == ("class_accuracy",)
    metrics = {"a/accuracy": 1, "a/class_accuracy": 2, "b/accuracy": 3, "b/class_accuracy": 4}
    assert step._replace(task="a").measured(metrics) == {"a/accuracy": 1}
    plain: Any = make(PrefixLanguage.Config())
    assert "class_accuracy" not in plain.metrics(model)


def test_several_tasks_pass_on_what_is_not_said() -> None:
    torch.manual_seed(0)
    model = zoo.build(MODEL)
    data: Any = make(CaptionedDigits.Config(batch_size=4))
    task: Any = make(MultiTask.Config(tasks={"caption": {"type": "prefix-language", "ranked": True}}))
    task.parts["caption"].adapt(data)
    step = task.step(model.train(), {**next(iter(data.loader("test"))), "task": torch.tensor(0)})
    assert set(step.measured(task.metrics(model))) == {"caption/accuracy", "caption/exact_match"}


def test_a_sentence_of_nobody(parts: Any) -> None:
    model, task, batch = parts
    wrong = {**batch, "input_ids": batch["input_ids"].clone()}
    wrong["input_ids"][3, 1] = 5
    with pytest.raises(DataError, match="a text is none of the sentences that its data have for its class"):
        task.step(model, wrong)


def test_data_without_sentences_for_classes() -> None:
    change = {"task.tasks.dates": {"type": "prefix-language", "ranked": True}}
    with pytest.raises(ConfigError, match=r"task.tasks.dates.ranked: data 'dates' have no sentences for classes"):
        resolve_run("pathways-mini", change)


def test_what_fills_captions_up_is_no_token_for_a_router(parts: Any) -> None:
    model, _, batch = parts
    longer = {**batch, "input_ids": torch.nn.functional.pad(batch["input_ids"], (0, 30), value=END)}
    plain: Any = make(PrefixLanguage.Config())
    plain.end = END
    model.stack.train()
    try:
        losses = [plain.step(model, each).loss.item() for each in (batch, longer)]
    finally:
        model.stack.eval()
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
