"""The rule table is reversible and refuses to be ambiguous."""

from __future__ import annotations

import random

import pytest
import torch

from zoo.checkpoint.rules import Batched, Rule, expand, module_rules, read, rule, write
from zoo.errors import WeightsError


@pytest.mark.parametrize("seed", range(60))
def test_reading_then_writing_gives_the_same_tensors(seed: int) -> None:
    draw = random.Random(seed)
    table, theirs, shapes = [], {}, {}
    for number in range(draw.randrange(1, 9)):
        kind, tail = draw.choice(("same", "split", "batched")), [draw.randrange(1, 4) for _ in range(draw.randrange(0, 3))]
        name, own = (
            f"their.{number}",
            [f"our.{number}.{part}" for part in range(draw.randrange(2, 5) if kind == "split" else 1)],
        )
        sizes = [draw.randrange(1, 6) for _ in own]
        shapes |= {ours: (size, *tail) for ours, size in zip(own, sizes)}
        full = (sum(sizes), *tail)
        theirs[name] = torch.randn(1, *full) if kind == "batched" else torch.randn(full)
        table.append(rule(name, *own, operation=Batched() if kind == "batched" else None))
    draw.shuffle(table)
    ours = read(table, theirs.__getitem__, shapes)
    assert {name: tuple(tensor.shape) for name, tensor in ours.items()} == shapes
    again = write(table, ours)
    assert set(again) == set(theirs) and all(torch.equal(again[name], theirs[name]) for name in theirs)
    assert all(tensor.is_contiguous() for tensor in again.values())
    back = read(table, again.__getitem__, shapes)
    assert all(torch.equal(back[name], ours[name]) for name in ours)


def test_a_split_reads_views() -> None:
    stored = torch.randn(6, 2)
    ours = read([rule("a", "x", "y")], {"a": stored}.__getitem__, {"x": (2, 2), "y": (4, 2)})
    assert ours["x"].data_ptr() == stored.data_ptr() and torch.equal(ours["y"], stored[2:])


def test_layers_are_numbered_and_what_a_model_lacks_left_out() -> None:
    table = expand(module_rules("their.{n}.a", "our.{n}.b"), 3, [f"our.{n}.b.weight" for n in range(3)])
    assert [entry.theirs + entry.ours for entry in table] == [(f"their.{n}.a.weight", f"our.{n}.b.weight") for n in range(3)]


@pytest.mark.parametrize(
    "rules", [[rule("a", "x"), rule("a", "y")], [rule("a", "x"), rule("b", "x")], [rule("a", "x", "y"), rule("b", "y")]]
)
def test_two_rules_for_one_tensor_are_an_error(rules: list[Rule]) -> None:
    with pytest.raises(WeightsError, match="two rules for one tensor"):
        expand(rules, 1, ["x", "y"])


def test_a_rule_that_covers_only_some_of_its_tensors_is_an_error() -> None:
    with pytest.raises(WeightsError, match="a holds x, y, but this model has no y"):
        expand([rule("a", "x", "y")], 1, ["x"])
