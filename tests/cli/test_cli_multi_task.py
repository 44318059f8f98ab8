"""The commands on a model of many tasks: the one that is named is asked, and all that does not fit it is one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from tests.model.multi_task_helpers import MODEL
from zoo.cli import main
from zoo.data.tokenizer import ByteTokenizer
from zoo.errors import ConfigError, UnknownNameError
from zoo.training.predict import predict

Make = Callable[..., Any]
TEXTS = ["5 March 2024", "May 3, 1999"]
PAIRS = {"type": "dates", "locales": ["en"], "size": 32, "measured": 6, "batch_size": 8}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of four tasks that has learned next to nothing."""
    from zoo.training.run import train

    folder = tmp_path_factory.mktemp("many")
    (folder / "text.txt").write_text("".join(f"this is line {number}\n" for number in range(40)), encoding="utf-8")
    texts = {"type": "text-files", "path": str(folder / "text.txt"), "length": 24, "batch_size": 4, "tokenizer": "wordpiece"}
    config = {
        "type": "train",
        "model": {**MODEL, "tasks": {**MODEL["tasks"], "dates": {"from": "text", "to": "words"}}},
        "data": {
            "type": "multi-task",
            "tasks": {
                "recognise": {"type": "digits", "batch_size": 32},
                "caption": {"type": "captioned-digits", "batch_size": 16},
                "write": {**texts, "vocabulary": 260},
                "dates": PAIRS,
            },
            "only": ["recognise", "write", "dates"],
            "steps": 6,
        },
        "task": {
            "type": "multi-task",
            "tasks": {
                "recognise": "classification",
                "caption": "prefix-language",
                "write": "causal-language",
                "dates": "prefix-language",
            },
        },
        "optimizer": {"lr": 1e-2},
        "trainer": {"max_epochs": 1, "accelerator": "cpu"},
        "folder": str(folder / "run"),
    }
    return train(config, progress=False).folder


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Make:
    """A function that runs a command in this process: its exit code, and what it printed."""

    def call(*words: Any) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main([str(word) for word in words])
        printed = capsys.readouterr()
        return int(caught.value.code or 0), printed.out, printed.err

    return call


def images(*numbers: int) -> torch.Tensor:
    """Test images of the digits."""
    from zoo.data.digits import Digits
    from zoo.registry import make

    data: Any = make(Digits.Config())
    return torch.stack([data.split("test")[number]["pixel_values"] for number in numbers])


def dates(run: Path, text: str, **options: Any) -> torch.Tensor:
    """The tokens that the model writes behind a source, all of whose tokens see each other."""
    model, ids = zoo.load(run / "model"), ByteTokenizer().encode(text, 128)
    prefix = torch.tensor([len(ids)])
    options = {"max_new_tokens": 16, "eos_token_id": 258, "pad_token_id": 256, **options}
    found: torch.Tensor = model.generate(torch.tensor([ids]), task="dates", prefix_lengths=prefix, **options)
    return found[:, len(ids) :]


def test_a_digit(run: Path, command: Make, tmp_path: Path) -> None:
    from PIL import Image

    (answer,) = predict(run, ["digits:3"], task="recognise", top=10)
    with torch.no_grad():
        shares = zoo.load(run / "model")(images(3), task="recognise").logits[0].softmax(-1)
    assert [name for name, _ in answer.answers] == [str(each) for each in shares.argsort(descending=True).tolist()]
    assert answer.answers[0][1] == pytest.approx(float(shares.max())) and answer.label is not None
    # a file with the grey of the same image
    Image.fromarray(((images(3)[0, 0] + 1) * 127.5).round().byte().numpy()).save(tmp_path / "digit.png")
    code, out, _ = command("predict", run, tmp_path / "digit.png", "--task", "recognise", "--json")
    (found,) = json.loads(out)
    assert code == 0 and found["answers"][0]["class"] == answer.answers[0][0]
    assert found["answers"][0]["probability"] == pytest.approx(answer.answers[0][1], abs=0.01)
    code, out, _ = command("predict", run, "--task", "recognise", "-o", tmp_path / "all.csv")
    assert code == 0 and "599 inputs" in out


def test_dates(run: Path, command: Make) -> None:
    found = [ByteTokenizer().decode(dates(run, text)[0].tolist()) for text in TEXTS]
    answers = list(predict(run, TEXTS, task="dates"))
    assert [each.answers[0][0] for each in answers] == found and found[0]
    for text, words in ((TEXTS[0], ["-p", TEXTS[0]]), (None, [word for each in TEXTS for word in ("-p", each)])):
        code, out, err = command("generate", run, "--task", "dates", *words, "-n", 16)
        assert (code, out) == (0, (found[0] if text else "\n".join(found)) + "\n") and "tokens/s" in err
    code, out, _ = command("predict", run, "--task", "dates", "--json")
    assert code == 0 and len(json.loads(out)) == 6 and all("label" in each for each in json.loads(out))


def test_probabilities_are_those_of_the_whole_answer(run: Path) -> None:
    (answer,) = predict(run, TEXTS[:1], task="dates", top=3)
    model, source = zoo.load(run / "model"), ByteTokenizer().encode(TEXTS[0], 128)
    rows = dates(run, TEXTS[0], num_beams=3, num_return_sequences=3).tolist()
    expected = []
    for ids in rows:
        target = ids[: ids.index(258) + 1] if 258 in ids else ids
        with torch.no_grad():
            row = torch.tensor([source + target])
            scores = model(row, task="dates", prefix_lengths=torch.tensor([len(source)])).logits[0].log_softmax(-1)
        own = scores[len(source) - 1 : -1].gather(1, torch.tensor(target)[:, None])
        expected.append((ByteTokenizer().decode(target), float(own.sum().exp())))
    expected.sort(key=lambda each: -each[1])
    assert [name for name, _ in answer.answers] == [name for name, _ in expected]
    assert [share for _, share in answer.answers] == pytest.approx([share for _, share in expected], rel=1e-4)


