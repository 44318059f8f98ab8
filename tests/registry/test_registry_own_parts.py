"""A user's own parts: the decorator, and entry points of installed packages."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

import zoo
from zoo import registry
from zoo.errors import ZooError
from zoo.norm.base import NormConfig


class Doubling(nn.Module):
    """Doubles its input."""

    class Config(NormConfig):
        """Config of `doubling`."""

        type: Literal["doubling"] = "doubling"
        factor: float = 2.0

    def __init__(self, config: Config, *, width: int) -> None:
        super().__init__()
        self.factor = config.factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    """Parts registered in a test are gone after it."""
    before = dict(registry._registered)
    yield
    registry._registered.clear()
    registry._registered.update(before)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[EntryPoint]:
    """Entry points that seem to be installed."""
    points: list[EntryPoint] = []

    def find(*, group: str, name: str | None = None) -> list[EntryPoint]:
        return [point for point in points if point.group == group and name in (None, point.name)]

    monkeypatch.setattr(registry, "entry_points", find)
    return points


def test_a_registered_part_is_used_like_ours(tiny: dict[str, Any]) -> None:
    assert zoo.register("norm", "doubling")(Doubling) is Doubling
    model = zoo.build(tiny, {"stack.final_norm": {"type": "doubling", "factor": 3.0}}).eval()
    bare = zoo.build(tiny, {"stack.final_norm": None}).eval()
    bare.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(model(x).last_hidden_state, bare(x).last_hidden_state * 3)
    assert "doubling" in zoo.list_components("norm") and "norm/doubling" in zoo.list_components()


def test_its_config_is_as_strict_as_ours(tiny: dict[str, Any]) -> None:
    zoo.register("norm", "doubling")(Doubling)
    with pytest.raises(ZooError, match=r"stack.final_norm.facto: unknown field of norm 'doubling'; did you mean 'factor'"):
        zoo.get_config(tiny, {"stack.final_norm": {"type": "doubling", "facto": 1}})


def test_shared_fields_survive_the_change_to_it(tiny: dict[str, Any]) -> None:
    zoo.register("norm", "doubling")(Doubling)
    config = zoo.get_config(tiny, {"stack.final_norm.eps": 0.25})
    assert zoo.get_config(config, {"stack.final_norm": "doubling"}).stack.final_norm.eps == 0.25


def test_a_saved_model_with_it_loads_again(tiny: dict[str, Any], tmp_path: Any) -> None:
    zoo.register("norm", "doubling")(Doubling)
    model = zoo.build(tiny, {"stack.final_norm": "doubling"})
    zoo.save(model, tmp_path / "m")
    assert zoo.load(tmp_path / "m").config == model.config
    registry._registered.clear()
    with pytest.raises(ZooError, match="unknown norm 'doubling'"):
        zoo.load(tmp_path / "m")


@pytest.mark.parametrize("name", ["layer-norm", "rms-norm"])
def test_a_taken_name_is_an_error(name: str) -> None:
    with pytest.raises(ZooError, match=f"a norm called '{name}' exists already"):
        zoo.register("norm", name)(Doubling)


def test_a_name_taken_by_another_class_of_the_users_is_an_error() -> None:
    zoo.register("norm", "doubling")(Doubling)
    other = type("Other", (Doubling,), {})
    with pytest.raises(ZooError, match="exists already"):
        zoo.register("norm", "doubling")(other)
    assert registry.part("norm", "doubling") is Doubling


def test_a_cell_of_a_notebook_can_run_again() -> None:
    zoo.register("norm", "doubling")(Doubling)
    again = type("Doubling", (Doubling,), {"__qualname__": Doubling.__qualname__, "__module__": Doubling.__module__})
    zoo.register("norm", "doubling")(again)
    assert registry.part("norm", "doubling") is again


@pytest.mark.parametrize("name", ["Doubling", "my norm", "", "-x", "x_y", "a/b", "é"])
def test_a_name_of_other_letters_is_an_error(name: str) -> None:
    with pytest.raises(ZooError, match="cannot name a norm"):
        zoo.register("norm", name)


@pytest.mark.parametrize("bad", [nn.Linear, type("Bare", (), {}), type("Wrong", (), {"Config": int})])
def test_a_class_that_is_no_part_is_an_error(bad: type) -> None:
    with pytest.raises(
        ZooError, match=f"{bad.__name__} is no norm part: it needs a nested Config of that kind with `type: Literal"
    ):
        zoo.register("norm", "doubling")(bad)
    assert "doubling" not in zoo.list_components("norm")


def test_a_part_of_another_name_is_an_error() -> None:
    with pytest.raises(ZooError, match="is no norm part"):
        zoo.register("norm", "tripling")(Doubling)


def test_a_part_of_another_kind_is_an_error() -> None:
    with pytest.raises(ZooError, match="is no pool part"):
        zoo.register("pool", "doubling")(Doubling)


def test_an_installed_packages_part_is_found(installed: list[EntryPoint], tiny: dict[str, Any]) -> None:
    installed.append(EntryPoint("doubling", f"{__name__}:Doubling", "zoo.norm"))
    assert registry.part("norm", "doubling").__name__ == "Doubling"
    assert "doubling" in zoo.list_components("norm") and "doubling" not in zoo.list_components("pool")
    assert zoo.get_config(tiny, {"stack.final_norm": "doubling"}).stack.final_norm.type == "doubling"
    with pytest.raises(ZooError, match="exists already"):
        zoo.register("norm", "doubling")(Doubling)


def test_two_packages_with_one_name_are_an_error(installed: list[EntryPoint]) -> None:
    installed += [EntryPoint("doubling", f"{package}:Doubling", "zoo.norm") for package in ("one", "two")]
    with pytest.raises(ZooError, match="two installed packages offer a norm called 'doubling': one:Doubling, two:Doubling"):
        registry.part("norm", "doubling")


@pytest.mark.parametrize("target", ["no_such_package:Doubling", "zoo.errors:NoSuchName", "zoo.errors:ZooError"])
def test_a_broken_package_is_named(installed: list[EntryPoint], target: str) -> None:
    installed.append(EntryPoint("doubling", target, "zoo.norm"))
    with pytest.raises(ZooError, match="doubling"):
        registry.part("norm", "doubling")


def test_our_own_parts_cannot_be_replaced_by_a_package(installed: list[EntryPoint]) -> None:
    installed.append(EntryPoint("layer-norm", f"{__name__}:Doubling", "zoo.norm"))
    assert registry.part("norm", "layer-norm").__name__ == "LayerNorm"
