"""`zoo generate`: one text as it comes, many at once, and mistakes."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import zoo
from zoo.cli import main

MODEL: dict[str, Any] = {
    "type": "transformer",
    "embedding": {"type": "tokens", "vocabulary": 260, "position": {"type": "learned", "length": 20_000}, "norm": None},
    "stack": {
        "type": "uniform",
        "width": 16,
        "depth": 2,
        "final_norm": "layer-norm",
        "block": {
            "norm": "layer-norm",
            "attention": {"type": "full", "heads": 2, "causal": True},
            "feedforward": {"type": "mlp", "hidden": 24},
        },
    },
    "head": {"type": "language-model", "tied": False, "bias": True},
}
Make = Callable[..., Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of letters and its tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from zoo.data.tokenizer import LibraryTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    library = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[]))
    library.add_special_tokens(["<s>", "</s>", "<pad>"])
    library.pre_tokenizer, library.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    place = tmp_path_factory.mktemp("model")
    model = zoo.build(MODEL, dtype="float32")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
        model.head.bias[94:] = -100  # the first tokens are the letters of ASCII
    zoo.save(model, place)
    LibraryTokenizer(library).save(place)
    return place


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Make:
    """A function that runs a command in this process: its exit code, and what it printed."""

    def call(*words: Any) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main([str(word) for word in words])
        printed = capsys.readouterr()
        return int(caught.value.code or 0), printed.out, printed.err

    return call


def expected(folder: Path, prompt: str, **options: Any) -> str:
    """The continuation, by `Model.generate` and the tokenizer."""
    import torch

    from zoo.data.tokenizer import FileTokenizer

    tokenizer = FileTokenizer(folder, "")
    ids = torch.tensor([tokenizer.content(prompt).ids])
    options = {"eos_token_id": tokenizer.end, "pad_token_id": tokenizer.padding, **options}
    found = zoo.load(folder).generate(ids, **options)[0]
    return tokenizer.decode(found.tolist())


def test_one_text_is_written_as_it_comes(command: Make, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []
    monkeypatch.setattr("builtins.print", _noting(flushed))
    code, out, err = command("generate", folder, "--prompt", "Once upon", "-n", 12)
    assert code == 0 and out == expected(folder, "Once upon", max_new_tokens=12) + "\n"
    assert len(flushed) == 13  # every token at once, and the end of the line
    assert err.startswith("zoo: 12 tokens in ") and err.endswith(" tokens/s\n")


def _noting(flushed: list[str]) -> Make:
    import builtins

    original = builtins.print

    def note(*words: Any, **named: Any) -> None:
        if named.get("flush"):
            flushed.append(str(words))
        original(*words, **named)

    return note


def test_many_texts(command: Make, folder: Path, tmp_path: Path) -> None:
    prompts = ["Once", "a longer prompt, caf\u00e9", "b", "Once"]
    (tmp_path / "prompts.txt").write_text("\n".join(["", *prompts]) + "\n", encoding="utf-8")
    options = {"max_new_tokens": 9, "repetition_penalty": 1.5}
    words = ["-n", 9, "--repetition-penalty", 1.5]
    texts = [expected(folder, prompt, **options) for prompt in prompts]
    for size in (1, 3, 8):
        code, out, err = command("generate", folder, tmp_path / "prompts.txt", *words, "--batch-size", size)
        assert (code, out) == (0, "\n---\n".join(texts) + "\n") and "36 tokens" in err
    code, out, err = command("generate", folder, *(word for prompt in prompts for word in ("-p", prompt)), *words, "--json")
    found = json.loads(out)
    assert code == 0 and err == "" and [each["prompt"] + each["text"] for each in found["texts"]] == texts
    assert found["tokens"] == 36 and found["tokens_per_second"] > 0 and {each["tokens"] for each in found["texts"]} == {9}


def test_standard_input(command: Make, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in ([], ["-"]):
        monkeypatch.setattr(sys, "stdin", io.StringIO("Once\n"))
        code, out, _ = command("generate", folder, *words, "-n", 5)
        assert (code, out) == (0, expected(folder, "Once", max_new_tokens=5) + "\n")


def test_drawn_texts(command: Make, folder: Path) -> None:
    words = ["generate", folder, "-p", "Once", "-n", 7, "--json"]
    texts = {json.loads(command(*words, "--seed", seed)[1])["texts"][0]["text"] for seed in (1, 1, 2, 3)}
    assert len(texts) == 3  # a seed says that tokens are drawn
    wanted = expected(folder, "Once", max_new_tokens=7, do_sample=True, top_k=3, temperature=0.5, seed=1)
    assert (
        "Once" + json.loads(command(*words, "--seed", 1, "--top-k", 3, "--temperature", 0.5)[1])["texts"][0]["text"] == wanted
    )
    several = json.loads(command(*words, "--seed", 1, "--num-return-sequences", 3, "-p", "Twice", "--batch-size", 1)[1])
    assert [each["prompt"] for each in several["texts"]] == ["Once"] * 3 + ["Twice"] * 3
    assert len({each["text"] for each in several["texts"]}) == 6
    whole = json.loads(command(*words, "--seed", 1, "--num-return-sequences", 3, "-p", "Twice")[1])
    assert whole["texts"] == several["texts"]


def test_beams_and_stop_strings(command: Make, folder: Path) -> None:
    text = expected(folder, "Once", max_new_tokens=12, num_beams=3)
    code, out, _ = command("generate", folder, "-p", "Once", "-n", 12, "--num-beams", 3)
    assert (code, out) == (0, text + "\n")
    text = expected(folder, "Once", max_new_tokens=12, num_beams=3, length_penalty=-4.0)
    assert command("generate", folder, "-p", "Once", "-n", 12, "--num-beams", 3, "--length-penalty", -4.0)[1] == text + "\n"
    greedy = expected(folder, "Once", max_new_tokens=12)
    stop = greedy[4 + 5 : 4 + 7]
    end = greedy.index(stop, 4 - 1) + 2
    for words in ([], ["-p", "Once"]):
        out = command("generate", folder, "-p", "Once", *words, "-n", 12, "--stop", stop)[1]
        assert out.startswith(greedy[:end]) and out.split("\n---\n")[0].rstrip("\n") == greedy[:end]


def test_what_ends_a_text(command: Make, folder: Path, tmp_path: Path) -> None:
    """The files that transformers saves say so, otherwise the tokenizer."""
    import shutil

    from zoo.cli.generate import open_writer

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert open_writer(str(copy)).ends == [257]
    text = expected(folder, "Once", max_new_tokens=12)
    token = open_writer(str(copy)).tokenizer.content(text[8]).ids[0]
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [token, 3]}))
    assert open_writer(str(copy)).ends == [token, 3]
    found = json.loads(command("generate", copy, "-p", "Once", "-n", 12, "--json")[1])["texts"][0]
    assert "Once" + found["text"] == text[: text.index(text[8], 4) + 1]
    (copy / "generation_config.json").write_text("[]")
    assert open_writer(str(copy)).ends == [257]


def test_a_run_begins_texts_as_in_training(tmp_path: Path) -> None:
    from zoo.cli.generate import open_writer

    run = tmp_path / "run"
    zoo.save(zoo.build(MODEL), run / "model")
    data = "data: {type: text-files, tokenizer: bytes, path: texts.txt}\n"
    (run / "config.yaml").write_text(data + "task: causal-language\n")
    writer = open_writer(str(run))
    assert (writer.start, writer.ends) == (257, [258])


WRONG = [
    (["-p", "a", "FILE"], "--prompt: say either this or a file of prompts"),
    (["no-such.txt"], "no-such.txt: no such file"),
    (["-p", ""], "the prompt is empty"),
    (["-p", "a", "--temperature", "0"], "temperature: expected greater than 0"),
    (["-p", "a", "--num-beams", "2", "--seed", "1"], "do_sample: num_beams=2 follows the likeliest texts"),
    (["-p", "a", "--num-return-sequences", "2"], "num_return_sequences: 2 are wanted"),
    (["-p", "a", "-n", "20001"], "exceeds the model's table of 20000 positions"),
    (["EMPTY"], "there is no prompt in it"),
]


@pytest.mark.parametrize(("words", "message"), WRONG, ids=lambda value: "-".join(value) if isinstance(value, list) else "")
def test_a_mistake_is_one_line(command: Make, folder: Path, tmp_path: Path, words: list[str], message: str) -> None:
    (tmp_path / "empty.txt").write_text("\n\n")
    places = {"FILE": str(tmp_path / "empty.txt"), "EMPTY": str(tmp_path / "empty.txt")}
    code, out, err = command("generate", folder, *(places.get(word, word) for word in words))
    assert code == 1 and out == "" and message in err and err.startswith("zoo: ") and err.count("\n") == 1


def test_a_model_that_writes_nothing(command: Make, tmp_path: Path, folder: Path) -> None:
    code, out, err = command("generate", tmp_path / "nothing", "-p", "a")
    assert code == 1 and out == "" and "nothing" in err and err.count("\n") == 1
    zoo.save(zoo.build(MODEL, {"head": None}), tmp_path / "headless")
    (tmp_path / "headless" / "tokenizer.json").write_text((folder / "tokenizer.json").read_text())
    code, out, err = command("generate", tmp_path / "headless", "-p", "a")
    assert code == 1 and out == "" and "needs a head that scores the next token" in err and err.count("\n") == 1


def test_control_c_keeps_what_was_written(folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "zoo", "generate", str(folder), "-p", "Once upon", "-n", "19000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(zoo.__file__).parents[1])},
        # a shell starts what runs in the background with Ctrl-C switched off, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    begun = process.stdout.read(12)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and begun.startswith("Once upon") and out.endswith("\n")
    assert err == "zoo: interrupted\n"
