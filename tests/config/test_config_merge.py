"""How overrides are laid over a config: deeply, in order, list items by number, and across a change of type."""

from __future__ import annotations

import copy
from typing import Any

import pytest

import zoo
from zoo.config.merge import difference, merge, parse_overrides, unflatten
from zoo.config.resolve import MODEL
from zoo.errors import ConfigError


def test_dotted_and_nested_overrides_are_the_same() -> None:
    dotted = zoo.get_config("vit-tiny", {"stack.block.attention.heads": 6, "head.classes": 10})
    nested = zoo.get_config("vit-tiny", {"stack": {"block": {"attention": {"heads": 6}}}, "head": {"classes": 10}})
    mixed = zoo.get_config("vit-tiny", {"stack": {"block.attention.heads": 6}, "head": {"classes": 10}})
    assert dotted == nested == mixed
    assert dotted.stack.block.attention.heads == 6 and dotted.head.classes == 10


def test_an_override_leaves_the_rest() -> None:
    before, after = (zoo.get_config("vit-tiny", each).model_dump() for each in (None, {"stack.block.attention.dropout": 0.25}))
    after["stack"]["block"]["attention"]["dropout"] = before["stack"]["block"]["attention"]["dropout"]
    assert before == after


def test_no_overrides_change_nothing() -> None:
    assert zoo.get_config("vit-tiny") == zoo.get_config("vit-tiny", {}) == zoo.get_config("vit-tiny", {"stack": {}})


def test_later_overrides_win() -> None:
    assert zoo.get_config("vit-tiny", {"head.classes": 3, "head": {"classes": 4}}).head.classes == 4
    assert zoo.get_config("vit-tiny", {"head": {"classes": 4}, "head.classes": 3}).head.classes == 3


def test_a_mapping_after_dotted_names_merges_at_every_depth() -> None:
    """`stack.block.attention.heads` set before is not lost when `stack` is given as a mapping afterwards."""
    config = zoo.get_config("vit-tiny", {"stack.block.attention.heads": 6, "stack": {"block": {"dropout": 0.1}}})
    assert (config.stack.block.attention.heads, config.stack.block.dropout) == (6, 0.1)


def test_unflatten() -> None:
    assert unflatten({"a.b": 1, "a.c": {"d.e": 2}, "f": 3}) == {"a": {"b": 1, "c": {"d": {"e": 2}}}, "f": 3}
    assert unflatten({"a": "full", "a.b": 1}) == {"a": {"type": "full", "b": 1}}


@pytest.mark.parametrize("path", ["", ".", "head.", ".head", "head..classes"])
def test_a_path_has_a_name_at_every_step(path: str) -> None:
    with pytest.raises(ConfigError, match="is no path of a field"):
        zoo.get_config("vit-tiny", {path: 1})


def test_nothing_can_be_set_inside_a_number() -> None:
    with pytest.raises(ConfigError, match=r"head.classes.more: 'classes' was set to 3 before"):
        zoo.get_config("vit-tiny", {"head.classes": 3, "head.classes.more": 1})
    with pytest.raises(ConfigError, match=r"head\.classes"):
        zoo.get_config("vit-tiny", {"head.classes.more": 1})


def test_a_type_change_keeps_the_shared_fields_and_drops_the_rest() -> None:
    base = {"stack.block.feedforward": {"hidden": 77, "dropout": 0.25, "activation": "relu", "bias": False}}
    before = zoo.get_config("vit-tiny", base)
    after = zoo.get_config(before, {"stack.block.feedforward.type": "gated"}).stack.block.feedforward
    assert (after.type, after.hidden, after.dropout, after.activation, after.bias) == ("gated", 77, 0.25, "relu", False)


def test_a_type_change_drops_what_the_new_type_does_not_have() -> None:
    before = zoo.get_config("vit-tiny", {"stack.block.norm": {"eps": 0.5, "bias": False}})
    after = zoo.get_config(before, {"stack.block.norm": "rms-norm"}).stack.block.norm
    assert after.model_dump() == {"type": "rms-norm", "eps": 0.5, "precision": "same"}


def test_a_type_change_without_shared_fields_starts_from_the_defaults() -> None:
    config = zoo.get_config("vit-tiny", {"embedding.position.square": True})
    changed = zoo.get_config(config, {"embedding.position": "sinusoidal"})
    assert changed.embedding.position.model_dump() == {
        "type": "sinusoidal",
        "base": 10000.0,
        "order": "interleaved",
        "length": None,
    }
    assert zoo.get_config(changed, {"embedding.position": "learned"}).embedding.position.square is False


def test_a_field_of_the_old_type_is_an_error_after_the_change() -> None:
    with pytest.raises(ConfigError, match=r"stack.block.norm.bias: unknown field of norm 'rms-norm'"):
        zoo.get_config("vit-tiny", {"stack.block.norm": {"type": "rms-norm", "bias": True}})


def test_naming_the_same_type_keeps_all_fields() -> None:
    config = zoo.get_config("vit-tiny", {"stack.block.attention": {"type": "full", "dropout": 0.5}})
    assert config.stack.block.attention.heads == 3


def test_an_emptied_slot_can_be_filled_again() -> None:
    bare = zoo.get_config("vit-tiny", {"head": None})
    filled = zoo.get_config(bare, {"head": {"type": "classifier", "classes": 3}})
    assert bare.head is None and filled.head.classes == 3


def test_a_field_set_inside_an_empty_slot_uses_the_slots_default_type() -> None:
    config = zoo.get_config("vit-tiny", {"stack.final_norm": None})
    assert zoo.get_config(config, {"stack.final_norm.eps": 0.5}).stack.final_norm.model_dump() == {
        "type": "layer-norm", "eps": 0.5, "bias": True,
    }  # fmt: skip
    message = "head: no type given; expected a head"
    with pytest.raises(ConfigError, match=message):
        zoo.get_config(zoo.get_config("vit-tiny", {"head": None}), {"head.classes": 3})


