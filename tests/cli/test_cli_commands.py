"""The command line: happy paths, one line on stderr for mistakes, exit codes, JSON, Ctrl-C and broken pipes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import zoo
from zoo.cli import main

Make = Callable[..., Any]


class Done(NamedTuple):
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """A function that runs a command in this process."""

    def call(*words: str) -> Done:
        with pytest.raises(SystemExit) as caught:
            main(list(words))
        printed = capsys.readouterr()
        return Done(int(caught.value.code or 0), printed.out, printed.err)

    return call


@pytest.fixture
def folder(model_of: Make, tmp_path: Path) -> Path:
    """A saved tiny model that transformers and timm can say."""
    return Path(zoo.save(model_of(dtype="float32"), tmp_path / "model"))


def test_list(command: Any) -> None:
    done = command("list")
    assert done.code == 0 and done.err == ""
    assert [line.split()[0] for line in done.out.splitlines()] == zoo.list_models()
    assert command("list", "*").out == done.out
    assert list(json.loads(command("list", "--json").out)) == zoo.list_models()
    assert list(json.loads(command("list", "vit-tiny*", "--json").out)) == ["vit-tiny", "vit-tiny-384"]
    assert "vit-tiny.augreg-in21k" in json.loads(command("list", "--pretrained", "--json").out)
    assert command("list", "--runs").code == 0 and command("list", "nothing*").out == ""


def test_show(command: Any, tmp_path: Path) -> None:
    import yaml

    done = command("show", "vit-tiny", "head.classes=10", "stack.block.norm=rms-norm")
    text, _, counts = done.out.partition("\n\n")
    assert done.code == 0
    config = zoo.get_config("vit-tiny", {"head.classes": 10, "stack.block.norm": "rms-norm"})
    assert zoo.get_config(yaml.safe_load(text)) == config
    count = zoo.build(config, device="meta").num_parameters()
    assert f"{count:,} parameters" in counts
    found = json.loads(command("show", "vit-tiny", "head.classes=10", "stack.block.norm=rms-norm", "--json").out)
    assert zoo.get_config(found["config"]) == config and found["parameters"].pop("all") == count == sum(
        found["parameters"].values()
    )


def test_components(command: Any) -> None:
    every = json.loads(command("components", "--json").out)
    assert [f"{kind}/{name}" for kind, names in every.items() for name in names] == zoo.list_components()
    text = command("components").out
    assert all(about["summary"] in text and about["summary"] for names in every.values() for about in names.values())
    one = command("components", "attention", "full").out
    assert "heads" in one and "kv_heads" in one and "needed" in one
    assert list(json.loads(command("components", "norm", "--json").out)) == ["norm"]


def test_schema(command: Any, tmp_path: Path) -> None:
    assert json.loads(command("schema").out)["title"] == "zoo model"
    assert json.loads(command("schema", "run").out)["title"] == "zoo run"
    done = command("schema", "-o", str(tmp_path / "deep" / "schema"))
    assert done.code == 0 and sorted(os.listdir(tmp_path / "deep" / "schema")) == ["model.json", "run.json"]


def test_load_report(command: Any, folder: Path) -> None:
    done = command("load-report", str(folder), "head.classes=9")
    assert done.code == 0 and "2 re-initialised" in done.out and "head.output.bias" in done.out
    assert "stack.final_norm.weight" not in done.out
    assert "stack.final_norm.weight" in command("load-report", str(folder), "--all").out
    entries = json.loads(command("load-report", str(folder), "--json").out)
    assert {entry["status"] for entry in entries} == {"loaded"} and len(entries) == len(zoo.load(folder).state_dict())


@pytest.mark.parametrize("target", ["zoo", "transformers", "timm"])
def test_convert_there_and_back(command: Any, folder: Path, tmp_path: Path, target: str, images: Make) -> None:
    import torch

    done = command("convert", str(folder), str(tmp_path / "there"), "--to", target)
    assert done.code == 0 and str(tmp_path / "there") in done.out
    back = json.loads(command("convert", str(tmp_path / "there"), str(tmp_path / "back"), "--json").out)
    assert back == {"folder": str(tmp_path / "back"), "format": "zoo"}
    x = images(dtype=torch.float32)
    assert torch.equal(zoo.load(tmp_path / "back")(x).logits, zoo.load(folder)(x).logits)


def test_verify(command: Any) -> None:
    done = command("verify", "vit-tiny", "--tiny", "--reference", "transformers", "--json")
    assert done.code == 0 and json.loads(done.out)
    wrong = command("verify", "vit-tiny", "stack.block.norm.eps=0.1", "--tiny", "--reference", "transformers")
    assert wrong.code == 1 and wrong.out


MISTAKES = [
    (["show", "vit-tny"], "did you mean 'vit-tiny'"),
    (["show", "vit-tiny", "head.clases=3"], "head.clases: unknown field of head 'classifier'; did you mean 'classes'"),
    (["show", "vit-tiny", "head.classes"], "is no override"),
    (["show", "vit-tiny", "head.classes=["], "no valid YAML"),
    (["show", "missing.yaml"], "missing.yaml: no such file"),
    (["components", "atention"], "did you mean 'attention'"),
    (["components", "attention", "ful"], "did you mean 'full'"),
    (["schema", "modl"], "did you mean 'model'"),
    (["schema", "-o", "/proc/zoo"], "/proc/zoo: cannot be written"),
    (["load-report", "no such place"], "no folder, .ckpt file, pretrained name or Hub id"),
    (["load-report", "EMPTY"], "no config.json"),
    (["convert", "EMPTY", "OUT"], "no config.json"),
    (["convert", "MODEL", "MODEL"], "source and result are the same folder"),
    (["convert", "MODEL", "MODEL/../model"], "source and result are the same folder"),
    (["convert", "MODEL", "OUT", "--to", "tim"], "timm"),
    (["convert", "MODEL", "MODEL/config.json"], "cannot be written"),
    (["verify", "vit-tny", "--tiny"], "vit-tn"),
    (["verify", "vit-tiny", "--tiny", "--reference", "keras"], "keras"),
    (["train", "no-such-run"], "no-such-run"),
    (["eval", "no such folder"], "no such folder"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES, ids=lambda value: "-".join(value) if isinstance(value, list) else "")
def test_a_mistake_is_one_line_and_code_1(command: Any, folder: Path, tmp_path: Path, words: list[str], message: str) -> None:
    (tmp_path / "empty").mkdir()
    places = {"EMPTY": tmp_path / "empty", "OUT": tmp_path / "out", "MODEL": folder}
    filled = [str(places[word]) if word in places else word.replace("MODEL/", f"{folder}/") for word in words]
    done = command(*filled)
    assert done.code == 1 and done.out == ""
    assert message in done.err and done.err.startswith("zoo: ") and done.err.count("\n") == 1
    assert "should not happen" not in done.err and "Traceback" not in done.err
    assert not (tmp_path / "out").exists()


USAGE = [["nothing"], ["show"], ["list", "--nothing"], ["convert", "x"], ["list", "a", "b"], ["verify", "--weights"]]


@pytest.mark.parametrize("words", USAGE, ids=str)
def test_wrong_usage_is_code_2(command: Any, words: list[str]) -> None:
    done = command(*words)
    assert (
        done.code == 2
        and done.out == ""
        and ("Usage: zoo" in done.err or "requires an argument" in done.err)
        and "Traceback" not in done.err
    )


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        *(
            [name, "--help"]
            for name in ("list", "show", "components", "schema", "verify", "load-report", "convert", "train", "eval", "demo")
        ),
    ],
    ids=str,
)
def test_every_command_has_help(command: Any, words: list[str]) -> None:
    done = command(*words)
    assert done.code == 0 and "Usage: zoo" in done.out
    assert len(words) == 1 or "--json" in done.out or words[0] in ("schema", "demo")


def test_debug_shows_the_traceback(run: Make) -> None:
    done = run("-m", "zoo", "show", "vit-tny", "--debug")
    assert done.returncode == 1 and "Traceback" in done.stderr and "UnknownNameError" in done.stderr
    plain = run("-m", "zoo", "show", "vit-tny")
    assert plain.returncode == 1 and "Traceback" not in plain.stderr and plain.stderr.startswith("zoo: unknown model 'vit-tny'")


def test_an_unforeseen_error_is_one_line_too(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.api.build", lambda *_, **__: 1 / 0)
    done = command("show", "vit-tiny")
    assert (
        done.code == 1 and "ZeroDivisionError" in done.err and "--debug shows where" in done.err and done.err.count("\n") == 1
    )
    with pytest.raises(ZeroDivisionError):
        main(["show", "vit-tiny", "--debug"])


def test_control_c_ends_with_one_line_and_code_130() -> None:
    words = [sys.executable, "-m", "zoo", "verify", "vit-base"]
    process = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(zoo.__file__).parents[1])},
        # a shell starts what runs in the background with Ctrl-C switched off, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    time.sleep(6)
    assert process.poll() is None, "the command ended too early to be interrupted"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130 and out == ""
    assert err == "zoo: interrupted\n"


@pytest.mark.parametrize("words", ["list", "list vit*", "components", "schema"])
def test_a_broken_pipe_is_quiet(words: str) -> None:
    text = f"{sys.executable} -m zoo {words.replace('*', chr(92) + '*')} | head -c 10 > /dev/null"
    done = subprocess.run(
        ["bash", "-c", text],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(zoo.__file__).parents[1])},
        check=False,
    )
    assert done.stderr == ""
