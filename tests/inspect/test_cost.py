"""Costs: counted by hand, and measured on real models, byte for byte."""

from __future__ import annotations

import json
import resource
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import torch

import zoo
from zoo.errors import ConfigError, InputError
from zoo.inspect.against import compare
from zoo.inspect.cost import Part

Make = Callable[..., Any]


def vit_flops(width: int, depth: int, patch: int, image: int = 224, hidden: int | None = None, classes: int = 1000) -> int:
    """A plain ViT's forward pass written out: two operations for each multiplication and addition."""
    patches = (image // patch) ** 2
    tokens, hidden = patches + 1, hidden or 4 * width
    projections = tokens * (4 * width * width + 2 * width * hidden)
    attention = 2 * tokens * tokens * width
    return 2 * (patches * 3 * patch * patch * width + depth * (projections + attention) + width * classes)


@pytest.mark.parametrize(
    ("name", "numbers", "giga"),
    [
        ("vit-base", (768, 12, 16), 35.1),
        ("vit-tiny", (192, 12, 16), 2.51),
        ("vit-large", (1024, 24, 16), 123.1),
        ("vit-base-patch32", (768, 12, 32), 8.82),
    ],
)
def test_flops_are_those_counted_by_hand(name: str, numbers: tuple[int, ...], giga: float) -> None:
    whole = zoo.cost(name)
    assert whole.flops == vit_flops(*numbers)
    assert whole.flops / 1e9 == pytest.approx(giga, rel=0.005)  # as timm and the papers give them, twice the products
    assert whole.parameters == zoo.build(name, device="meta").num_parameters()


def test_flops_of_each_part(tiny: dict[str, Any]) -> None:
    parts = {part.name: part for part in zoo.cost(tiny, batch=3).walk()}
    tokens, width, hidden = 3 * 17, 24, 40
    layer = "stack.layers.1"
    for name in ("query", "key", "value", "output"):
        assert parts[f"{layer}.attention.{name}"].flops == 2 * tokens * width * width
    products = 2 * 2 * tokens * 17 * width
    assert parts[f"{layer}.attention"].flops == 4 * 2 * tokens * width * width + products
    assert parts[f"{layer}.feedforward"].flops == 2 * 2 * tokens * width * hidden
    assert parts["embedding"].flops == 2 * 3 * 16 * 3 * 64 * width and parts["head.output"].flops == 2 * 3 * width * 5
    assert parts[""].flops == sum(parts[name].flops for name in ("embedding", "stack", "head"))
    assert parts[f"{layer}.attention_norm"].flops == 0


VARIANTS: list[dict[str, Any]] = [
    {},
    {"stack.block.feedforward": "gated"},
    {"stack.block.norm": "rms-norm"},
    {"stack.block.order": "post", "stack.block.layer_scale": 0.1},
    {"stack.block.attention": {"heads": 4, "kv_heads": 2}},
    {"stack.block.attention.causal": True},
    {"stack.block.attention": {"qk_norm": "layer-norm", "output_norm": "layer-norm"}},
    {"stack.block.attention.dropout": 0.1, "stack.block.dropout": 0.1, "stack.block.feedforward.dropout": 0.1},
    {"stack.drop_path": 0.1, "embedding.patch_dropout": 0.5},
    {"head.pool": "mean", "head.norm": "layer-norm", "embedding.position": "sinusoidal"},
    {"head.pool": {"type": "attention", "attention": {"heads": 3}, "norm": "layer-norm", "feedforward": "mlp"}},
    {"embedding": {"image_size": [37, 45], "flexible": True, "edges": "pad", "channels": 1}},
    {"stack.depth": 3, "stack.pattern": [{}, {"feedforward": {"type": "gated", "activation": "quick-gelu"}}]},
]


def measured(model: Any, pixels: torch.Tensor) -> int:
    """The bytes that a forward pass on the CPU keeps for the backward pass."""
    kept: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(pixels)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    assert output is not None
    return sum(storage.nbytes() for place, storage in kept.items() if place not in parameters)


@pytest.mark.parametrize("overrides", VARIANTS, ids=str)
@pytest.mark.parametrize("batch", [1, 2])
def test_memory_and_flops_are_those_of_a_real_run(tiny: dict[str, Any], overrides: dict[str, Any], batch: int) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = zoo.build(tiny, overrides)
    config, whole = model.config.embedding, zoo.cost(tiny, overrides, batch=batch)
    pixels = torch.randn(batch, config.channels, *config.image_size)
    assert whole.memory == measured(model, pixels)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval().requires_grad_(False)(pixels)
    assert whole.flops == counter.get_total_flops()


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_texts(tiny: dict[str, Any], dropout: float) -> None:
    embedding = {"type": "tokens", "vocabulary": 50, "position": {"type": "learned", "length": 20}, "dropout": dropout}
    fields = {**tiny, "embedding": embedding}
    fields["stack"]["block"]["attention"]["dropout"] = dropout
    for tokens in (None, 7):
        given = torch.zeros(2, tokens or 20, dtype=torch.int64)  # as long as the table is, unless somebody says
        assert zoo.cost(fields, batch=2, tokens=tokens).memory == measured(zoo.build(fields), given)


def test_a_part_holds_what_its_parts_hold(tiny: dict[str, Any]) -> None:
    whole = zoo.cost(tiny)
    for part in whole.walk():
        for name in ("parameters", "flops", "memory"):
            assert getattr(part, name) >= sum(getattr(inside, name) for inside in part.parts) >= 0
    assert [part.name for part in whole.parts] == ["embedding", "stack", "head"]
    assert [part.type for part in whole.parts] == ["patch", "uniform", "classifier"]
    layers = [part for part in whole.walk() if part.type == "residual"]
    assert len(layers) == 2 and {part.type for part in layers[0].parts} >= {"layer-norm", "full", "mlp"}
    assert whole.memory == sum(part.memory for part in whole.parts)


def test_the_cost_of_a_model_that_is_built(tiny: dict[str, Any]) -> None:
    model = zoo.build(tiny)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert zoo.cost(model) == zoo.cost(tiny) == zoo.cost(zoo.get_config(tiny))
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with zoo.capture(model, "**.pattern") as seen:
        assert zoo.cost(model) == zoo.cost(tiny)  # what watches the model does not watch its copy
    assert not seen
    model.stack.layers[0].requires_grad_(False)
    assert zoo.cost(model).memory < zoo.cost(tiny).memory
    assert zoo.cost(zoo.build(tiny, dtype="float64")).memory == 2 * zoo.cost(tiny).memory


def test_gradient_checkpointing_keeps_less(tiny: dict[str, Any]) -> None:
    model = zoo.build(tiny, {"stack.depth": 6})
    usual = zoo.cost(model)
    model.gradient_checkpointing()
    assert zoo.cost(model).memory < usual.memory / 2 and zoo.cost(model).flops == usual.flops


def test_what_cannot_be_counted_is_an_error(tiny: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="batch: expected 1 or more, got 0"):
        zoo.cost(tiny, batch=0)
    with pytest.raises(InputError, match="say of which size: inputs="):
        zoo.cost(torch.nn.Linear(3, 4))
    with pytest.raises(ConfigError, match="a model that is built already"):
        zoo.cost(zoo.build(tiny), {"stack.depth": 3})
    with pytest.raises(InputError, match="tokens: this model reads images"):
        zoo.cost(tiny, tokens=5)
    other = torch.nn.Linear(3, 4)
    assert zoo.cost(other, inputs={"input": torch.ones(5, 3)}) == Part("", "Linear", 16, 2 * 5 * 3 * 4, 60, ())


def test_against(tiny: dict[str, Any]) -> None:
    found = compare(tiny, tiny, {"stack.block.feedforward": "gated", "stack.depth": 4})
    assert [tuple(field) for field in found.fields] == [("stack.depth", 4, 2), ("stack.block.feedforward", "gated", "mlp")]
    figures = {figure.name: figure for figure in found.figures}
    ours = zoo.cost(tiny, {"stack.block.feedforward": "gated", "stack.depth": 4})
    for name in ("parameters", "flops", "memory"):
        assert figures[name].ours == getattr(ours, name) and figures[name].theirs == getattr(zoo.cost(tiny), name)
        assert figures[name].ratio == figures[name].ours / figures[name].theirs > 1.5
    same = compare(tiny, tiny)
    assert same.fields == () and {figure.ratio for figure in same.figures} == {1.0}


@pytest.mark.slow
def test_the_largest_preset_takes_less_than_four_seconds(run: Callable[..., "subprocess.CompletedProcess[str]"]) -> None:
    """Of a processor, start included: how long that is on a clock depends on who else is there."""

    def used() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    for _ in range(3):
        before = used()
        done = run("-m", "zoo", "show", "vit-huge", "--json")
        seconds = used() - before
        if seconds < 4.0:
            break
    assert seconds < 4.0
    assert json.loads(done.stdout)["flops"]["all"] == vit_flops(1280, 32, 14)
