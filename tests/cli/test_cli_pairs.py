"""The commands on a model with an encoder and a decoder: each line that is read becomes a line that is written."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from tests.training.pair_helpers import RUN
from zoo.cli import main
from zoo.data.tokenizer import ByteTokenizer

Make = Callable[..., Any]
LINES = ["der 5. März", "le 3 mai 1999", "ein recht langer Text ohne jeden Tag"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has learned next to nothing."""
    from zoo.training.run import train

    folder = tmp_path_factory.mktemp("pairs") / "run"
    return train(RUN, {"folder": str(folder), "optimizer.lr": 1e-2}, progress=False).folder


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Make:
    """A function that runs a command in this process: its exit code, and what it printed."""

    def call(*words: Any) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main([str(word) for word in words])
        printed = capsys.readouterr()
        return int(caught.value.code or 0), printed.out, printed.err

    return call


def expected(run: Path, text: str, **options: Any) -> list[str]:
    """What the model writes, by `generate` and the tokenizer."""
    model, tokenizer = zoo.load(run / "model"), ByteTokenizer()
    ids = torch.tensor([tokenizer.encode(text, 1000)])
    found = model.generate(input_ids=ids, eos_token_id=258, pad_token_id=256, max_new_tokens=12, **options)
    return [tokenizer.decode(row[1:].tolist()) for row in found]


def test_one_text(run: Path, command: Make) -> None:
    code, out, err = command("generate", run, "--prompt", LINES[0], "-n", 12)
    (text,) = expected(run, LINES[0])
    assert (code, out) == (0, text + "\n") and "tokens/s" in err and text


def test_lines_of_a_file_and_of_standard_input(run: Path, command: Make, tmp_path: Path, monkeypatch: Any) -> None:
    file = tmp_path / "lines.txt"
    file.write_text("\n".join(LINES) + "\n", encoding="utf-8")
    wanted = [expected(run, line)[0] for line in LINES]
    code, out, _ = command("generate", run, file, "-n", 12)
    assert code == 0 and out == "\n".join(wanted) + "\n"
    assert command("generate", run, file, "-n", 12, "--batch-size", 1)[1] == out
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(LINES)))
    assert command("generate", run, "-n", 12)[1] == out
    code, out, _ = command("generate", run, file, "-n", 12, "--json")
    said = json.loads(out)
    assert [each["text"] for each in said["texts"]] == wanted and [each["prompt"] for each in said["texts"]] == LINES
    assert said["tokens"] == sum(each["tokens"] for each in said["texts"])


def test_blank_lines_stay(run: Path, command: Make, tmp_path: Path) -> None:
    file = tmp_path / "lines.txt"
    file.write_text(f"\n{LINES[0]}\n\n\n{LINES[1]}\n\n", encoding="utf-8")
    first, second = (expected(run, line)[0] for line in LINES[:2])
    assert command("generate", run, file, "-n", 12)[1] == f"\n{first}\n\n\n{second}\n\n"
    assert len(json.loads(command("generate", run, file, "-n", 12, "--json")[1])["texts"]) == 2
    assert command("generate", run, "--prompt", "") == (1, "", "zoo: the prompt is empty: there is nothing to read\n")
    file.write_text(f"{LINES[0]}\n\n", encoding="utf-8")
    assert command("generate", run, file, "-n", 12)[1] == f"{first}\n\n"
    code, out, _ = command("generate", run, file, "-n", 12, "--num-beams", 2, "--num-return-sequences", 2)
    both = expected(run, LINES[0], num_beams=2, num_return_sequences=2)
    assert code == 0 and out == "\n".join([*both, ""]) + "\n"


def test_beams(run: Path, command: Make) -> None:
    words = ["generate", run, "--num-beams", 3, "--num-return-sequences", 2, "-n", 12]
    code, out, _ = command(*words, "--prompt", LINES[0], "--prompt", LINES[1], "--json")
    wanted = [text for line in LINES[:2] for text in expected(run, line, num_beams=3, num_return_sequences=2)]
    assert code == 0 and [each["text"] for each in json.loads(out)["texts"]] == wanted


