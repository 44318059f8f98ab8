"""What `zoo verify` accepts, says and returns."""

import json
import subprocess
import sys

import pytest
import torch

import zoo
from zoo.errors import ConfigError, UnknownNameError, ZooError

SMALL = {"stack.depth": 2, "stack.width": 24, "embedding.image_size": 32, "head.classes": 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model with weights of its own, in our format."""
    torch.manual_seed(0)
    return zoo.save(zoo.build("vit-tiny", SMALL), tmp_path_factory.mktemp("model") / "ours")


def test_only_the_exchanged_part_diverges():
    """One layer's feed-forward exchanged: that module alone computes something else when fed alike."""
    exchange = {"stack.pattern": [{}, {"feedforward": {"type": "gated", "hidden": 16}}]}
    report = zoo.verify("vit-tiny", exchange, tiny=True)
    assert not report.passed
    assert report.first_divergence == "stack.layers.1.feedforward"
    for each in report.comparisons:
        assert {layer.name for layer in each.layers if layer.diverges} == {"stack.layers.1.feedforward", "stack.layers.1"}
    assert "differs, as asked" in str(report) and "NOT VERIFIED" not in str(report)
    assert "asked for: stack.pattern" in str(report)


def test_a_trained_folder_is_compared_with_both_libraries(folder):
    report = zoo.verify(folder)
    assert report.passed, str(report)
    assert {each.library for each in report.comparisons} == {"transformers", "timm"}


@pytest.mark.parametrize("library", ["transformers", "timm"])
def test_an_exported_folder_is_compared_with_its_own_library(folder, tmp_path, library):
    exported = zoo.export(zoo.load(folder), tmp_path / library, format=library)
    assert zoo.verify(exported).passed


def test_weights_put_into_a_preset(folder):
    report = zoo.verify(folder, {"stack.block.attention.heads": 1})
    assert report.first_divergence == "stack.layers.0.attention"


def test_a_yaml_file_that_extends_a_preset(tmp_path):
    """What the file exchanges is held against the preset that it extends."""
    path = tmp_path / "mine.yaml"
    path.write_text("extends: vit-tiny\nstack: {depth: 2, block: {norm: {type: rms-norm}}}\n")
    report = zoo.verify(path, tiny=True, reference="transformers")
    assert report.first_divergence == "stack.layers.0.attention_norm"


def test_the_report_as_json():
    values = zoo.verify("vit-tiny", tiny=True, reference="timm").as_json()
    assert json.loads(json.dumps(values))["passed"] is True
    assert values["comparisons"][0]["layers"][0]["name"] == "embedding"


@pytest.mark.parametrize(("target", "options", "message"), [
    ("vit-tinny", {}, "vit-tiny"),
    ("vit-tiny", {"reference": "tim"}, "timm"),
    ("no/such/folder/", {}, "no/such/folder"),
])  # fmt: skip
def test_wrong_targets_are_named(target, options, message):
    with pytest.raises(ZooError, match=message):
        zoo.verify(target, tiny=True, **options)


def test_a_model_without_any_reference_says_why(folder):
    config = zoo.get_config("vit-tiny", {**SMALL, "stack.block.order": "post"})
    with pytest.raises(ConfigError, match=r"transformers: stack.block.order: .*timm: stack.block.order"):
        zoo.verify(config)


def test_unknown_library_is_an_unknown_name():
    with pytest.raises(UnknownNameError, match=r"expected|did you mean"):
        zoo.verify("vit-tiny", reference="keras")


def zoo_verify(*words):
    return subprocess.run([sys.executable, "-m", "zoo", "verify", *words], capture_output=True, text=True, timeout=300)


def test_the_command_and_its_exit_code():
    good = zoo_verify("vit-tiny", "--tiny", "--reference", "timm")
    assert good.returncode == 0 and "verdict: noise" in good.stdout
    bad = zoo_verify("vit-tiny", "stack.block.norm.eps=1e-3", "--tiny", "--reference", "timm", "--json")
    assert bad.returncode == 1
    assert json.loads(bad.stdout)["first_divergence"] == "stack.layers.0.attention_norm"
