"""Folders and files that are broken, malicious or absent: a clear error, and no code is ever run."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import zoo
from zoo.errors import ConfigError, UnknownNameError, WeightsError, ZooError

Make = Callable[..., Any]


@pytest.fixture
def folder(huggingface: Make) -> Path:
    """A tiny folder of transformers."""
    return huggingface()[1]


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes the tensors of a folder."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors")


QUERY = "vit.encoder.layer.0.attention.attention.query.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(QUERY), f"missing: {QUERY}"),
        (lambda t: t.update(extra=torch.zeros(3)), r"unexpected: extra \[3\]"),
        (lambda t: t.update({QUERY: torch.zeros(24, 23)}), rf"shape: {QUERY} is \[24, 23\], expected \[24, 24\]"),
        (lambda t: t.update({QUERY: torch.zeros(24, 24, dtype=torch.int64)}), f"type: {QUERY} is torch.int64, expected floats"),
        (lambda t: t.update({QUERY.removeprefix("vit."): t[QUERY].clone()}), "two sources for one tensor"),
        (lambda t: t.clear(), "missing"),
    ],
)
def test_tensors_that_do_not_fit_are_listed(folder: Path, change: Any, words: str) -> None:
    rewrite(folder, change)
    with pytest.raises(WeightsError, match=words):
        zoo.load(folder)


def test_all_problems_are_in_one_message(folder: Path) -> None:
    rewrite(folder, lambda t: (t.pop(QUERY), t.update(extra=torch.zeros(3)), t.update({"classifier.bias": torch.zeros(7)})))
    with pytest.raises(WeightsError) as caught:
        zoo.load(folder)
    assert all(word in str(caught.value) for word in (f"missing: {QUERY}", "unexpected: extra", "shape: classifier.bias"))


@pytest.mark.parametrize("length", [0, 4, 8, 100, 5000, -1, -1000])
def test_a_file_cut_short_is_an_error(folder: Path, length: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(WeightsError, match="broken or cut short"):
        zoo.load(folder)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no config.json"),
        ("", "cannot be read as JSON"),
        ("{", "cannot be read as JSON"),
        ("[]", "expected a JSON object"),
        ("3", "expected a JSON object"),
        ("{}", "models of type 'unnamed' are not supported"),
        ('{"model_type": "gpt_neo"}', "models of type 'gpt_neo'"),
        ('{"model_type": ["vit"]}', "not supported"),
        ('{"model_type": "vit", "model_type2": 3}', "model_type2"),
        ("[" * 100_000, "config.json"),
        ('{"format": "zoo"}', "embedding"),
        ('{"format": "zoo", "model": 3}', "config.json|model"),
        ('{"format": "zoo", "model": {"type": "x"}}', "unknown model 'x'"),
        ('{"format": "zoo", "model": [1]}', "model"),
        ('{"format": "zoo", "model": "vit-tiny"}', "model"),
        ("\x00\x01", "config.json"),
    ],
)
def test_a_broken_config_is_an_error(folder: Path, text: str | None, words: str) -> None:
    path = folder / "config.json"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(ZooError, match=words):
        zoo.load(folder)


def test_a_config_that_is_no_text_is_an_error(folder: Path) -> None:
    (folder / "config.json").write_bytes(b"\xff\xfe\x00binary")
    with pytest.raises(ConfigError, match=r"config.json"):
        zoo.load(folder)


def test_a_folder_without_weights_is_an_error(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"expected model.safetensors or pytorch_model.bin, found config.json"):
        zoo.load(folder)


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("kind", ["torch", "pickle", "legacy"])
@pytest.mark.parametrize("suffix", ["pytorch_model.bin", "model.ckpt"])
def test_a_malicious_pickle_is_never_run(folder: Path, tmp_path: Path, suffix: str, kind: str) -> None:
    (folder / "model.safetensors").unlink()
    path, proof = folder / suffix, tmp_path / "proof"
    content = {"state_dict": {}, "zoo_model": Malicious(proof), "x": torch.zeros(2)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "torch")
    with pytest.raises(WeightsError, match="not opened: it is broken or holds more than tensors"):
        zoo.load(folder if suffix.endswith("bin") else path)
    assert not proof.exists()


def test_a_bin_file_of_tensors_loads(folder: Path, images: Make) -> None:
    expected = zoo.load(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert torch.equal(zoo.load(folder)(images()).logits, expected(images()).logits)
    torch.save({"a": 3, "b": torch.zeros(2)}, folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="expected tensors only, found other values: a"):
        zoo.load(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04",
        b"x" * 100,
        {"a": 1},
        [1, 2],
        {"zoo_model": 3, "state_dict": {}},
        {"zoo_model": "{", "state_dict": {}},
        {"zoo_model": "3", "state_dict": {}},
        {"zoo_model": "{}", "state_dict": {"model.x": 3}},
        {"zoo_model": "{}", "state_dict": {3: 3}},
    ],
)
def test_a_checkpoint_not_written_by_zoo_is_an_error(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "x.ckpt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ZooError, match=r"x.ckpt|embedding"):
        zoo.load(path)


def shard(folder: Path) -> Path:
    """Splits a folder's weights over two files, with an index."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    where = {name: f"model-{1 + (n % 2)}-of-2.safetensors" for n, name in enumerate(names)}
    for file in set(where.values()):
        save_file({name: tensors[name] for name in names if where[name] == file}, folder / file)
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return index


