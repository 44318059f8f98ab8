"""Every head for texts equals its reference, in each of the families that have it."""

import subprocess
import sys

import pytest

import zoo
from zoo.errors import ConfigError

HEADS = {
    "none": None,
    "pooler": "pooler",
    "masked-language-model": "masked-language-model",
    "untied": {"type": "masked-language-model", "tied": False},
    "pretraining": "pretraining",
    "next-sentence": "next-sentence",
    "classifier": {"type": "classifier", "dense": "tanh", "classes": 5},
    "token-classifier": {"type": "token-classifier", "classes": 5},
    "span": "span",
    "multiple-choice": "multiple-choice",
}
LACKING = {"roberta-base": {"pretraining", "next-sentence"}, "distilbert-base": {"pretraining", "next-sentence", "pooler"}}
CASES = [
    (preset, head) for preset in ("bert-tiny", *LACKING) for head in HEADS if head not in LACKING.get(preset, set())
]  # fmt: skip


@pytest.mark.parametrize(("preset", "head"), CASES)
def test_a_head_equals_its_reference(preset, head):
    fields = HEADS[head]
    if preset == "distilbert-base" and head in ("classifier", "multiple-choice"):
        fields = {"type": head, "dense" if head == "classifier" else "activation": "relu"}
    report = zoo.verify(preset, {"head": fields}, tiny=True)
    assert report.passed, str(report)
    (found,) = report.comparisons
    assert found.library == "transformers" and found.exchanged == [] and found.export is not None and found.fresh == []
    assert found.worst("float64") <= 1e-10
    layers = {layer.name for layer in found.layers}
    assert head == "none" or layers & {"head", "head.output"}
    assert {f"stack.layers.1.{part}" for part in ("attention", "attention_norm", "feedforward", "feedforward_norm")} <= layers
    assert {"embedding", "stack.layers.0", "stack.layers.1"} <= layers
    assert {"texts", "padded on the right", "padded on the left", "holes"} <= set(found.cases)
    sites = {site for name in found.training for site in name.replace(" and ", " ").replace(",", "").split()}
    heads = {"classifier", "token-classifier", "multiple-choice", *(["span"] if preset == "distilbert-base" else [])}
    assert {"embedding", "block", "attention"} <= sites and (head not in heads or sites & {"head", "both"})


@pytest.mark.parametrize(
    "overrides",
    [
        {"stack.block.attention.causal": True},
        {"embedding.padding": None},
        {"embedding.padding": 60},
        {"embedding.segments": 1},
        {"embedding.segments": 3, "stack.block.feedforward.activation": "relu"},
        {"stack.block.attention.heads": 1, "stack.block.feedforward.activation": "gelu-tanh"},
        {"stack.block.norm.eps": 1e-3, "embedding.norm.eps": 1e-3},
        {"embedding.count": "unpadded", "embedding.padding": 7},
        {"embedding.position.length": 5, "head": "masked-language-model"},
    ],
    ids=str,
)
def test_configs_that_no_preset_has(overrides):
    """Each is the reference's own, not an exchange."""
    small = {"embedding.vocabulary": 61, "embedding.position.length": 40, "stack.width": 24, "stack.block.attention.heads": 3}
    report = zoo.verify(zoo.get_config("bert-tiny", {**small, **overrides}), reference="transformers")
    assert report.passed, str(report)
    assert report.comparisons[0].exchanged == []


def test_what_the_reference_has_no_texts_for_is_refused():
    with pytest.raises(ConfigError, match=r"head.activation: Hugging Face's DistilBert has no model with 'tanh' here"):
        zoo.verify("distilbert-base", {"head": "multiple-choice"}, tiny=True)


def test_an_exchanged_part_of_a_text_model_diverges_alone():
    report = zoo.verify("bert-tiny", {"stack.pattern": [{}, {"feedforward": {"type": "gated", "hidden": 16}}]}, tiny=True)
    assert report.first_divergence == "stack.layers.1.feedforward"
    report = zoo.verify("roberta-base", {"embedding.count": "all"}, tiny=True)
    assert report.first_divergence == "embedding"


@pytest.mark.slow
def test_the_command():
    words = ["verify", "bert-tiny", "head=masked-language-model", "--tiny"]
    done = subprocess.run([sys.executable, "-m", "zoo", *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "everything agrees" in done.stdout and "logits" in done.stdout
