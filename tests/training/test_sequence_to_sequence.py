"""Writing one text for another: the loss, what is right, what a model writes, runs, and the commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

import zoo
from tests.training.pair_helpers import MODEL, RUN
from zoo.data.dates import Dates
from zoo.data.text_pairs import TextPairs
from zoo.data.tokenizer import ByteTokenizer
from zoo.errors import ConfigError, DataError
from zoo.registry import make
from zoo.task.exact_match import Right
from zoo.task.sequence_to_sequence import SequenceToSequence
from zoo.training.evaluate import evaluate
from zoo.training.module import ZooModule
from zoo.training.predict import predict
from zoo.training.run import resolve_run, train

WORDS = ("ab", "ba", "aa", "bb", "abb", "baa")
"""What the small run learns to write in capitals."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run that has learned to write two short words in capitals, from some of their combinations."""
    folder = tmp_path_factory.mktemp("capitals")
    lines = [f"{first} {second}\t{(first + '-' + second).upper()}\n" for first in WORDS for second in WORDS]
    (folder / "words.tsv").write_text("".join(lines) * 12, encoding="utf-8")
    data = {"type": "text-pairs", "path": str(folder / "words.tsv"), "batch_size": 8, "target_length": 16, "validation": 0.2}
    fields = {**RUN, "data": data, "trainer": {"max_epochs": 8, "accelerator": "cpu"}, "folder": str(folder / "run")}
    return train(fields, {"optimizer.lr": 2e-2, "model.encoder.stack.depth": 1}, progress=False)


def task_of(**fields: Any) -> SequenceToSequence:
    task: SequenceToSequence = make(SequenceToSequence.Config(**fields))
    task.adapt(make(Dates.Config(measured=8)))
    return task


def batch_of(number: int = 6) -> dict[str, Any]:
    """Pairs of several lengths."""
    data: Any = make(Dates.Config(measured=number))
    rows = [{"source": "ab" * (n + 1), "target": "c" * (2 * n + 1)} for n in range(number)]
    return dict(data.collate([data.read(row) for row in rows]))