def test_shards_load_and_a_missing_one_is_named(folder: Path, images: Make) -> None:
    expected = zoo.load(folder)
    index = shard(folder)
    assert torch.equal(zoo.load(folder)(images()).logits, expected(images()).logits)
    where = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": {**where, "more": "model-1-of-2.safetensors"}}))
    with pytest.raises(WeightsError, match="its shards lack more"):
        zoo.load(folder)
    index.write_text(json.dumps({"weight_map": where}))
    (folder / "model-2-of-2.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"shards are missing: model-2-of-2.safetensors"):
        zoo.load(folder)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"weight_map": 3}',
        '{"weight_map": {"a": 3}}',
        '{"weight_map": {"a": ["b"]}}',
        '{"weight_map": {}}',
        '{"weight_map": {"a": "../../etc/passwd"}}',
        '{"weight_map": {"a": ""}}',
    ],
)
def test_a_broken_index_is_an_error(folder: Path, text: str) -> None:
    shard(folder).write_text(text)
    with pytest.raises(WeightsError):
        zoo.load(folder)


@pytest.mark.parametrize("source", ["vit-tiny", "", ".", "no such", "./here", "a/b/c", "vit-tny.augreg-in21k"])
def test_what_is_nothing_is_named(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ZooError):
        zoo.load(source)
    if source.startswith("vit-tny"):
        with pytest.raises(UnknownNameError, match=r"did you mean 'vit-tiny.augreg-in21k'"):
            zoo.load(source)


def test_a_single_file_is_an_error(folder: Path) -> None:
    with pytest.raises(WeightsError, match="expected a folder or a Lightning checkpoint"):
        zoo.load(folder / "model.safetensors")


@pytest.mark.parametrize("source", ["google/vit-base-patch16-224", "vit-tiny.augreg-in21k", "nobody/nothing@main"])
def test_the_hub_offline_is_a_clear_error(source: str, run: Make, tmp_path: Path) -> None:
    code = f"import zoo\ntry:\n    zoo.load({source!r})\nexcept zoo.errors.WeightsError as error:\n    print(error)"
    done = run("-c", code, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert done.returncode == 0 and "cannot be had from the Hub" in done.stdout, done.stderr


def test_the_hubs_cache_is_used_offline(folder: Path, run: Make, tmp_path: Path) -> None:
    cache = tmp_path / "home" / "hub" / "models--nobody--tiny"
    (cache / "refs").mkdir(parents=True)
    commit = "0123456789abcdef0123456789abcdef01234567"
    (cache / "refs" / "main").write_text(commit)
    shutil.copytree(folder, cache / "snapshots" / commit)
    done = run(
        "-c", "import zoo; print(zoo.load('nobody/tiny').num_parameters())", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "home")
    )
    assert done.stdout.strip() == str(zoo.load(folder).num_parameters()), done.stderr


@pytest.mark.parametrize("seed", range(10))
def test_mutated_folders(folder: Path, timm_folder: Make, model_of: Make, tmp_path: Path, seed: int) -> None:
    """A hundred broken folders each: every one loads to the right shapes or is one of zoo's errors."""
    draw = random.Random(seed)
    zoo.save(model_of(), tmp_path / "own")
    sources = [folder, timm_folder()[1], tmp_path / "own"]
    contents = [((s / "config.json").read_bytes(), (s / "model.safetensors").read_bytes()) for s in sources]
    good = 0
    for number in range(100):
        config, weights = (bytearray(each) for each in draw.choice(contents))
        header = 8 + int.from_bytes(weights[:8], "little")
        action = number % 5
        if action == 0:
            for _ in range(draw.choice((1, 1, 2, 20))):
                config[draw.randrange(len(config))] = draw.choice((draw.randrange(256), *b'0123456789"{}[],:.-etn'))
        elif action == 1:
            target = draw.choice((config, weights))
            del target[draw.randrange(len(target)) :]
        elif action == 2:
            for _ in range(draw.choice((1, 1, 3))):
                weights[draw.randrange(header)] = draw.choice((draw.randrange(256), *b'0123456789"{}[],:.FI_'))
        elif action == 3:
            values = json.loads(config)
            place = values["model"] if "model" in values else values.get("model_args") or values
            key = draw.choice(sorted(place))
            place[key] = draw.choice((None, 0, -1, 3, 2.5, "x", True, [], [1], {}, {"type": 3}, 10**12, 10**30))
            if draw.random() < 0.3:
                del place[key]
            config = bytearray(json.dumps(values).encode())
        place = tmp_path / f"broken-{number}"
        place.mkdir()
        (place / "config.json").write_bytes(config)
        (place / "model.safetensors").write_bytes(weights)
        if action == 4:
            tensors = load_file(place / "model.safetensors")
            name = draw.choice(sorted(tensors))
            value = tensors.pop(name)
            other = draw.choice(
                (None, value[None], value.flatten()[1:], value.int(), value.reshape(-1), value.to(torch.float16))
            )
            tensors |= {} if other is None else {draw.choice((name, name + "x", name[1:])): other.contiguous()}
            save_file(tensors, place / "model.safetensors")
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
