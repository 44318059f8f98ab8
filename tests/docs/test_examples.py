"""The examples do what they say: a part in a package of its own, and one registered from a script."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"

THE_MODEL = """
extends: vit-tiny
embedding: {image_size: 32}
stack: {depth: 2, block: {attention: linear-attention}}
head: {classes: 5}
"""

USE_THE_PART = """
import torch, zoo, zoo.errors

assert "linear-attention" in zoo.list_components("attention")
model = zoo.build("mine.yaml")
assert type(model.stack.layers[0].attention).__name__ == "LinearAttention"
assert model.config.stack.block.attention.heads == 3  # shared by all attentions, so it was kept
output = model(torch.randn(2, 3, 32, 32), output_attentions=[0])
weights = output.attentions[0]
assert weights.shape == (2, 3, 5, 5) and torch.allclose(weights.sum(-1), torch.ones(2, 3, 5))
output.logits.square().sum().backward()
assert all(parameter.grad is not None for parameter in model.parameters())
masked = model.eval()(torch.randn(1, 3, 32, 32), attention_mask=torch.tensor([[1, 1, 1, 0, 0]]), output_attentions=[1])
assert float(masked.attentions[0][..., 3:].abs().max()) == 0.0
try:
    zoo.build("mine.yaml", {"stack.block.attention.causal": True})
except zoo.errors.ConfigError as error:
    assert "stack.block.attention.causal" in str(error)
else:
    raise AssertionError("a field that would be ignored is an error")
print("used")
"""
"""Run in a fresh process, in a folder with mine.yaml, where the package can be found."""


def _run(*words: str, folder: Path, path: str) -> str:
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{' '.join(words[:4])} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_a_segmenter_learns_from_feature_maps(tmp_path: Path) -> None:
    printed = _run(sys.executable, str(EXAMPLES / "segmentation.py"), "--steps", "2", folder=tmp_path, path=str(ROOT))
    assert "mean IoU" in printed


def test_part_of_an_installed_package(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    target = tmp_path / "installed"
    install = ("pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", str(target))
    _run(sys.executable, "-m", *install, str(EXAMPLES / "zoo-example-part"), folder=tmp_path, path="")
    (tmp_path / "mine.yaml").write_text(THE_MODEL, encoding="utf-8")
    assert "used" in _run(sys.executable, "-c", USE_THE_PART, folder=tmp_path, path=f"{target}{os.pathsep}{ROOT}")


def test_part_registered_in_a_script(tmp_path: Path) -> None:
    for package in ("transformers", "timm"):
        pytest.importorskip(package)
    said = _run(sys.executable, str(EXAMPLES / "own_part.py"), folder=tmp_path, path=str(ROOT))
    assert "differs, as asked; first divergence: stack.layers.0.attention_norm" in said
    wrong = next(line for line in said.splitlines() if line.startswith("modules that compute something else:"))
    modules = wrong.partition(": ")[2].split(", ")
    assert modules and all(name.endswith("_norm") for name in modules)
