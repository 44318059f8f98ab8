"""Thousands of broken configs: each is valid, and then builds, or is one of zoo's errors that names a place."""

from __future__ import annotations

import copy
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import zoo
from zoo.errors import ZooError

JUNK: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    3,
    7,
    2**31,
    10**40,
    0.5,
    -0.0,
    1e308,
    float("inf"),
    float("nan"),
    "",
    "none",
    "full",
    "1",
    "1e-5",
    "é\x00{x}%s",
    "a" * 3000,
    [],
    {},
    [1, 2],
    [[]],
    {"type": None},
    {"type": 3},
    {"type": []},
    {"type": "rms-norm"},
    {"": 1},
    {"type": {"type": 1}},
    {1: 2},
    {None: 1},
    (1, 2),
    b"bytes",
    1j,
    object,
    {3},
    [{}] * 50,
    "mean",
    "attention",
    "gated",
    "sinusoidal",
    {"0": 1},
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of everything inside a config."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def mutate(fields: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """A copy of a config with a few things broken."""
    fields = copy.deepcopy(fields)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        *parents, key = draw.choice(list(places(fields)))
        place: Any = fields
        for step in parents:
            place = place[step]
        action = draw.randrange(7)
        if action == 0:
            del place[key]
        elif action == 1:
            place[key] = copy.deepcopy(draw.choice(JUNK))
        elif action == 2 and isinstance(place, dict):
            name = str(key)
            spot = draw.randrange(len(name) + 1)
            place[name[:spot] + draw.choice("abxyz_-. ") + name[spot + draw.randrange(2) :]] = place.pop(key)
        elif action == 3:
            place[key] = [copy.deepcopy(place[key])] * draw.choice((1, 2, 40))
        elif action == 4:
            place[key] = {"type": place[key]} if draw.random() < 0.5 else {str(key): place[key]}
        elif action == 5:
            paths = list(places(fields))
            other: Any = fields
            for step in draw.choice(paths):
                other = other[step]
            place[key] = copy.deepcopy(other)
        elif isinstance(place[key], (int, float)) and not isinstance(place[key], bool):
            place[key] = draw.choice(
                (place[key] * -1, place[key] + 1, place[key] * 2, place[key] / 3, place[key] * 10**9, str(place[key]))
            )
        if not list(places(fields)):
            break
    return fields


def overrides_for(draw: random.Random, paths: list[str]) -> dict[str, Any]:
    """Dotted overrides with odd values at places that exist, or nearly."""
    chosen = {}
    for _ in range(draw.choice((1, 1, 2))):
        path = draw.choice(paths)
        if draw.random() < 0.2:
            path = path.replace(draw.choice(path), draw.choice(("", ".", "x", "..")), 1)
        chosen[path] = copy.deepcopy(draw.choice(JUNK))
    return chosen


@contextmanager
def not_for_ever(what: Any) -> Iterator[None]:
    """Fails where the code inside works for longer than any config may take: two seconds of the processor, not of the clock."""

    def late(*_: Any) -> None:
        raise AssertionError(f"two seconds, and no end: {what!r:.3000}")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, 2.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def outcome(fields: Any, overrides: Any, build: bool) -> str:
    """What became of a config: "valid", or the message of its error; anything else fails the test."""
    with not_for_ever((overrides, fields)):
        try:
            config = zoo.get_config(fields, overrides)
        except ZooError as error:
            return str(error)
    again = zoo.get_config(config.model_dump())
    assert again == config and again.model_dump() == config.model_dump()
    if build and config.stack.depth <= 64:
        try:
            model = zoo.build(config, device="meta")
            assert model.num_parameters() >= 0
        except ZooError as error:
            return str(error)
    return "valid"


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 10))])
def test_mutated_presets(seed: int) -> None:
    draw = random.Random(seed)
    dumps = [zoo.get_config(name).model_dump(mode="json") for name in ("vit-tiny", "vit-base-registers", "deit3-small")]
    dumps.append(
        zoo.get_config(
            "vit-tiny",
            {
                "stack.pattern": [{}, {"attention": {"heads": 6}, "norm": "rms-norm"}],
                "head.pool": {"type": "attention", "attention": {"heads": 3}, "norm": "layer-norm", "feedforward": "gated"},
            },
        ).model_dump(mode="json")
    )
    paths = [".".join(map(str, path)) for each in dumps for path in places(each)]
    valid, names = 0, {piece for path in paths for piece in path.split(".")}
    for number in range(1000):
        if number % 4 == 3:
            fields, overrides = draw.choice(dumps), overrides_for(draw, paths)
        else:
            fields, overrides = mutate(draw.choice(dumps), draw), None
        message = outcome(fields, overrides, build=number % 5 == 0)
        valid += message == "valid"
        if message != "valid":
            assert (
                any(name in message for name in names)
                or "unknown field of" in message
                or "no path of a field" in message
                or "unknown model" in message
                or "nested too deeply" in message
            ), message
            assert len(message) < 10_000, message[:200]
    assert 20 < valid < 600


@pytest.mark.parametrize("depth", [50, 500, 5000])
@pytest.mark.parametrize("where", ["head", "stack.block", "stack.pattern.0", "head.labels"])
@pytest.mark.parametrize("kind", ["mapping", "typed", "list"])
def test_deeply_nested_junk_is_an_error_or_valid(depth: int, where: str, kind: str) -> None:
    junk: Any = {}
    for _ in range(depth):
        junk = {"mapping": {"a": junk}, "typed": {"type": "residual", "attention": junk}, "list": [junk]}[kind]
    base = zoo.get_config("vit-tiny", {"stack.pattern": [{}, {}]})
    assert outcome(base, {where: junk}, build=False) != "valid"


def test_a_mapping_that_holds_itself_is_an_error() -> None:
    junk: dict[str, Any] = {"type": "residual"}
    junk["attention"] = junk
    junk["head"] = junk
    for overrides in ({"head": junk}, {"stack.block": junk}, {"stack.pattern": [junk]}, junk):
        with pytest.raises(ZooError):
            zoo.get_config("vit-tiny", overrides)
    with pytest.raises(ZooError):
        zoo.get_config(junk)
