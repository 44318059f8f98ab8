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


def test_show(command: Any) -> None:
    words = ["vit-tiny", "head.classes=10", "stack.block.norm=rms-norm"]
    config = zoo.get_config("vit-tiny", {"head.classes": 10, "stack.block.norm": "rms-norm"})
    whole = zoo.cost(config)
    done = command("show", *words)
    assert done.code == 0 and done.err == ""
    first = next(line for line in done.out.splitlines() if "vit-tiny" in line)
    assert all(text in first for text in ("transformer", f"{whole.parameters:,}", "2.51 G", "100.0 %"))
    layer = next(part for part in whole.walk() if part.name == "stack.layers.0")
    folded = next(line for line in done.out.splitlines() if "layers 0-11, 12 x" in line)
    assert f" {layer.parameters:,} " in folded and f"{12 * layer.flops / whole.flops:.1%}".replace("%", " %") in folded
    assert "stack.layers" not in done.out and done.out.count("attention_norm") == 1 and "dropout" not in done.out
    found = json.loads(command("show", *words, "--json").out)
    assert zoo.get_config(found["config"]) == config
    for name in ("parameters", "flops", "memory"):
        figures = found[name]
        assert figures.pop("all") == getattr(whole, name) == sum(figures.values())
        assert list(figures) == ["embedding", "stack", "head"]
    assert found["parts"]["parts"][1]["parts"][11]["name"] == "stack.layers.11"


def test_show_config(command: Any) -> None:
    import yaml

    done = command("show", "vit-tiny", "head.classes=10", "--config")
    assert done.code == 0 and zoo.get_config(yaml.safe_load(done.out)) == zoo.get_config("vit-tiny", {"head.classes": 10})


def test_show_options(command: Any, folder: Path) -> None:
    assert command("show", "vit-tiny", "--depth", "0").out.count("%") == 3
    assert "attention " not in command("show", "vit-tiny", "--depth", "2").out
    assert "query" in command("show", "vit-tiny", "--depth", "4").out
    once, twice = (json.loads(command("show", "vit-tiny", "--batch", number, "--json").out) for number in ("1", "2"))
    assert twice["flops"]["all"] == 2 * once["flops"]["all"] and twice["parameters"] == once["parameters"]
    assert f"{zoo.load(folder).num_parameters():,}" in command("show", str(folder)).out
    # a layer that differs stands on a line of its own
    pattern = command("show", "vit-tiny", "stack.depth=5", "stack.pattern=[{}, {}, {feedforward: gated}]", "--depth", "2").out
    assert all(text in pattern for text in ("layers 0-1, 2 x", "layers.2 ", "layers 3-4, 2 x"))


def test_show_against(command: Any) -> None:
    words = ("show", "vit-tiny", "stack.block.feedforward=gated", "--against", "vit-small")
    found = json.loads(command(*words, "--json").out)
    fields = {field["path"]: (field["model"], field["against"]) for field in found["config"]}
    assert fields == {
        "stack.width": (192, 384),
        "stack.block.attention.heads": (3, 6),
        "stack.block.feedforward": ("gated", "mlp"),
    }
    ours = zoo.cost("vit-tiny", {"stack.block.feedforward": "gated"})
    for name in ("parameters", "flops", "memory"):
        numbers = found["cost"][name]
        assert numbers["model"] == getattr(ours, name) and numbers["against"] == getattr(zoo.cost("vit-small"), name)
        assert numbers["ratio"] == pytest.approx(numbers["model"] / numbers["against"])
    text = command(*words).out
    assert all(word in text for word in ("stack.width", "192", "384", "gated", "mlp", f"{ours.parameters:,}", "0.34 x"))
    assert "The configs are the same." in command("show", "vit-tiny", "--against", "vit-tiny").out


def test_components(command: Any) -> None:
    every = json.loads(command("components", "--json").out)
    assert [f"{kind}/{name}" for kind, names in every.items() for name in names] == zoo.list_components()
    text = command("components").out
    assert all(about["summary"] in text and about["summary"] for names in every.values() for about in names.values())
    one = command("components", "attention", "full").out
    assert "heads" in one and "kv_heads" in one and "needed" in one
    assert list(json.loads(command("components", "norm", "--json").out)) == ["norm"]


def test_the_components_of_a_kind(command: Any) -> None:
    text = " ".join(command("components", "attention").out.split())
    about = json.loads(command("components", "attention", "--json").out)["attention"]["full"]
    for word in ("papers", "shapes", "cost", "place"):
        assert about[word]
    assert "Vaswani et al. 2017, https://arxiv.org/abs/1706.03762; Ainslie et al. 2023" in about["papers"]
    assert about["cost"].startswith("O(tokens^2 x width)") and about["cost"] in text and about["summary"] in text
    assert set(zoo.list_models("vit*")) < set(about["presets"]) <= set(zoo.list_models())
    fields = {field["name"]: field for field in about["fields"]}
    assert fields["heads"]["default"] == "needed" and fields["heads"]["shared"] and fields["heads"]["description"] in text
    assert fields["causal"]["default"] == "false" and fields["qk_norm"]["type"] == "norm or none"
    pools = json.loads(command("components", "pool", "--json").out)["pool"]
    assert (
        pools["mean"]["presets"]
        and pools["max"]["presets"] == []
        and "used by no preset" in " ".join(command("components", "pool", "max").out.split())
    )
    data = json.loads(command("components", "data", "--json").out)["data"]
    assert data["digits"]["presets"] == ["swin-mini-digits", "vit-tiny-digits"]


