"""Files of BERT and its kin: names of old versions, tensors that stand there twice, heads, and broken ones."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bert_helpers import CLASSES, agree, edit, inputs, opened, rewrite
from safetensors.torch import load_file, save_file

import zoo
from zoo.errors import ConfigError, WeightsError, ZooError

Make = Callable[..., Any]


def old_names(tensors: dict[str, Any]) -> dict[str, Any]:
    """The names of 2018: norms with gamma and beta."""
    kinds = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    return {next((name.replace(a, b) for a, b in kinds.items() if a in name), name): v for name, v in tensors.items()}


@pytest.mark.parametrize("spelling", ["bare", "prefixed", "gamma", "positions", "bin", "old bin"])
@pytest.mark.parametrize("cls", ["BertModel", "RobertaModel", "DistilBertModel", "BertForSequenceClassification"])
def test_names_and_files_of_old_versions_load(saved: Make, cls: str, spelling: str) -> None:
    theirs, folder = saved(cls)
    prefix = f"{theirs.base_model_prefix}."
    body = "" if cls.startswith("BertFor") else prefix
    changes: dict[str, Callable[[dict[str, Any]], Any]] = {
        "bare": lambda t: {name.removeprefix(prefix): value for name, value in t.items()},
        "prefixed": lambda t: {body + name: value for name, value in t.items()},
        "gamma": old_names,
        "positions": lambda t: {**t, f"{prefix}embeddings.position_ids": torch.arange(20)[None]},
    }
    if spelling in changes:
        rewrite(folder, changes[spelling])
    else:
        tensors = load_file(folder / "model.safetensors")
        torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=spelling == "bin")
        (folder / "model.safetensors").unlink()
    ours = zoo.load(folder)
    agree(ours, theirs)
    assert [entry.detail for entry in ours.load_report.of("ignored")] == ["a table of 0, 1, 2, ..."] * (spelling == "positions")


def test_googles_own_config_is_berts(saved: Make) -> None:
    """The first configs say neither the model's type nor its class."""
    theirs, folder = saved()
    for absent in (
        {"model_type": ..., "architectures": ...},
        {"model_type": ..., "architectures": None},
        {"model_type": ..., "architectures": ["BertModel"]},
    ):
        edit(folder, **{"initializer_range": 0.02, **absent})
        agree(zoo.load(folder), theirs)
    edit(folder, architectures=None, type_vocab_size=...)
    with pytest.raises(ConfigError):
        zoo.load(folder)
    theirs, folder = saved("RobertaForMaskedLM")
    edit(folder, model_type=...)
    agree(zoo.load(folder), theirs)


def test_two_names_for_one_tensor_are_an_error(saved: Make) -> None:
    name = "encoder.layer.0.output.LayerNorm"
    for double in (f"{name}.gamma", f"bert.{name}.weight", f"bert.{name}.gamma"):
        _, folder = saved()
        rewrite(folder, lambda t, double=double: {**t, double: t[f"{name}.weight"] + 1})
        with pytest.raises(WeightsError, match="two sources for one tensor"):
            zoo.load(folder)


