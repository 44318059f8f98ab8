"""A validated config is whole: it holds every default, and what it dumps gives it back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import zoo
from zoo.config import Config
from zoo.config.base import slot_of

CHANGES: list[dict[str, Any]] = [
    {},
    {"head": None},
    {"head": "pooler"},
    {"stack.block.norm": "rms-norm", "stack.final_norm": None},
    {"embedding.image_size": [64, 32], "embedding.patch_size": [8, 4]},
    {"head.classes": 3, "head.labels": ["a", "b", "c"]},
    {"stack.pattern": [{}, {"attention": {"heads": 6}}, {"norm": "rms-norm", "feedforward": "gated"}]},
    {"stack.pattern": [{"type": "residual"}, {"attention": "full"}]},
    {"head.pool": {"type": "attention", "attention": {"heads": 3}, "norm": "layer-norm", "feedforward": "mlp"}},
    {"embedding.position": "sinusoidal", "embedding.registers": 2},
    {"stack.block.attention.qk_norm": "rms-norm", "stack.block.layer_scale": 1e-5},
]


def lacking(config: Config, dumped: dict[str, Any], path: str = "") -> list[str]:
    """Fields of a config, at any depth, that its dump leaves out."""
    found = [f"{path}{name}" for name in type(config).model_fields if name not in dumped]
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, Config) and slot_of(field) is not None and name in dumped:
            found += lacking(value, dumped[name], f"{path}{name}.")
    return found


@pytest.mark.parametrize("overrides", CHANGES, ids=[str(sorted(each))[:40] for each in CHANGES])
def test_a_dump_is_whole_and_gives_the_same_config(overrides: dict[str, Any]) -> None:
    config = zoo.get_config("vit-tiny", overrides)
    plain, text = config.model_dump(), json.dumps(config.model_dump(mode="json"))
    assert lacking(config, plain) == []
    assert zoo.get_config(plain) == config
    assert zoo.get_config(json.loads(text)) == config
    assert json.dumps(zoo.get_config(json.loads(text)).model_dump(mode="json")) == text


@pytest.mark.parametrize("name", zoo.list_models())
def test_a_preset_is_the_same_after_yaml_and_json(name: str, tmp_path: Path) -> None:
    config = zoo.get_config(name)
    path = tmp_path / "whole.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert zoo.get_config(path) == config == zoo.get_config(name)
    assert lacking(config, config.model_dump()) == []


def test_a_later_change_of_a_default_does_not_change_a_dump(monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo.norm.layer_norm import LayerNorm

    old = zoo.get_config("vit-tiny", {"stack.block.norm": "rms-norm", "stack.pattern": [{}, {"norm": "layer-norm"}]})
    dumped = old.model_dump(mode="json")
    for field in ("eps", "bias"):
        monkeypatch.setattr(LayerNorm.Config.model_fields[field], "default", 0.5 if field == "eps" else False)
    LayerNorm.Config.model_rebuild(force=True)
    try:
        new = zoo.get_config(dumped)
        norms = [block.norm.model_dump() for block in new.stack.blocks()[:2]]
        assert LayerNorm.Config().eps == 0.5, "the default was not changed"
        assert norms == [block.norm.model_dump() for block in old.stack.blocks()[:2]]
        assert new.model_dump(mode="json") == dumped
    finally:
        monkeypatch.undo()
        LayerNorm.Config.model_rebuild(force=True)
    assert LayerNorm.Config().eps == 1e-6


def test_a_pattern_is_stored_as_what_differs() -> None:
    config = zoo.get_config("vit-tiny", {"stack.pattern": [{"dropout": 0.0}, {"norm": "rms-norm", "attention": {"heads": 3}}]})
    first, second = config.stack.pattern
    assert first == {}, "a change to the same value is none"
    assert second == {"norm": {"type": "rms-norm", "eps": 1e-6, "precision": "same"}}


def test_equal_patterns_in_other_words_are_equal_configs() -> None:
    spelled = [
        [{}, {"norm": "rms-norm"}],
        [{"type": "residual"}, {"norm": {"type": "rms-norm", "eps": 1e-6}}],
        [{"dropout": 0.0}, {"norm": {"type": "rms-norm"}}],
    ]
    configs = [zoo.get_config("vit-tiny", {"stack.pattern": pattern}) for pattern in spelled]
    assert configs[0] == configs[1] == configs[2]


def test_a_pattern_repeats() -> None:
    config = zoo.get_config("vit-tiny", {"stack.pattern": [{}, {}, {"norm": "rms-norm"}], "stack.depth": 7})
    kinds = [block.norm.type for block in config.stack.blocks()]
    assert kinds == ["layer-norm", "layer-norm", "rms-norm"] * 2 + ["layer-norm"]


@pytest.mark.parametrize(
    ("pattern", "place"),
    [
        ([], "stack.pattern: "),
        ([3], "stack.pattern.0: "),
        ([{}, {"nrm": "rms-norm"}], "stack.pattern.1.nrm: unknown field of block 'residual'"),
        (["rms"], "stack.pattern.0: "),
        ([{}, None], "stack.pattern.1: "),
    ],
)
def test_a_wrong_pattern_is_named(pattern: Any, place: str) -> None:
    with pytest.raises(zoo.errors.ConfigError) as caught:
        zoo.get_config("vit-tiny", {"stack.pattern": pattern})
    assert place in str(caught.value)


def test_building_twice_gives_the_same_config(tiny: dict[str, Any]) -> None:
    first, second = zoo.build(tiny, device="meta"), zoo.build(tiny, device="meta")
    assert first.config == second.config and first.config is not second.config
    assert zoo.build(first.config, device="meta").config == first.config
    assert [(n, p.shape) for n, p in first.named_parameters()] == [(n, p.shape) for n, p in second.named_parameters()]