def test_captions(run: Path, command: Make) -> None:
    model, start = zoo.load(run / "model"), torch.tensor([[257]])
    options = {"task": "caption", "max_new_tokens": 8, "eos_token_id": 258, "pad_token_id": 256}
    texts = []
    for number in (0, 7):
        ids = model.generate(start, pixel_values=images(number), **options)[0, 1:].tolist()
        texts.append(ByteTokenizer().decode(ids))
    code, out, _ = command("generate", run, "--task", "caption", "--image", "digits:0", "-n", 8)
    assert (code, out) == (0, texts[0] + "\n")
    words = ["--image", "digits:0", "--image", "digits:7", "-n", 8]
    code, out, _ = command("generate", run, "--task", "caption", *words)
    assert (code, out) == (0, f"digits:0: {texts[0]}\ndigits:7: {texts[1]}\n")
    code, out, _ = command("generate", run, "--task", "caption", *words, "--json", "--batch-size", 1)
    found = json.loads(out)["texts"]
    assert [(each["image"], each["text"]) for each in found] == [("digits:0", texts[0]), ("digits:7", texts[1])]
    code, out, _ = command("generate", run, "--task", "caption", "--image", "digits:0", "-p", "a", "-n", 3)
    begun = model.generate(torch.tensor([[257, 97]]), pixel_values=images(0), **{**options, "max_new_tokens": 3})
    assert (code, out) == (0, ByteTokenizer().decode(begun[0, 1:].tolist()) + "\n")
    (answer,) = predict(run, ["digits:7"], task="caption")
    assert answer.answers[0][0].startswith(texts[1][:4]) and 0 <= answer.answers[0][1] <= 1


def test_texts_by_the_tokenizer_of_their_task(run: Path, command: Make) -> None:
    assert (run / "model" / "write" / "tokenizer.json").is_file()
    code, out, _ = command("generate", run, "--task", "write", "-p", "this is", "-n", 4)
    assert code == 0 and out.startswith("this is")
    (answer,) = predict(run, ["this is"], task="write")
    assert len(answer.answers) == 5
    code, out, _ = command("attend", run, "this is", "-o", run / "a.png", "--task", "write", "--layers", 1)
    assert code == 0 and (run / "a.png").is_file()


def test_evaluation_of_some_tasks(run: Path, command: Make) -> None:
    code, out, _ = command("eval", run, "data.only=[dates]", "--json")
    assert code == 0 and set(json.loads(out)) == {"loss", "dates/loss", "dates/accuracy", "dates/exact_match", "examples"}
    code, out, _ = command("experts", run, "data.only=[dates,write]", "--json")
    assert code == 0 and set(json.loads(out)["tokens"]) == {"dates", "write"}
    assert (run / "experts.png").is_file()


WRONG = [
    (["predict", "RUN", "digits:3"], "has 4 tasks, so say which to ask: --task NAME, one of recognise, caption, write, dates"),
    (["predict", "RUN", "digits:3", "--task", "recognize"], "unknown task 'recognize'; did you mean 'recognise'?"),
    (["predict", "RUN", "a text", "--task", "recognise"], "a text: no such file or folder"),
    (["predict", "RUN", "--task", "caption"], "say what to describe: image files, folders of them"),
    (["predict", "RUN", "--task", "write"], "say what the next token is asked of"),
    (["predict", "vit-tiny-run", "--task", "write"], "vit-tiny-run"),
    (["generate", "RUN", "-p", "a"], "say which to ask: --task NAME, one of"),
    (["generate", "RUN", "-p", "a", "--task", "captoin"], "unknown task 'captoin'; did you mean 'caption'?"),
    (["generate", "RUN", "-p", "a", "--task", "recognise"], "task 'recognise' writes no text, by a head of type 'classifier'"),
    (["generate", "RUN", "-p", "a", "--task", "caption"], "task 'caption' writes behind an image; say which: --image"),
    (["generate", "RUN", "-p", "a", "--task", "write", "--image", "digits:3"], "--image: this model writes behind texts alone"),
    (["generate", "RUN", "-p", "", "--task", "dates"], "the prompt is empty"),
    (["generate", "RUN", "-p", "a", "-p", "b", "--task", "caption", "--image", "digits:3"], "--image: all texts begin alike"),
    (["generate", "RUN", "--task", "caption", "--image", "no.png"], "no.png: no such file or folder"),
    (["attend", "RUN", "digits:3", "-o", "a.png"], "say which to ask: --task NAME, one of"),
    (["attend", "RUN", "digits:3", "-o", "a.png", "--task", "caption"], "task 'caption' reads input_ids and pixel_values"),
    (["attend", "vit-tiny", "digits:3", "-o", "a.png", "--task", "x"], "a model of type 'transformer', which has one task"),
]


@pytest.mark.parametrize(("words", "message"), WRONG, ids=lambda value: "-".join(value[:1]) if isinstance(value, list) else "")
def test_a_mistake_is_one_line(
    run: Path, command: Make, tmp_path: Path, monkeypatch: Any, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = command(*(run if word == "RUN" else word for word in words))
    assert code == 1 and out == "" and message in err and err.startswith("zoo: ") and err.count("\n") == 1


def test_the_same_from_python(run: Path) -> None:
    with pytest.raises(ConfigError, match="so say which to ask"):
        list(predict(run, ["digits:3"]))
    with pytest.raises(UnknownNameError, match="did you mean 'dates'"):
        list(predict(run, ["digits:3"], task="date"))
