"""Folders that transformers and timm saved themselves, tiny and redrawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bert_helpers import SIZES, family_of

VIT = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "image_size": 32,
    "patch_size": 8,
}
TIMM = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}


@pytest.fixture
def huggingface(redraw: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """A function that makes a model of transformers, in float64, and the folder that it saves itself into."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()

    def make(cls: str = "ViTForImageClassification", options: dict[str, Any] | None = None, **fields: Any) -> tuple[Any, Path]:
        kind = getattr(transformers, cls)
        config = kind.config_class(**{**VIT, **({} if "id2label" in fields else {"num_labels": 5}), **fields})
        config._attn_implementation = "sdpa"
        torch.manual_seed(0)
        model = redraw(kind(config, **(options or {})).double()).eval()
        folder = tmp_path / f"hf-{len(list(tmp_path.iterdir()))}"
        model.save_pretrained(folder)
        return model, folder

    return make


@pytest.fixture
def timm_folder(redraw: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """A function that makes a model of timm, in float64, and the folder that it saves itself into."""
    import timm
    import torch

    def make(name: str = "vit_tiny_patch16_224", **arguments: Any) -> tuple[Any, Path]:
        torch.manual_seed(0)
        given = {**TIMM, **arguments}
        model = redraw(timm.create_model(name, **given).double()).eval()
        folder = tmp_path / f"timm-{len(list(tmp_path.iterdir()))}"
        timm.models.save_for_hf(model, folder, safe_serialization=True)
        return model, folder

    return make


@pytest.fixture
def saved(redraw: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """A function that makes a model of transformers, in float64, and the folder that it saves itself into."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()

    def make(cls: str = "BertModel", options: dict[str, Any] | None = None, **fields: Any) -> tuple[Any, Path]:
        kind = getattr(transformers, cls)
        config = kind.config_class(**{**SIZES[family_of(cls)], **fields})
        config._attn_implementation = "sdpa"
        torch.manual_seed(0)
        model = redraw(kind(config, **(options or {})).double()).eval()
        folder = tmp_path / f"hf-{len(list(tmp_path.iterdir()))}"
        model.save_pretrained(folder)
        return model, folder

    return make