@pytest.fixture
def digits(redraw: Make, tmp_path: Path) -> Path:
    """The folder of a run with a tiny model for digits."""
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    fields = {"embedding": {"image_size": 8, "patch_size": 2, "channels": 1}, "stack.depth": 2, "head.classes": 10}
    zoo.save(redraw(zoo.build("vit-tiny", fields)), tmp_path / "run" / "model")
    (tmp_path / "run" / "config.yaml").write_text("data: {type: digits}")
    return tmp_path / "run"


def test_attend(command: Any, digits: Path, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    done = command("attend", str(digits), "digits:17", "-o", str(picture))
    assert done.code == 0 and done.out == f"{picture}\n" and done.err == ""
    assert picture.read_bytes().startswith(b"\x89PNG")
    words = ["--layers", "0,-1", "--heads", "0,2", "--rollout", "--token", "-1", "--json"]
    assert (
        command("attend", str(digits / "model"), "digits:3", "-o", str(picture), "--heads", "all", "--token", "mean").code == 0
    )
    found = json.loads(command("attend", str(digits / "model"), "digits:17", "-o", str(picture), *words).out)
    assert found == {"picture": str(picture), "layers": [0, 1], "heads": [0, 2], "rollout": True, "token": 16,
                     "grid": [4, 4], "fresh_weights": False}  # fmt: skip


def test_attend_to_an_image_file(command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    from PIL import Image

    from zoo.inspect import picture

    titles: list[str] = []
    monkeypatch.setattr(picture, "over_image", lambda *inputs, title, **more: titles.append(title) or inputs[2])
    Image.new("RGB", (50, 40), (255, 0, 0)).save(tmp_path / "red.png")
    done = command("attend", "vit-tiny", str(tmp_path / "red.png"), "-o", str(tmp_path / "picture.png"), "--layers", "0")
    assert done.code == 0 and done.err.startswith("zoo: vit-tiny: its weights are fresh") and done.err.count("\n") == 1
    assert titles == ["vit-tiny (fresh weights: nothing is learned) on red.png\nattention of the class token"]


WRONG_LOOKS = [
    (["RUN", "digits:17", "-o", "OUT", "--layers", "2"], "layers: 2 is none of 0 to 1"),
    (["RUN", "digits:17", "-o", "OUT", "--layers", "x"], "--layers: 'x' are no numbers; expected some such as 0,5,-1"),
    (["RUN", "digits:17", "-o", "OUT", "--heads", "-4"], "heads: -4 is none of 0 to 2"),
    (["RUN", "digits:17", "-o", "OUT", "--token", "17"], "--token: 17 is none of 0 to 16"),
    (["RUN", "digits:17", "-o", "OUT", "--token", "cls"], "--token: 'cls' is none; expected class, mean, or a token's number"),
    (["RUN", "digits:599", "-o", "OUT"], "the test part has 599 examples, 0 to 598"),
    (["RUN", "digts:1", "-o", "OUT"], "did you mean 'digits'"),
    (["vit-tiny", "digits:1", "-o", "OUT"], "digits:1 is nothing for this model: data 'digits' have 1 channel, not 3"),
    (["RUN", "missing.png", "-o", "OUT"], "missing.png: no such file"),
    (["RUN", "RUN", "-o", "OUT"], "a folder, not an image"),
    (["RUN", "RUN/config.yaml", "-o", "OUT"], "not an image"),
    (["RUN", "digits:17", "-o", "OUT.gif"], "expected the name of a picture"),
    (["RUN", "digits:17", "-o", "no/such/folder/picture.png"], "cannot be written: there is no folder no/such/folder"),
    (["RUN", "digits:17", "-o", "/proc/picture.png"], "/proc/picture.png: cannot be written"),
    (["RUN", "RUN/config.yaml", "-o", "OUT", "--mean", "half"], "--mean: 'half' are no numbers"),
    (["RUN", "RUN/config.yaml", "-o", "OUT", "--std", "0"], "--std: '0' are no numbers above 0"),
    (["no-such-model", "digits:17", "-o", "OUT"], "'no-such-model' is no folder"),
    (["UNFINISHED", "digits:17", "-o", "OUT"], "this run is not finished"),
]


@pytest.mark.parametrize(
    ("words", "message"), WRONG_LOOKS, ids=lambda value: "-".join(value) if isinstance(value, list) else ""
)
def test_a_look_that_cannot_be_is_one_line(command: Any, digits: Path, tmp_path: Path, words: list[str], message: str) -> None:
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "config.yaml").write_text("")
    out = tmp_path / "out.png"
    places = {"RUN": digits, "OUT": out, "UNFINISHED": tmp_path / "unfinished"}
    done = command("attend", *(str(places.get(word, word.replace("RUN/", f"{digits}/"))) for word in words))
    assert done.code == 1 and done.out == "" and message in done.err
    assert done.err.startswith("zoo: ") and done.err.count("\n") == 1 and "should not happen" not in done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "unfinished"]  # nothing is left behind


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
    (["show", "vit-tiny", "--against", "vit-tny"], "did you mean 'vit-tiny'"),
    (["show", "vit-tiny", "--against", "vit-small", "--config"], "choose one of them"),
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
USAGE += [["show", "vit-tiny", "--depth", "-1"], ["show", "vit-tiny", "--batch", "0"], ["attend", "vit-tiny", "a.png"]]


@pytest.mark.parametrize("words", USAGE, ids=str)
def test_wrong_usage_is_code_2(command: Any, words: list[str]) -> None:
    done = command(*words)
    assert (
        done.code == 2
        and done.out == ""
        and ("Usage: zoo" in done.err or "requires an argument" in done.err)
        and "Traceback" not in done.err
    )


COMMANDS = ["list", "show", "components", "attend", "schema", "verify", "load-report", "convert", "train", "eval", "demo"]


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in COMMANDS)], ids=str)
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
    monkeypatch.setattr("zoo.api.get_config", lambda *_, **__: 1 / 0)
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
