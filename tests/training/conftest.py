"""What the training tests share: a run that takes a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

SMALL = {
    "model.stack.width": 32,
    "model.stack.depth": 1,
    "model.stack.block.attention.heads": 2,
    "data.batch_size": 256,
    "trainer.max_epochs": 2,
    "trainer.accelerator": "cpu",
}


@pytest.fixture
def small(tmp_path: Path) -> dict[str, Any]:
    """Overrides of `vit-tiny-digits` that make it small, in a folder of the test's own."""
    return {**SMALL, "folder": str(tmp_path / "run")}


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A small run that is finished."""
    from zoo.training.run import train

    folder = tmp_path_factory.mktemp("finished") / "run"
    return train("vit-tiny-digits", {**SMALL, "folder": str(folder), "data.validation": 0.1}, progress=False)
