"""Weights into a changed model: resized, re-initialised, or one error that lists everything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from zoo.errors import WeightsError

Make = Callable[..., Any]


def statuses(model: Any) -> dict[str, str]:
    """What became of each tensor that was not plainly taken over."""
    return {entry.name: entry.status for entry in model.load_report.entries if entry.status not in ("loaded", "renamed")}


@pytest.mark.parametrize("size", [(64, 64), (40, 64), (16, 32)])
def test_positions_are_resampled_as_timm_does(timm_folder: Make, size: tuple[int, int]) -> None:
    from timm.layers import resample_abs_pos_embed

    theirs, folder = timm_folder()
    ours = zoo.load(folder, {"embedding.image_size": list(size)})
    expected = resample_abs_pos_embed(theirs.pos_embed, (size[0] // 8, size[1] // 8), num_prefix_tokens=1)[0]
    assert (ours.embedding.position.table - expected).abs().max() < 1e-12
    assert statuses(ours) == {"embedding.position.table": "resized"}


@pytest.mark.parametrize("size", [(64, 64), (40, 64), (16, 32)])
def test_positions_are_resampled_as_transformers_does(huggingface: Make, size: tuple[int, int]) -> None:
    theirs, folder = huggingface()
    ours = zoo.load(folder, {"embedding.image_size": list(size)})
    embedded = torch.zeros(1, 1 + (size[0] // 8) * (size[1] // 8), 24, dtype=torch.float64)
    expected = theirs.vit.embeddings.interpolate_pos_encoding(embedded, *size)[0]
    assert (ours.embedding.position.table - expected).abs().max() < 1e-12
    assert statuses(ours) == {"embedding.position.table": "resized"}


def test_equal_numbers_of_patches_in_another_grid_are_resampled(timm_folder: Make) -> None:
    _, folder = timm_folder()
    ours = zoo.load(folder, {"embedding.image_size": [16, 64]})
    assert statuses(ours) == {"embedding.position.table": "resized"}


@pytest.mark.parametrize("channels", [1, 4, 6])
def test_channels_are_adapted_as_timm_does(timm_folder: Make, channels: int) -> None:
    from timm.models._manipulate import adapt_input_conv

    theirs, folder = timm_folder()
    ours = zoo.load(folder, {"embedding.channels": channels})
    expected = adapt_input_conv(channels, theirs.patch_embed.proj.weight)
    assert (ours.embedding.weight.float() - expected.float()).abs().max() < 1e-6
    assert statuses(ours) == {"embedding.weight": "resized"}


@pytest.mark.parametrize("way", ["load", "build"])
def test_other_classes_are_drawn_afresh_and_said_so(huggingface: Make, way: str, tiny: dict[str, Any]) -> None:
    theirs, folder = huggingface(layer_norm_eps=1e-6)
    if way == "load":
        ours = zoo.load(folder, {"head.classes": 9})
    else:
        ours = zoo.build(tiny, {"head.classes": 9}, weights=folder)
        assert ours.training
    assert statuses(ours) == {"head.output.weight": "re-initialised", "head.output.bias": "re-initialised"}
    assert ours.head.output.weight.std() < 0.03 and ours.head.output.weight.dtype == torch.float64
    assert torch.equal(ours.embedding.position.table, theirs.vit.embeddings.position_embeddings[0])
    assert "re-initialised head.output.weight" in str(ours.load_report)


def test_another_head_leaves_the_old_one_behind(huggingface: Make) -> None:
    _, folder = huggingface()
    ours = zoo.load(folder, {"head": None})
    assert set(statuses(ours).values()) == {"ignored"} and ours.head is None
    pooled = zoo.load(folder, {"head": "pooler"})
    assert [e.status for e in pooled.load_report.entries if e.name == "head.output.weight"] == ["re-initialised", "ignored"]


def test_differences_nobody_asked_for_are_one_error_that_lists_all(huggingface: Make, tiny: dict[str, Any]) -> None:
    _, folder = huggingface()
    with pytest.raises(WeightsError) as caught:
        zoo.build({**tiny, "head": {"type": "classifier", "classes": 7}}, {"embedding.channels": 3}, weights=folder)
    assert "no override asked for the difference" in str(caught.value)
    assert "head.output.weight: [5, 24] there, [7, 24] here" in str(caught.value) and "head.output.bias" in str(caught.value)


def test_another_width_is_one_error(huggingface: Make, tiny: dict[str, Any]) -> None:
    _, folder = huggingface()
    with pytest.raises(WeightsError) as caught:
        zoo.load(folder, {"stack.width": 48})
    assert str(caught.value).count("cannot become") > 5
    with pytest.raises(WeightsError, match=r"stack.layers.0.attention.query.weight: \[24, 24\]"):
        zoo.build("vit-tiny", weights=folder)


def test_fewer_and_more_layers_when_asked_for(huggingface: Make) -> None:
    _theirs, folder = huggingface()
    more = zoo.load(folder, {"stack.depth": 3})
    assert {name.split(".")[2] for name in statuses(more)} == {"2"} and set(statuses(more).values()) == {"re-initialised"}
    fewer = zoo.load(folder, {"stack.depth": 1})
    assert {name.split(".")[2] for name in statuses(fewer)} == {"1"} and set(statuses(fewer).values()) == {"ignored"}
    assert torch.equal(fewer.stack.layers[0].attention.query.bias, more.stack.layers[0].attention.query.bias)


def test_a_new_part_is_drawn_afresh(huggingface: Make) -> None:
    _, folder = huggingface()
    ours = zoo.load(folder, {"stack.block.layer_scale": 0.5})
    assert set(statuses(ours)) == {
        f"stack.layers.{n}.{part}_scale.weight" for n in (0, 1) for part in ("attention", "feedforward")
    }
    assert torch.equal(ours.stack.layers[1].attention_scale.weight, torch.full((24,), 0.5, dtype=torch.float64))


def test_every_tensor_is_in_the_report_once(huggingface: Make) -> None:
    _, folder = huggingface()
    for overrides in ({}, {"head.classes": 9}, {"embedding.image_size": 64}, {"stack.depth": 3}):
        ours = zoo.load(folder, overrides)
        names = [entry.name for entry in ours.load_report.entries if entry.status != "ignored"]
        assert sorted(names) == sorted(name for name, _ in ours.named_parameters())


def test_a_yaml_file_that_extends_asks_for_its_own_changes(huggingface: Make, tmp_path: Path) -> None:
    import yaml

    _, folder = huggingface()
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(zoo.load(folder).config.model_dump(mode="json")))
    (tmp_path / "mine.yaml").write_text("extends: base.yaml\nhead: {classes: 9}\n")
    ours = zoo.build(tmp_path / "mine.yaml", weights=folder)
    assert set(statuses(ours)) == {"head.output.weight", "head.output.bias"}