def model_of(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return zoo.build(MODEL)


def test_the_loss_by_hand() -> None:
    model, batch, task = model_of().eval(), batch_of(), task_of(written=0)
    step = task.step(model, batch)
    costs, targets, right = [], [], []
    for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"]):
        wanted = labels[labels != -100]
        before = torch.cat([torch.tensor([257]), wanted[:-1]])
        logits = model(input_ids=ids[mask.bool()][None], decoder_input_ids=before[None]).logits[0]  # each pair alone
        costs.append(functional.cross_entropy(logits.detach(), wanted, reduction="none"))
        targets.append(wanted)
        right.append(logits.argmax(-1))
    assert torch.equal(step.targets, torch.cat(targets)) and len(step.targets) == sum(2 * n + 2 for n in range(6))
    assert float(step.loss.detach()) == pytest.approx(float(torch.cat(costs).mean()), abs=1e-6)
    assert torch.equal(step.predictions[:, 0], torch.cat(right))
    whole = [bool((said == wanted).all()) for said, wanted in zip(right, targets)]
    judged = step.predictions[:, 1]
    assert judged[judged >= 0].tolist() == [int(each) for each in whole] and int((judged >= 0).sum()) == 6


def test_smoothing_is_of_training_alone() -> None:
    model, batch = model_of(), batch_of()
    plain, smooth = task_of(written=0), task_of(written=0, label_smoothing=0.1)
    logits = model(**batch).logits.detach()
    known = batch["labels"] != -100
    logarithms = logits.log_softmax(-1)[known]
    right = -logarithms.gather(1, batch["labels"][known][:, None]).mean()
    expected = 0.9 * right - 0.1 * logarithms.mean()
    assert float(smooth.step(model.train(), batch).loss.detach()) == pytest.approx(float(expected), abs=1e-5)
    assert float(plain.step(model, batch).loss.detach()) == pytest.approx(float(right), abs=1e-5)
    assert float(smooth.step(model.eval(), batch).loss.detach()) == pytest.approx(float(right), abs=1e-5)


def test_padding_is_neither_read_nor_written() -> None:
    model, batch, task = model_of().eval(), batch_of(), task_of(written=0)
    wider = {
        "input_ids": functional.pad(batch["input_ids"], (0, 5), value=7),
        "attention_mask": functional.pad(batch["attention_mask"], (0, 5)),
        "labels": functional.pad(batch["labels"], (0, 3), value=-100),
    }
    first, second = task.step(model, batch), task.step(model, wider)
    assert float(first.loss.detach()) == pytest.approx(float(second.loss.detach()), abs=1e-6)
    assert torch.equal(first.predictions, second.predictions) and torch.equal(first.targets, second.targets)


def test_no_token_of_a_target_sees_itself_or_one_behind_it() -> None:
    model, batch = model_of(), batch_of(2)
    logits = model(**batch).logits
    changed = {**batch, "labels": batch["labels"].clone()}
    changed["labels"][1, 2] = 65
    assert torch.equal(model(**changed).logits[1, :3], logits[1, :3])
    assert not torch.equal(model(**changed).logits[1, 3], logits[1, 3])


@pytest.mark.parametrize("written", [None, 0, 3])
def test_what_is_written_is_what_one_pass_tells(finished: Any, written: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = zoo.load(finished.folder / "model")
    data: Any = make(TextPairs.Config.model_validate(resolve_run(finished.folder / "config.yaml").data.plain()))
    task, calls = make(SequenceToSequence.Config(written=written)), []
    task.adapt(data)
    generate = type(model).generate

    def counted(self: Any, *arguments: Any, **named: Any) -> Any:
        calls.append(len(named["input_ids"]))
        return generate(self, *arguments, **named)

    monkeypatch.setattr(type(model), "generate", counted)
    batch = next(iter(data.loader("train")))
    step = task.step(model, batch)
    judged = step.predictions[:, 1]
    right = judged[judged >= 0]
    told = make(SequenceToSequence.Config(written=0)).step(model, batch).predictions[:, 1]
    assert torch.equal(judged, told) and right.float().mean() > 0
    assert calls == {None: [8], 0: [], 3: [3]}[written]
    # with weights that are half forgotten some are wrong, and both still agree
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.93)
    mixed = [make(SequenceToSequence.Config(written=n)) for n in (None, 0)]
    for each in mixed:
        each.adapt(data)
    found = [each.step(model, batch).predictions[:, 1] for each in mixed]
    assert torch.equal(*found)


def test_what_is_written_counts(finished: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that writes something else than it scores is found out."""
    model = zoo.load(finished.folder / "model")
    monkeypatch.setattr(type(model), "generate", lambda self, input_ids, **named: torch.full((len(input_ids), 3), ord("x")))
    data: Any = make(TextPairs.Config.model_validate(resolve_run(finished.folder / "config.yaml").data.plain()))
    task = make(SequenceToSequence.Config())
    task.adapt(data)
    judged = task.step(model, next(iter(data.loader("train")))).predictions[:, 1]
    assert judged.max() == 0


def test_metrics_count_tokens_and_targets() -> None:
    predictions = torch.tensor([[5, 1], [6, -1], [9, 0], [8, -1], [8, -1]])
    targets = torch.tensor([5, 6, 7, 8, 9])
    for column, wanted in ((0, 3 / 5), (1, 1 / 2)):
        metric = Right(column)
        metric.update(predictions[:2], targets[:2])
        metric.update(predictions[2:], targets[2:])
        assert float(metric.compute()) == pytest.approx(wanted)


def test_a_run_learns_and_is_measured(finished: Any) -> None:
    metrics = finished.metrics
    assert metrics["test_exact_match"] >= 0.7 and metrics["test_accuracy"] >= 0.9
    assert metrics["validation_exact_match"] >= 0.5 and metrics["train_loss"] < 2
    assert (finished.folder / "best.ckpt").is_file() and (finished.folder / "curve.png").is_file()
    again = evaluate(finished.folder)
    assert again.metrics["exact_match"] == metrics["test_exact_match"] and again.examples == len(again.targets)
    one_pass = evaluate(finished.folder, changes={"task.written": 0})
    assert one_pass.metrics == again.metrics
    fewer = evaluate(finished.folder, changes={"data.batch_size": 1})
    assert fewer.metrics["loss"] == pytest.approx(again.metrics["loss"], abs=1e-6)


@pytest.mark.parametrize("change", [{"model.decoder": 3}, {"dat.batch_size": 3}, {"data": 3}])
def test_changes_that_mean_nothing(finished: Any, change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"expected a field of data or task, as in data\.batch_size=8"):
        evaluate(finished.folder, changes=change)


def test_accumulated_batches(tmp_path: Path) -> None:
    """Targets of one length: two batches of 16 give the gradients of one of 32."""
    weights = []
    for size, batches in ((32, 1), (16, 2)):
        change = {"data.batch_size": size, "trainer.accumulate_grad_batches": batches, "folder": str(tmp_path / str(size))}
        change |= {"optimizer": {"name": "sgd", "lr": 0.1}, "data.validation": 0.0}
        weights.append(zoo.load(train(RUN, change, progress=False).folder / "model"))
    for (name, one), other in zip(weights[0].named_parameters(), weights[1].parameters()):
        assert torch.allclose(one, other, atol=1e-6), name


def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    fields = {**RUN, "folder": str(tmp_path / "whole"), "optimizer": {"schedule": "constant"}}
    whole = train(fields, {"trainer.max_epochs": 2}, progress=False)
    train(fields, {"folder": str(tmp_path / "broken")}, progress=False)
    (tmp_path / "broken" / "result.json").unlink()
    broken = train(fields, {"folder": str(tmp_path / "broken"), "trainer.max_epochs": 2}, progress=False, resume=True)
    both = [dict(zoo.load(each.folder / "model").named_parameters()) for each in (whole, broken)]
    assert all(torch.equal(value, both[1][name]) for name, value in both[0].items())


def test_half_precision_and_averages(tmp_path: Path) -> None:
    change = {"trainer.precision": "bf16-mixed", "averaging": 0.9, "folder": str(tmp_path / "run")}
    assert train(RUN, change, progress=False).metrics["test_loss"] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "pydoc"}, r"data: task 'sequence-to-sequence' needs pairs of texts, and data 'pydoc' have none"),
        ({"data": "pydoc", "model": "gpt-mini"}, r"model\.type: task 'sequence-to-sequence' needs a model of type 'encoder-"),
        ({"model.decoder.head": None}, r"model\.decoder\.head: task 'sequence-to-sequence' needs a head of type 'language-mo"),
        ({"task.label_smoothing": 1.0}, r"task\.label_smoothing: expected less than 1"),
    ],
)
def test_what_does_not_fit_is_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_run(RUN, change)


def test_batches_that_are_no_pairs() -> None:
    with pytest.raises(DataError, match="a mapping with 'labels' of shape"):
        task_of().step(model_of(), {"input_ids": torch.zeros(1, 3, dtype=torch.long)})
    with pytest.raises(DataError, match="a mapping with 'labels' of shape"):
        task_of().step(model_of(), {"input_ids": torch.zeros(1, 3, dtype=torch.long), "labels": torch.zeros(1)})


def test_a_module_of_ones_own_learns_without_data_that_say_what_ends_a_text() -> None:
    module = ZooModule(model_of(), task="sequence-to-sequence")
    step = module.task.step(module.model.eval(), batch_of())
    assert int((step.predictions[:, 1] >= 0).sum()) == 6


def test_answers_and_their_probabilities(finished: Any) -> None:
    (found,) = predict(finished.folder, ["ab ba"], top=3)
    assert found.name == "ab ba" and found.answers[0][0] == "AB-BA" and len(found.answers) == 3
    shares = [share for _, share in found.answers]
    assert shares == sorted(shares, reverse=True) and shares[0] > 0.1 and sum(shares) <= 1
    model, tokenizer = zoo.load(finished.folder / "model"), ByteTokenizer()
    ids = torch.tensor([tokenizer.encode("ab ba", 32)])
    for text, share in found.answers:
        labels = torch.tensor([[*text.encode(), 258]])
        logits = model(input_ids=ids, labels=labels).logits.log_softmax(-1)
        assert share == pytest.approx(float(logits.gather(2, labels[..., None]).detach().sum().exp()), rel=1e-4)
    both = list(predict(finished.folder, ["ab ba", "b", "aa abb"]))
    assert both[0].answers[0] == pytest.approx(next(iter(predict(finished.folder, ["ab ba"]))).answers[0])
    part = list(predict(finished.folder))
    data: Any = make(TextPairs.Config.model_validate(resolve_run(finished.folder / "config.yaml").data.plain()))
    assert [(each.name, each.label) for each in part] == list(data.pairs_of("test"))
    right = [each.answers[0][0] == each.label for each in part]
    assert sum(right) / len(right) == pytest.approx(finished.metrics["test_exact_match"])


def test_nothing_to_answer(finished: Any) -> None:
    with pytest.raises(ConfigError, match=r"there is no tokenizer\.json"):
        next(predict(finished.folder / "model", ["ab"], data={"type": "pydoc", "tokenizer": "bpe"}))
    with pytest.raises(ConfigError, match="belongs to no run with pairs of texts, so say what to answer"):
        next(predict(finished.folder, data="pydoc"))


def test_the_shipped_run_fits_together() -> None:
    config = resolve_run("transformer-mini-dates")
    assert config.model.type == "encoder-decoder" and config.model.decoder.stack.block.order == "post"
    assert zoo.build(config.model, device="meta").num_parameters() < 1_200_000


@pytest.mark.slow
def test_the_shipped_run_reads_dates(tmp_path: Path) -> None:
    folder = train("transformer-mini-dates", {"folder": str(tmp_path / "run")}, progress=False).folder
    assert json.loads((folder / "result.json").read_text())["test_exact_match"] >= 0.98
    assert evaluate(folder, changes={"data.asked": "new-locales"}).metrics["exact_match"] >= 0.9
