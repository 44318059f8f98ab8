"""A config is strict and frozen, and what is wrong is said with its place."""

from __future__ import annotations

from typing import Any

import pydantic
import pytest

import zoo
from zoo.errors import ConfigError, UnknownNameError, ZooError


def refused(source: Any, overrides: dict[str, Any] | None = None) -> str:
    """The message with which a config is refused."""
    with pytest.raises(ZooError) as caught:
        zoo.get_config(source, overrides)
    return str(caught.value)


def test_a_config_is_frozen_at_every_depth() -> None:
    config = zoo.get_config("vit-tiny")
    for part, field in (
        (config, "head"),
        (config.stack, "depth"),
        (config.stack.block.attention, "heads"),
        (config.embedding, "image_size"),
    ):
        with pytest.raises(pydantic.ValidationError, match="frozen"):
            setattr(part, field, 1)
        with pytest.raises(pydantic.ValidationError, match="frozen"):
            delattr(part, field)


UNKNOWN = [
    ("stack.block.attention.haeds", "attention 'full'", "heads"),
    ("stack.block.feedforward.activaton", "feedforward 'mlp'", "activation"),
    ("stack.block.norm.epsilon", "norm 'layer-norm'", "eps"),
    ("stack.block.ordr", "block 'residual'", "order"),
    ("stack.dept", "stack 'uniform'", "depth"),
    ("embedding.patchsize", "embedding 'patch'", "patch_size"),
    ("embedding.position.sqare", "position 'learned'", "square"),
    ("head.classses", "head 'classifier'", "classes"),
    ("head.pool.prefix", "pool 'class-token'", "type"),
    ("init.sdt", "initializer 'truncated-normal'", "std"),
    ("haed", "model 'transformer'", "head"),
]


@pytest.mark.parametrize(("path", "owner", "nearest"), UNKNOWN)
def test_an_unknown_field_is_named_with_its_place_its_part_and_the_nearest(path: str, owner: str, nearest: str) -> None:
    message = refused("vit-tiny", {path: 1})
    assert f"{path}: unknown field of {owner}" in message
    assert f"did you mean '{nearest}'" in message or f"its fields are {nearest}" in message


def test_a_field_like_no_other_lists_the_fields() -> None:
    assert "its fields are eps, type, bias" in refused("vit-tiny", {"stack.block.norm.qqqqqq": 1})