LANGUAGE = {
    "Bert": ("cls.predictions.decoder", "cls.predictions.bias", "bert."),
    "Roberta": ("lm_head.decoder", "lm_head.bias", "roberta."),
    "DistilBert": ("vocab_projector", "vocab_projector.bias", "distilbert."),
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", LANGUAGE)
@pytest.mark.parametrize("case", ["as it is", "copies", "other scores", "other bias", "one bias"])
def test_scores_are_tied_where_theirs_are(saved: Make, family: str, case: str, tied: bool) -> None:
    """Whatever a file holds twice, equal or not, is read as transformers itself reads it."""
    cls, (scores, bias, prefix) = f"{family}ForMaskedLM", LANGUAGE[family]
    _, folder = saved(cls, tie_word_embeddings=tied)
    table = f"{prefix}embeddings.word_embeddings.weight"
    drawn = torch.Generator().manual_seed(4)
    changes: dict[str, Callable[[dict[str, Any]], Any]] = {
        "as it is": lambda t: None,
        "copies": lambda t: t.update({f"{scores}.weight": t[table].clone(), f"{scores}.bias": t[bias].clone()}),
        "other scores": lambda t: t.update({f"{scores}.weight": torch.randn(31, 24, generator=drawn).double()}),
        "other bias": lambda t: t.update({f"{scores}.bias": torch.randn(31, generator=drawn).double()}),
        "one bias": lambda t: t.pop(bias) if not tied and bias != f"{scores}.bias" else None,
    }
    rewrite(folder, changes[case])
    ours, theirs = zoo.load(folder), opened(folder, cls)
    assert ours.config.head.tied is (tied and case != "other scores")
    agree(ours, theirs)


@pytest.mark.parametrize("family", LANGUAGE)
def test_a_head_without_its_bias_is_an_error(saved: Make, family: str) -> None:
    scores, bias, _ = LANGUAGE[family]
    for tied in (True, False):
        _, folder = saved(f"{family}ForMaskedLM", tie_word_embeddings=tied)
        rewrite(folder, lambda t: [t.pop(name, None) for name in (bias, f"{scores}.bias")])
        with pytest.raises(WeightsError, match=f"missing: {bias}"):
            zoo.load(folder)


@pytest.fixture
def hub(saved: Make) -> tuple[Any, Path]:
    """A pretrained BERT as the Hub has it: of all heads, called a model of masked language, with the names of 2018."""
    theirs, folder = saved("BertForPreTraining", hidden_act="relu")
    rewrite(folder, old_names)
    rewrite(
        folder,
        lambda t: t.update({
            "bert.embeddings.position_ids": torch.arange(20)[None],
            "cls.predictions.decoder.weight": t["bert.embeddings.word_embeddings.weight"].clone(),
        }),
    )  # fmt: skip
    edit(folder, architectures=["BertForMaskedLM"])
    return theirs, folder


def test_the_load_report_of_an_old_file(hub: tuple[Any, Path], run: Make) -> None:
    _, folder = hub
    report = zoo.load(folder).load_report
    assert {entry.name: entry.detail for entry in report.of("ignored")} == {
        "bert.embeddings.position_ids": "a table of 0, 1, 2, ...",
        "bert.pooler.dense.weight": "of a head that this model does not have",
        "bert.pooler.dense.bias": "of a head that this model does not have",
        "cls.predictions.decoder.weight": "a copy of the embedding, or of a head that this model does not have",
        "cls.seq_relationship.weight": "of a head that this model does not have",
        "cls.seq_relationship.bias": "of a head that this model does not have",
    }
    assert not report.of("re-initialised")
    done = run("-m", "zoo", "load-report", str(folder), "head=token-classifier", "--all")
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "re-initialised head.output.weight new here" in lines, done.stderr
    assert "renamed embedding.norm.weight from bert.embeddings.LayerNorm.gamma" in lines
    assert "ignored bert.pooler.dense.weight of a head that this model does not have" in lines


@torch.no_grad()
def test_another_head_of_the_file_is_read_and_never_drawn(hub: tuple[Any, Path]) -> None:
    theirs, folder = hub
    batch = next(iter(inputs(theirs)))
    expected, body = theirs(**batch), theirs.bert(**batch)
    answers = {
        "pooler": {"pooler_output": body.pooler_output},
        "pretraining": {name: expected[name] for name in ("prediction_logits", "seq_relationship_logits")},
        "next-sentence": {"logits": expected.seq_relationship_logits},
        "masked-language-model": {"logits": expected.prediction_logits},
        "none": {"last_hidden_state": body.last_hidden_state},
        "sentence-embedding": {"last_hidden_state": body.last_hidden_state},
    }
    for head, outputs in answers.items():
        loaded = zoo.load(folder, {"head": head})
        for ours in (loaded, zoo.build(loaded.config, weights=folder).eval()):
            assert not ours.load_report.of("re-initialised")
            found = ours(**batch)._asdict()
            assert all((found[name] - value).abs().max() < 1e-12 for name, value in outputs.items()), head
    assert zoo.load(folder, {"head": "masked-language-model"}).config.head.activation == "relu"


def test_a_head_that_the_file_lacks_is_drawn_and_said(saved: Make) -> None:
    """And a classifier of texts is none of tokens, though its tensors have the same names."""
    for cls, head, names in (
        ("BertModel", "masked-language-model", {"bias", "dense.weight", "dense.bias", "norm.weight", "norm.bias"}),
        ("BertForSequenceClassification", "token-classifier", {"output.weight", "output.bias"}),
        ("BertForTokenClassification", "multiple-choice", {"dense.weight", "dense.bias", "output.weight", "output.bias"}),
        ("DistilBertModel", "pooler", {"output.weight", "output.bias"}),
    ):
        _, folder = saved(cls)
        report = zoo.load(folder, {"head": head}).load_report
        assert {entry.name for entry in report.of("re-initialised")} == {f"head.{name}" for name in names}, cls
        with pytest.raises(WeightsError, match="head"):
            zoo.build(zoo.load(folder, {"head": head}).config, weights=folder)


@pytest.mark.parametrize("seed", range(6))
def test_mutated_folders(saved: Make, tmp_path: Path, seed: int) -> None:
    """A hundred broken folders each: every one loads to the right shapes or is one of zoo's errors."""
    draw = random.Random(seed)
    names = draw.sample(CLASSES, 3)
    contents = [
        ((folder / "config.json").read_bytes(), (folder / "model.safetensors").read_bytes())
        for folder in (saved(name, tie_word_embeddings=draw.random() < 0.5)[1] for name in names)
    ]
    good = 0
    for number in range(100):
        config, weights = (bytearray(each) for each in draw.choice(contents))
        header = 8 + int.from_bytes(weights[:8], "little")
        place = tmp_path / f"broken-{number}"
        place.mkdir()
        (place / "model.safetensors").write_bytes(weights)
        tensors = load_file(place / "model.safetensors")
        action = number % 6
        if action == 0:
            for _ in range(draw.choice((1, 1, 2, 20))):
                config[draw.randrange(len(config))] = draw.choice((draw.randrange(256), *b'0123456789"{}[],:.-etn'))
        elif action == 1:
            for _ in range(draw.choice((1, 1, 3))):
                weights[draw.randrange(header)] = draw.choice((draw.randrange(256), *b'0123456789"{}[],:.FI_'))
        elif action == 2:
            values = json.loads(config)
            key = draw.choice(sorted(values))
            values[key] = draw.choice(
                (None, 0, -1, 1, 3, 2.5, "x", "relu", True, [], [1], {}, {"0": "a"}, ["BertForMaskedLM"], 10**12, 10**30)
            )
            if draw.random() < 0.3:
                del values[key]
            config = bytearray(json.dumps(values).encode())
        elif action == 3:
            for _ in range(draw.choice((1, 1, 2))):
                name = draw.choice(sorted(tensors))
                value = tensors.pop(name)
                other = draw.choice((None, value[None], value.flatten()[1:], value.int(), value.reshape(-1), value.half()))
                new = (name, name + "x", name[1:], f"bert.{name}", name.replace("weight", "gamma"), "cls.predictions.bias")
                tensors |= {} if other is None else {draw.choice(new): other.contiguous()}
            save_file(tensors, place / "model.safetensors")
            weights = bytearray((place / "model.safetensors").read_bytes())
        elif action == 4:
            values = json.loads(config)
            values["architectures"] = [draw.choice(CLASSES)]
            values["model_type"] = draw.choice((values["model_type"], "bert", "roberta", "distilbert", None))
            config = bytearray(json.dumps(values).encode())
        (place / "config.json").write_bytes(config)
        (place / "model.safetensors").write_bytes(weights)
        if action == 5:
            (place / "model.safetensors").unlink()
            path = place / "pytorch_model.bin"
            torch.save(tensors, path, _use_new_zipfile_serialization=draw.random() < 0.5)
            content = bytearray(path.read_bytes())
            if draw.random() < 0.3:
                del content[draw.randrange(len(content)) :]
            for _ in range(draw.choice((0, 1, 3))):
                spot = draw.randrange(draw.choice((max(len(content), 1), 3000)))
                content[spot : spot + 1] = bytes([draw.randrange(256)])
            path.write_bytes(content)
        try:
            model = zoo.load(place)
        except ZooError as error:
            assert len(str(error)) > 10
            continue
        finally:
            shutil.rmtree(place, ignore_errors=True)
        good += 1
        shapes = {name: parameter.shape for name, parameter in zoo.build(model.config, device="meta").named_parameters()}
        assert {name: parameter.shape for name, parameter in model.named_parameters()} == shapes
    assert 0 < good < 60
