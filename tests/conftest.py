"""What the tests share: a tiny Vision Transformer, weights drawn anew, and the command line."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # several of these share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).resolve().parents[1]

TINY = {
    "type": "transformer",
    "embedding": {"type": "patch", "image_size": 32, "patch_size": 8, "position": "learned"},
    "stack": {
        "type": "uniform",
        "width": 24,
        "depth": 2,
        "final_norm": {"type": "layer-norm", "eps": 1e-6},
        "block": {
            "norm": {"type": "layer-norm", "eps": 1e-6},
            "attention": {"type": "full", "heads": 3},
            "feedforward": {"type": "mlp", "hidden": 40},
        },
    },
    "head": {"type": "classifier", "classes": 5, "pool": "class-token"},
}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test starts from the same random state."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture
def repository() -> Path:
    """The root of the source tree."""
    return REPOSITORY


@pytest.fixture
def tiny() -> dict[str, Any]:
    """The fields of a Vision Transformer of two layers; a fresh copy."""
    return copy.deepcopy(TINY)


@pytest.fixture
def redraw() -> Callable[..., Any]:
    """A function that draws every parameter of a model anew, so that no bias is zero and no norm one."""
    import torch

    @torch.no_grad()
    def draw(model: Any, scale: float = 0.3, seed: int = 1) -> Any:
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_((noise * scale).to(parameter.dtype))
        return model

    return draw


@pytest.fixture
def model_of(redraw: Callable[..., Any]) -> Callable[..., Any]:
    """A function that builds the tiny model with overrides: float64, redrawn, in eval mode."""
    import torch

    import zoo

    def make(overrides: dict[str, Any] | None = None, dtype: Any = "float64") -> Any:
        torch.manual_seed(0)
        return redraw(zoo.build(copy.deepcopy(TINY), overrides, dtype=dtype)).eval()

    return make


@pytest.fixture
def images() -> Callable[..., Any]:
    """A function that draws images of the tiny model's size."""
    import torch

    def draw(batch: int = 2, channels: int = 3, size: tuple[int, int] = (32, 32), dtype: Any = torch.float64) -> Any:
        generator = torch.Generator().manual_seed(3)
        return torch.randn(batch, channels, *size, generator=generator, dtype=torch.float64).to(dtype)

    return draw


@pytest.fixture
def run() -> Callable[..., subprocess.CompletedProcess[str]]:
    """A function that runs `python ARGUMENTS...` in a fresh process."""

    def start(*arguments: str, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
        settings = {**os.environ, "PYTHONPATH": str(REPOSITORY), **environment}
        return subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, timeout=timeout, env=settings, check=False
        )

    return start