def test_predictions(run: Path, command: Make, tmp_path: Path) -> None:
    code, out, _ = command("predict", run, LINES[0], "--top", 2, "--json")
    (said,) = json.loads(out)
    assert code == 0 and said["input"] == LINES[0] and len(said["answers"]) == 2
    assert said["answers"][0]["probability"] >= said["answers"][1]["probability"]
    code, out, _ = command("predict", run, "-o", tmp_path / "all.csv")
    assert (code, out) == (0, f"{tmp_path / 'all.csv'}: 24 inputs\n")
    assert (tmp_path / "all.csv").read_text().splitlines()[1].split(",")[-3] == "1937-01-14"


def test_evaluation_with_changes(run: Path, command: Make) -> None:
    code, out, _ = command("eval", run, "data.asked=new-locales", "data.measured=8", "--json")
    said = json.loads(out)
    assert code == 0 and said["examples"] == 88 and 0 <= said["exact_match"] <= said["accuracy"] <= 1
    code, _, err = command("eval", run, "data.askd=new-locales")
    assert (code, err) == (1, "zoo: data: askd: unknown field of data 'dates'; did you mean 'asked'?\n")
    code, _, err = command("eval", run, "optimizer.lr=3")
    assert code == 1 and err.startswith("zoo: optimizer: expected a field of data or task, as in data.batch_size=8")


def test_a_picture_of_the_alignment(run: Path, command: Make, tmp_path: Path) -> None:
    picture = tmp_path / "seen.png"
    code, out, err = command("attend", run, LINES[0], "-o", picture, "--json", "--layers=-1", "--heads=all")
    said = json.loads(out)
    assert (code, err) == (0, "") and said["layers"] == [1] and said["heads"] == [0, 1]
    assert said["picture"] == str(picture) and picture.stat().st_size > 10_000
    assert expected(run, LINES[0])[0].startswith(said["written"][:12]) or said["written"].startswith(expected(run, LINES[0])[0])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["  ", "-o", "a.png"], "zoo: INPUT: the text is empty\n"),
        (["a", "-o", "a.png", "--layers", "7"], "zoo: layers: 7 is none of 0 to 1 (negative numbers count from the end)\n"),
        (
            ["a", "-o", "a.png", "--rollout"],
            "zoo: attend: --rollout and --token have no meaning for a model that writes a text",
        ),
        (["a", "-o", "a.txt"], "zoo: a.txt: expected the name of a picture"),
    ],
)
def test_pictures_that_cannot_be(run: Path, command: Make, words: list[str], message: str) -> None:
    code, out, err = command("attend", run, *words)
    assert (code, out) == (1, "") and err.startswith(message) and len(err.splitlines()) == 1


def test_a_model_with_a_tokenizer_of_its_own(run: Path, command: Make, tmp_path: Path) -> None:
    """A folder such as the Hub's, which belongs to no run: its tokenizer.json says what ends a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    from zoo.data.tokenizer import FileTokenizer, LibraryTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    library = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[]))
    library.add_special_tokens(["<pad>", "</s>"])
    library.pre_tokenizer, library.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    library.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 257)])
    zoo.save(zoo.load(run / "model"), tmp_path / "model")
    LibraryTokenizer(library).save(tmp_path / "model")
    tokenizer = FileTokenizer(tmp_path / "model", "test")
    ids = torch.tensor([tokenizer.encode("ab", 100)])
    assert ids.tolist() == [[letters.index("a"), letters.index("b"), 257]]
    model = zoo.load(tmp_path / "model")
    wanted = model.generate(input_ids=ids, eos_token_id=257, pad_token_id=256, max_new_tokens=6)[0, 1:].tolist()
    code, out, _ = command("generate", tmp_path / "model", "-p", "ab", "-n", 6)
    assert code == 0 and out == tokenizer.decode(wanted) + "\n"


def test_a_model_without_a_tokenizer(run: Path, command: Make, tmp_path: Path) -> None:
    zoo.save(zoo.load(run / "model"), tmp_path / "alone")
    for name in ("generate", "predict"):
        more = ["--prompt", "a"] if name == "generate" else ["a"]
        code, _, err = command(name, tmp_path / "alone", *more)
        assert code == 1 and "there is no tokenizer.json" in err