def test_all_problems_come_in_one_message() -> None:
    message = refused("vit-tiny", {"head.clases": 1, "stack.block.attention.hads": 2, "embedding.chanels": 3})
    assert all(path in message for path in ("head.clases", "stack.block.attention.hads", "embedding.chanels"))


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("stack.depth", 0, "greater than 0"),
        ("stack.depth", -3, "greater than 0"),
        ("stack.depth", 2.5, "integer"),
        ("stack.depth", None, "integer"),
        ("stack.width", "many", "integer"),
        ("head.classes", -1, "greater than or equal to 0"),
        ("head.dropout", 1.5, "less than or equal to 1"),
        ("head.dropout", float("nan"), "finite"),
        ("stack.block.norm.eps", float("inf"), "finite"),
        ("stack.block.norm.eps", -1e-6, "greater than or equal to 0"),
        ("stack.block.order", "before", "'pre'"),
        ("stack.block.feedforward.activation", "gelo", "did you mean 'gelu'"),
        ("embedding.image_size", [1, 2, 3], "tuple"),
        ("embedding.image_size", 0, "greater than 0"),
        ("head.labels", "cat", "list"),
        ("stack.block.attention.scale", 0, "greater than 0"),
        ("init.std", 0, "greater than 0"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(path: str, value: Any, expected: str) -> None:
    message = refused("vit-tiny", {path: value})
    assert path in message and expected in message


@pytest.mark.parametrize("path", ["stack.depth", "head.classes", "stack.block.attention.heads", "stack.block.norm.eps"])
@pytest.mark.parametrize("value", [True, False])
def test_a_truth_value_is_no_number(path: str, value: bool) -> None:
    assert f"{path}: {str(value).lower()} is no value for this field" in refused("vit-tiny", {path: value})


@pytest.mark.parametrize("path", ["stack.block.attention.bias", "embedding.class_token"])
@pytest.mark.parametrize("value", ["perhaps", 2, None, [True]])
def test_a_truth_value_is_asked_for(path: str, value: Any) -> None:
    assert path in refused("vit-tiny", {path: value})


@pytest.mark.parametrize("missing", ["embedding", "stack", "stack.width", "stack.depth", "stack.block", "stack.block.norm"])
def test_a_missing_field_is_named(missing: str, tiny: dict[str, Any]) -> None:
    *parents, last = missing.split(".")
    place = tiny
    for step in parents:
        place = place[step]
    del place[last]
    assert f"{missing}: " in refused(tiny)


def test_a_slot_takes_a_name_or_a_mapping_or_a_config(tiny: dict[str, Any]) -> None:
    by_name = zoo.get_config(tiny, {"stack.block.norm": "rms-norm"})
    by_mapping = zoo.get_config(tiny, {"stack.block": {"norm": {"type": "rms-norm"}}})
    assert by_name == by_mapping and by_name.stack.block.norm.type == "rms-norm"
    assert zoo.get_config({**tiny, "head": by_name.head}) == zoo.get_config(tiny)


@pytest.mark.parametrize("empty", [None, "none"])
def test_an_optional_slot_can_be_empty(empty: Any, tiny: dict[str, Any]) -> None:
    assert zoo.get_config(tiny, {"head": empty}).head is None
    assert zoo.get_config(tiny, {"stack.final_norm": empty}).stack.final_norm is None
    assert zoo.get_config(tiny, {"embedding.position": empty}).embedding.position is None


@pytest.mark.parametrize(
    "value", [None, 3, [], ["full"], {"type": None}, {"type": 3}, {"type": ["full"]}, {"type": {}}, "none"]
)
def test_a_needed_slot_refuses_what_is_no_part(value: Any, tiny: dict[str, Any]) -> None:
    tiny["stack"]["block"]["norm"] = value
    assert "stack.block.norm" in refused(tiny)


def test_a_pool_called_none_is_a_part_and_no_empty_slot() -> None:
    assert zoo.get_config("vit-tiny", {"head.pool": "none"}).head.pool.type == "none"


@pytest.mark.parametrize(
    ("path", "name", "nearest"),
    [
        ("stack.block.attention", "ful", "full"),
        ("stack.block.norm", "layernorm", "layer-norm"),
        ("head", "clasifier", "classifier"),
    ],
)
def test_an_unknown_part_is_named_with_the_nearest(path: str, name: str, nearest: str) -> None:
    message = refused("vit-tiny", {f"{path}.type": name})
    assert f"{path}: unknown" in message and name in message and f"did you mean '{nearest}'" in message


@pytest.mark.parametrize("name", ["os:system", "zoo.norm.layer_norm:LayerNorm", "../registry/norm", "torch.nn.LayerNorm"])
def test_a_config_can_name_registered_parts_only(name: str) -> None:
    assert "stack.block.norm: unknown norm" in refused("vit-tiny", {"stack.block.norm.type": name})


@pytest.mark.parametrize(
    ("overrides", "place", "words"),
    [
        ({"stack.width": 190}, "stack.block.attention.heads", "not divisible by 3 heads"),
        ({"stack.block.attention.heads": 5}, "stack.block.attention.heads", "not divisible by 5 heads"),
        ({"stack.block.attention.kv_heads": 2}, "stack.block.attention.kv_heads", "cannot share"),
        ({"stack.block.attention.kv_heads": 6}, "stack.block.attention.kv_heads", "cannot share"),
        ({"embedding.image_size": 8}, "embedding.patch_size", "do not fit"),
        ({"embedding.image_size": [224, 8]}, "embedding.patch_size", "do not fit"),
        ({"embedding.image_size": 230, "embedding.edges": "refuse"}, "embedding.image_size", "not a multiple"),
        ({"embedding.class_token": False}, "head.pool", "no class token"),
        ({"head.classes": 2, "head.labels": ["a", "b", "c"]}, "head.labels", "3 names for 2 classes"),
        ({"stack.block.feedforward.ratio": 0.001}, "stack.block.feedforward.ratio", "no inner width"),
        ({"stack.pattern": [{}, {"attention": {"heads": 7}}]}, "stack.pattern.1.attention.heads", "not divisible"),
        (
            {"head.pool": {"type": "attention", "attention": {"heads": 7}, "norm": "layer-norm", "feedforward": "mlp"}},
            "head.pool.attention.heads",
            "not divisible",
        ),
    ],
)
def test_what_does_not_fit_together_is_said_at_validation(overrides: dict[str, Any], place: str, words: str) -> None:
    message = refused("vit-tiny", overrides)
    assert f"{place}: " in message and words in message


def test_the_nearest_number_of_heads_is_proposed() -> None:
    assert "; 4 would do, or set head_size" in refused("vit-tiny", {"stack.block.attention.heads": 5})
    assert zoo.get_config("vit-tiny", {"stack.block.attention.heads": 5, "stack.block.attention.head_size": 64})


@pytest.mark.parametrize("source", [None, 3, [], ["vit-tiny"], object(), 1.5])
def test_what_names_no_model_is_refused(source: Any) -> None:
    assert "expected the name of a preset" in refused(source)


@pytest.mark.parametrize("overrides", [3, "head.classes=1", [("head", 1)]])
def test_overrides_are_a_mapping(overrides: Any) -> None:
    assert "overrides: expected a mapping" in refused("vit-tiny", overrides)


@pytest.mark.parametrize(
    ("name", "nearest"), [("vit-tinny", "vit-tiny"), ("vit_base", "vit-base"), ("deit-smal", "deit-small")]
)
def test_an_unknown_preset_is_named_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(UnknownNameError, match=f"unknown model '{name}'; did you mean '{nearest}'"):
        zoo.get_config(name)


def test_errors_are_also_value_errors() -> None:
    assert issubclass(ConfigError, ValueError) and issubclass(UnknownNameError, ValueError)
