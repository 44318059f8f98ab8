"""Saving and loading our own folders: bit-equal, whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import zoo
from zoo.checkpoint import save as saving
from zoo.errors import WeightsError, ZooError

OVERRIDES: list[dict[str, Any]] = [
    {},
    {"head": None},
    {"head": {"type": "pooler", "size": 7}},
    {"stack.pattern": [{}, {"norm": "rms-norm", "feedforward": "gated"}]},
    {"embedding.registers": 2, "embedding.class_token": False, "head.pool": "mean"},
    {"head.labels": ["a", "é", "c", "d", '"'], "stack.block.layer_scale": 0.5},
]


def equal(a: Any, b: Any) -> bool:
    """Whether two models have the same config and bits."""
    left, right = a.state_dict(), b.state_dict()
    return a.config == b.config and left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


@pytest.mark.parametrize("overrides", OVERRIDES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_a_saved_model_loads_bit_equal(
    model_of: Callable[..., Any], tmp_path: Path, overrides: dict[str, Any], dtype: str
) -> None:
    model = model_of(overrides, dtype=dtype)
    assert zoo.save(model, tmp_path / "deep" / "m") == tmp_path / "deep" / "m"
    loaded = zoo.load(tmp_path / "deep" / "m")
    assert equal(loaded, model) and loaded.dtype == model.dtype
    assert {entry.status for entry in loaded.load_report.entries} == {"loaded"}
    assert sorted(os.listdir(tmp_path / "deep" / "m")) == ["config.json", "model.safetensors"]
    zoo.save(loaded, tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "deep" / "m" / name).read_bytes()


def test_the_saved_config_is_whole(model_of: Callable[..., Any], tmp_path: Path) -> None:
    model = model_of()
    values = json.loads((zoo.save(model, tmp_path / "m") / "config.json").read_text())
    assert values["format"] == "zoo" and values["version"] == zoo.__version__
    assert values["model"] == model.config.model_dump(mode="json") and values["model"]["head"]["labels"] is None


@pytest.mark.parametrize("stage", ["weights", "between", "config"])
def test_a_failure_in_the_middle_leaves_the_old_files(
    model_of: Callable[..., Any], tmp_path: Path, monkeypatch: Any, stage: str
) -> None:
    old, new = model_of(), model_of({"head.classes": 9})
    zoo.save(old, tmp_path / "m")
    replaced: list[str] = []
    replace = os.replace

    def failing(source: Any, target: Any) -> None:
        if (stage == "weights") or (stage == "config" and str(target).endswith("config.json")):
            raise OSError(28, "No space left on device")
        replaced.append(str(target))
        replace(source, target)

    def failing_write(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving.os, "replace", failing)
    if stage == "between":
        monkeypatch.setattr(saving, "save_file", failing_write)
    with pytest.raises(WeightsError, match="cannot be written: No space left on device"):
        zoo.save(new, tmp_path / "m")
    monkeypatch.undo()
    assert sorted(os.listdir(tmp_path / "m")) == ["config.json", "model.safetensors"]
    if stage == "config":  # the pair is not one file: what is read then is an error, never a mixture
        with pytest.raises(ZooError):
            zoo.load(tmp_path / "m")
    else:
        assert equal(zoo.load(tmp_path / "m"), old)


def test_a_folder_that_cannot_be_written_is_an_error(model_of: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "file" / "sub", Path("/proc/zoo")):
        with pytest.raises(WeightsError, match="cannot be written"):
            zoo.save(model_of(), place)
    assert (tmp_path / "file").read_text() == "x"


def test_a_model_without_memory_cannot_be_saved(tiny: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="meta device has no weights"):
        zoo.save(zoo.build(tiny, device="meta"), tmp_path / "m")
    with pytest.raises(WeightsError, match="meta device has no weights"):
        zoo.export(zoo.build(tiny, device="meta"), tmp_path / "m")
    assert not (tmp_path / "m" / "model.safetensors").exists()


def test_saving_over_the_loaded_folder_is_safe(model_of: Callable[..., Any], tmp_path: Path) -> None:
    model = model_of()
    zoo.save(model, tmp_path / "m")
    loaded = zoo.load(tmp_path / "m")
    with torch.no_grad():
        loaded.head.output.bias.add_(1.0)
    zoo.save(loaded, tmp_path / "m")
    assert torch.equal(zoo.load(tmp_path / "m").head.output.bias, model.head.output.bias + 1)


def test_training_a_loaded_model_does_not_write_to_its_file(model_of: Callable[..., Any], tmp_path: Path) -> None:
    zoo.save(model_of(), tmp_path / "m")
    before = (tmp_path / "m" / "model.safetensors").read_bytes()
    loaded = zoo.load(tmp_path / "m").train()
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.mul_(2.0)
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", torch.float16])
def test_loading_in_another_type(model_of: Callable[..., Any], tmp_path: Path, dtype: Any) -> None:
    model = model_of()
    zoo.save(model, tmp_path / "m")
    kind = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    loaded = zoo.load(tmp_path / "m", dtype=dtype)
    assert all(torch.equal(a, b.to(kind)) for a, b in zip(loaded.state_dict().values(), model.state_dict().values()))
    assert zoo.load(tmp_path / "m", device="meta").device.type == "meta"


def test_mixed_types_are_an_error_until_one_is_chosen(model_of: Callable[..., Any], tmp_path: Path) -> None:
    model = model_of(dtype="float32")
    model.head.to(torch.bfloat16)
    zoo.save(model, tmp_path / "m")
    with pytest.raises(WeightsError, match=r"several types \(bfloat16, float32\); choose one"):
        zoo.load(tmp_path / "m")
    assert zoo.load(tmp_path / "m", dtype="float32").dtype == torch.float32


def test_the_file_holds_our_names(model_of: Callable[..., Any], tmp_path: Path) -> None:
    model = model_of()
    zoo.save(model, tmp_path / "m")
    assert set(load_file(tmp_path / "m" / "model.safetensors")) == {name for name, _ in model.named_parameters()}


MEMORY = """
import sys, resource
import torch, zoo, zoo.api, zoo.checkpoint.load, zoo.checkpoint.huggingface_vit, zoo.model.transformer
def peak():
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))) * 1024
zoo.build("vit-tiny", {"stack.depth": 1})
before = peak()
model = zoo.load(sys.argv[1])
with torch.no_grad():
    print(sum(float(p.view(-1)[:: 512].sum()) for p in model.parameters()) * 0, peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("format", ["zoo", "transformers", "timm"])
def test_loading_peaks_near_the_size_of_the_file(tmp_path: Path, run: Callable[..., Any], format: str) -> None:
    model = zoo.build("vit-large")
    zoo.save(model, tmp_path / "m") if format == "zoo" else zoo.export(model, tmp_path / "m", format)
    size = (tmp_path / "m" / "model.safetensors").stat().st_size
    done = run("-c", MEMORY, str(tmp_path / "m"))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) <= 1.3 * size