def test_list_items_change_by_number() -> None:
    pattern = [{}, {"attention": {"heads": 6}}, {"dropout": 0.5}]
    config = zoo.get_config("vit-tiny", {"stack.pattern": pattern})
    changed = zoo.get_config(config, {"stack.pattern.1.attention.heads": 4})
    assert [block.attention.heads for block in changed.stack.blocks()[:3]] == [3, 4, 3]
    assert [block.dropout for block in changed.stack.blocks()[:3]] == [0.0, 0.0, 0.5]
    labels = zoo.get_config("vit-tiny", {"head.classes": 3, "head.labels": ["a", "b", "c"]})
    assert zoo.get_config(labels, {"head.labels.1": "B"}).head.labels == ["a", "B", "c"]


@pytest.mark.parametrize("number", ["²", "-1", "x", 10**30])
def test_a_list_item_has_a_number(number: object) -> None:
    labels = zoo.get_config("vit-tiny", {"head.classes": 3, "head.labels": ["a", "b", "c"]})
    with pytest.raises(ConfigError, match=r"head.labels: expected a valid list"):
        zoo.get_config(labels, {f"head.labels.{number}": "x"})


@pytest.mark.parametrize("number", [3, 9, 123456789])
def test_a_list_item_that_is_not_there_is_named(number: int) -> None:
    labels = zoo.get_config("vit-tiny", {"head.classes": 3, "head.labels": ["a", "b", "c"]})
    with pytest.raises(ConfigError, match=rf"labels\.{number}: the list has only 3 entries \(0 to 2\)"):
        zoo.get_config(labels, {f"head.labels.{number}": "x"})


def test_a_list_is_replaced_as_a_whole() -> None:
    labels = zoo.get_config("vit-tiny", {"head.classes": 3, "head.labels": ["a", "b", "c"]})
    assert zoo.get_config(labels, {"head": {"classes": 1, "labels": ["x"]}}).head.labels == ["x"]
    assert zoo.get_config(labels, {"head.labels": None}).head.labels is None


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["head.classes=10"], {"head.classes": 10}),
        (["a=1e-5", "b=1.0e-5", "c=.5", "d=-3"], {"a": 1e-5, "b": 1e-5, "c": 0.5, "d": -3}),
        (["a=true", "b=False", "c=no", "d=on", "e=yes"], {"a": True, "b": False, "c": "no", "d": "on", "e": "yes"}),
        (["a=null", "b=", "c=~"], {"a": None, "b": None, "c": None}),
        (["a={type: full, heads: 3}", "b=[1, 2]"], {"a": {"type": "full", "heads": 3}, "b": [1, 2]}),
        (["a=x=y", " b =1"], {"a": "x=y", "b": 1}),
    ],
)
def test_overrides_of_the_command_line(words: list[str], expected: dict[str, Any]) -> None:
    assert parse_overrides(words) == expected


@pytest.mark.parametrize("word", ["head.classes", "=3", " =3", ""])
def test_a_word_without_a_value_is_no_override(word: str) -> None:
    with pytest.raises(ConfigError, match="is no override: expected field=value"):
        parse_overrides([word])


@pytest.mark.parametrize("value", ["[1, 2", "{a: 1", "a: b: c", "!!python/object:os.system {}"])
def test_a_value_that_is_no_yaml_is_named(value: str) -> None:
    with pytest.raises(ConfigError, match=r"head.classes.*no valid YAML"):
        parse_overrides([f"head.classes={value}"])


def test_the_inputs_are_never_changed(tiny: dict[str, Any]) -> None:
    overrides = {"stack": {"block": {"attention": {"heads": 6}}}, "head.classes": 3, "stack.pattern": [{}, {"dropout": 0.1}]}
    fields, changes = copy.deepcopy(tiny), copy.deepcopy(overrides)
    first = zoo.get_config(fields, changes)
    assert (fields, changes) == (tiny, overrides)
    assert zoo.get_config(fields, changes) == first
    zoo.build(fields, changes, device="meta")
    assert (fields, changes) == (tiny, overrides)


def test_a_config_is_not_changed_by_overrides_on_it() -> None:
    config = zoo.get_config("vit-tiny")
    before = config.model_dump()
    assert zoo.get_config(config, {"head.classes": 3}) != config
    assert config.model_dump() == before


@pytest.mark.parametrize(
    "overrides", [{"head.classes": 7}, {"stack.block.norm": "rms-norm"}, {"head": None}, {"stack.depth": 2, "init.std": 1.0}]
)
def test_a_difference_laid_over_its_base_gives_the_change(overrides: dict[str, Any]) -> None:
    base, changed = zoo.get_config("vit-tiny"), zoo.get_config("vit-tiny", overrides)
    change = difference(base, changed, MODEL)
    assert zoo.get_config(merge(base, change, MODEL)) == changed
    assert difference(base, base, MODEL) == {}


def test_names_of_classes_go_with_their_number() -> None:
    named = zoo.get_config("vit-tiny", {"head.classes": 2, "head.labels": ["cat", "dog"]})
    assert zoo.get_config(named, {"head.classes": 3}).head.labels is None
    assert zoo.get_config(named, {"head.classes": 2}).head.labels == ["cat", "dog"]
    assert zoo.get_config(named, {"head": {"classes": 1, "labels": ["cow"]}}).head.labels == ["cow"]
    assert zoo.get_config(named, {"head.dropout": 0.1}).head.labels == ["cat", "dog"]
