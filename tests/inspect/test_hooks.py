"""Hook points: the same names everywhere, values that are those of the model, interventions that take effect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import zoo
from zoo.errors import InputError, UnknownNameError
from zoo.inspect.hooks import matches

Make = Callable[..., Any]
PATTERN = "stack.layers.1.attention.pattern"


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    """Equal within 1e-12."""
    assert a.shape == b.shape and (a - b).abs().max() <= 1e-12 * max(1.0, float(b.detach().abs().max()))


def hooks(model: nn.Module) -> int:
    """How many hooks are left on the modules of a model."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_names_are_module_paths(model_of: Make) -> None:
    model = model_of()
    names = zoo.hook_points(model)
    modules = dict(model.named_modules())
    assert set(names) <= set(modules) and len(names) == len(set(names))
    layer = "stack.layers.1"
    parts = ("", ".attention", ".attention.query", ".attention.key", ".attention.value", ".attention.output")
    for part in (*parts, ".attention.pattern", ".feedforward", ".feedforward.up", ".feedforward.down", ".attention_norm"):
        assert layer + part in names
    assert {"embedding", "stack", "stack.final_norm", "head", "head.output"} <= set(names)
    assert "stack.layers" not in names and "" not in names  # nobody calls these


def test_hook_points_change_no_state_dict(model_of: Make) -> None:
    model = model_of()
    assert not [name for name in model.state_dict() if "pattern" in name]
    assert not list(model.get_submodule(PATTERN).parameters()) and not list(model.get_submodule(PATTERN).buffers())


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("stack.layers.*", ["stack.layers.0", "stack.layers.1"]),
        ("stack.layers.?.attention.pattern", ["stack.layers.0.attention.pattern", PATTERN]),
        ("**.pattern", ["stack.layers.0.attention.pattern", PATTERN]),
        ("stack.**.query", ["stack.layers.0.attention.query", "stack.layers.1.attention.query"]),
        ("stack.layers.[1-9]", ["stack.layers.1"]),
        (["head", "embedding"], ["embedding", "head"]),
        (["stack.layers.1", "stack.layers.*"], ["stack.layers.0", "stack.layers.1"]),
        ("*", ["embedding", "stack", "head"]),
    ],
)
def test_patterns(model_of: Make, pattern: Any, expected: list[str]) -> None:
    assert zoo.hook_points(model_of(), pattern) == expected


def test_matching_steps() -> None:
    assert matches(("a", "b", "c"), ("a", "**", "c")) and matches(("a", "c"), ("a", "**", "c"))
    assert matches(("a",), ("**",)) and not matches(("a", "b"), ("*",)) and not matches(("a",), ("a", "b"))


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("stack.layer.0", "unknown hook point 'stack.layer.0'; did you mean 'stack.layers.0'"),
        ("stack.layer.*.attention.pattern", r"did you mean 'stack.layers.\*.attention.pattern'"),
        ("**.patern", r"no hook point matches '\*\*.patern'; did you mean '\*\*.pattern'"),
        ("*.pattern", r"did you mean '\*\*.pattern'\? \(\* stands within one step"),
        ("stack.*.pattern", r"did you mean 'stack.\*\*.pattern'"),
        ("nothing*", r"no hook point matches 'nothing\*'"),
    ],
)
def test_a_pattern_that_matches_nothing_is_an_error_with_the_nearest_name(model_of: Make, pattern: str, words: str) -> None:
    model = model_of()
    for call in (
        lambda: zoo.hook_points(model, pattern),
        lambda: zoo.capture(model, ["head", pattern]).__enter__(),
        lambda: zoo.intervene(model, {"head": torch.relu, pattern: torch.relu}).__enter__(),
    ):
        with pytest.raises(UnknownNameError, match=words):
            call()
    assert hooks(model) == 0


def test_captured_values_are_those_of_the_model(model_of: Make, images: Make) -> None:
    model, x = model_of(), images()
    plain = model(x, output_hidden_states=True, output_attentions=True)
    with zoo.capture(model, ["embedding", "stack.layers.*", "**.pattern", "stack", "head", "**.attention"]) as seen:
        output = model(x)
    close(output.logits, plain.logits)
    close(seen["embedding"], plain.hidden_states[0])
    for layer in (0, 1):
        close(seen[f"stack.layers.{layer}"], plain.hidden_states[layer + 1])
        close(seen[f"stack.layers.{layer}.attention.pattern"], plain.attentions[layer])
        assert seen[f"stack.layers.{layer}.attention"].shape == (2, 17, 24)
    assert seen["head"] is output.logits and seen["stack"] is output.last_hidden_state
    order = list(seen)
    assert order.index("embedding") < order.index(PATTERN) < order.index("stack.layers.1") < order.index("head")
    assert hooks(model) == 0


def test_every_hook_point_gives_a_tensor(model_of: Make, images: Make) -> None:
    for overrides in ({}, {"stack.block.attention": {"qk_norm": "rms-norm", "output_norm": "layer-norm"}, "head.pool": "mean"}):
        model = model_of(overrides)
        with zoo.capture(model, "**") as seen:
            model(images())
        uncalled = set(zoo.hook_points(model)) - set(seen)
        assert all(isinstance(model.get_submodule(name), nn.Dropout) for name in uncalled)  # of layers that are not there
        assert all(isinstance(tensor, torch.Tensor) for tensor in seen.values())


@pytest.mark.parametrize("fields", [{}, {"heads": 4, "kv_heads": 2}, {"causal": True}, {"scale": 0.7}], ids=str)
def test_watching_the_pattern_changes_nothing(model_of: Make, images: Make, fields: dict[str, Any]) -> None:
    model, x = model_of({"stack.block.attention": fields}), images()
    mask = torch.ones(2, 17, dtype=torch.long)
    mask[0, 5:9] = 0
    mask[1] = 0
    for given in (None, mask):
        with zoo.capture(model, "**.pattern") as seen:
            watched = model(x, attention_mask=given).logits
        close(watched, model(x, attention_mask=given).logits)
        assert seen[PATTERN].shape[1:] == (fields.get("heads", 3), 17, 17)


def test_nothing_is_computed_for_a_pattern_that_nobody_watches(model_of: Make, images: Make, monkeypatch: Any) -> None:
    import zoo.attention.full

    calls: list[int] = []
    real = zoo.attention.full.attention_weights
    monkeypatch.setattr(zoo.attention.full, "attention_weights", lambda *a, **k: calls.append(1) or real(*a, **k))
    model = model_of()
    model(images())
    assert not calls
    with zoo.capture(model, PATTERN):
        model(images())
    assert len(calls) == 1  # of two layers, the watched one alone
    model(images())
    assert len(calls) == 1


def test_calls(model_of: Make, images: Make) -> None:
    model = model_of()
    with zoo.capture(model, "stack.layers.0", calls="all") as seen:
        first, second = (model(images(), output_hidden_states=[1]).hidden_states[0], model(images(1), output_hidden_states=[1]))
    assert torch.equal(seen["stack.layers.0"][0], first) and len(seen["stack.layers.0"]) == 2
    with zoo.capture(model, "stack.layers.0") as seen:
        model(images())
        model(images(1))
    assert torch.equal(seen["stack.layers.0"], second.hidden_states[0])
    with pytest.raises(UnknownNameError, match="choice of calls"):
        zoo.capture(model, "head", calls="first").__enter__()


def test_what_was_not_captured_is_named(model_of: Make, images: Make) -> None:
    model = model_of()
    with zoo.capture(model, "stack.layers.0") as seen, pytest.raises(UnknownNameError, match="did not run inside"):
        seen["stack.layers.0"]
    with zoo.capture(model, "stack.layers.0") as seen:
        model(images())
    with pytest.raises(UnknownNameError, match=r"'stack.layers.1' was not captured; did you mean 'stack.layers.0'"):
        seen["stack.layers.1"]
    assert "stack.layers.1" not in seen and seen.get("stack.layers.1") is None


def test_gradients_flow_through_captured_tensors(model_of: Make, images: Make) -> None:
    model = model_of()
    with zoo.capture(model, [PATTERN, "stack.layers.0"]) as seen:
        model(images()).logits[0, 1].backward(retain_graph=True)
        logit = model(images()).logits[0, 1]
        gradient = torch.autograd.grad(logit, [seen[PATTERN], seen["stack.layers.0"]])
    assert all(each.abs().max() > 0 for each in gradient) and gradient[0].shape == (2, 3, 17, 17)
    assert float(gradient[0][1].abs().max()) == 0.0  # the other example has no part in it
    with zoo.capture(model, PATTERN, detach=True) as seen:
        model(images())
    assert not seen[PATTERN].requires_grad


def test_a_gradient_of_the_pattern_is_the_true_one(model_of: Make, images: Make) -> None:
    model, x, step = model_of(), images(1), 1e-5
    direction = torch.randn(1, 3, 17, 17, dtype=torch.float64)
    with zoo.capture(model, PATTERN) as seen:
        slope = (torch.autograd.grad(model(x).logits[0, 1], seen[PATTERN])[0] * direction).sum()
    ends = []
    for sign in (1, -1):
        with zoo.intervene(model, {PATTERN: lambda pattern, sign=sign: pattern + sign * step * direction}):
            ends.append(model(x).logits[0, 1].detach())
    assert float((ends[0] - ends[1]) / (2 * step)) == pytest.approx(slope.item(), rel=1e-6)


def test_an_intervention_takes_effect(model_of: Make, images: Make) -> None:
    model, x = model_of(), images()
    layer, plain = model.stack.layers[1], model(x, output_hidden_states=True)
    with zoo.intervene(model, {PATTERN: torch.zeros_like}), zoo.capture(model, ["stack.layers.1", PATTERN]) as seen:
        changed = model(x, output_attentions=[1])
    before = plain.hidden_states[1] + layer.attention.output.bias
    close(seen["stack.layers.1"], before + layer.feedforward(layer.feedforward_norm(before)))
    assert not seen[PATTERN].any() and not changed.attentions[0].any()
    assert torch.equal(model(x).logits, plain.logits)


def test_every_kind_of_output_can_be_replaced(model_of: Make, images: Make) -> None:
    model, x = model_of(), images()
    for name in ("embedding", "stack.layers.0", "stack.layers.0.attention", "stack.layers.0.feedforward.up", "stack", "head"):
        with zoo.intervene(model, {name: lambda tensor: tensor * 0 + 1}), zoo.capture(model, [name, "head"]) as seen:
            output = model(x)
        assert bool((seen[name] == 1).all()), name
        assert not torch.allclose(output.logits, model(x).logits), name
    with zoo.intervene(model, {"head": torch.zeros_like}):
        assert not model(x).logits.any()


def test_an_intervention_on_a_part_of_the_heads(model_of: Make, images: Make) -> None:
    """A head is knocked out by its pattern; doing the same with the output's weight gives the same."""
    model, x = model_of(), images()

    def without_head_2(pattern: torch.Tensor) -> torch.Tensor:
        return torch.cat([pattern[:, :2], torch.zeros_like(pattern[:, 2:])], 1)

    with zoo.intervene(model, {PATTERN: without_head_2}):
        found = model(x).logits
    with torch.no_grad():
        model.stack.layers[1].attention.output.weight[:, 16:] = 0.0
    close(found, model(x).logits)


def test_contexts_nest_and_captures_see_what_is_changed(model_of: Make, images: Make) -> None:
    model, x, name = model_of(), images(), "stack.layers.0"
    with zoo.capture(model, name) as plain:
        model(x)
    with zoo.capture(model, name) as outside, zoo.intervene(model, {name: lambda t: t * 2}):
        with zoo.intervene(model, {name: lambda t: t + 1}), zoo.capture(model, name) as inside:
            model(x)
        assert torch.equal(inside[name], (plain[name] + 1) * 2) and torch.equal(outside[name], inside[name])
        model(x)
        assert torch.equal(outside[name], plain[name] * 2) and torch.equal(inside[name], (plain[name] + 1) * 2)
    assert hooks(model) == 0


def test_functions_of_one_place_apply_in_order(model_of: Make, images: Make) -> None:
    model, name = model_of(), "stack.layers.0"
    with zoo.capture(model, name) as plain:
        model(images())
    with zoo.intervene(model, {name: lambda t: t + 1, "stack.layers.*": lambda t: t * 2}), zoo.capture(model, name) as seen:
        model(images())
    assert torch.equal(seen[name], (plain[name] + 1) * 2)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda pattern: None, "returned NoneType, expected a tensor"),
        (lambda pattern: pattern[0], r"returned \(3, 17, 17\) of float64, expected \(2, 3, 17, 17\) of float64"),
        (lambda pattern: pattern.float(), r"returned \(.*\) of float32, expected .* of float64"),
    ],
)
def test_a_function_that_returns_something_else_is_an_error(model_of: Make, images: Make, function: Any, words: str) -> None:
    model = model_of()
    with (
        pytest.raises(InputError, match=f"intervene: {PATTERN}: the function {words}"),
        zoo.intervene(model, {PATTERN: function}),
    ):
        model(images())
    assert hooks(model) == 0


@pytest.mark.parametrize("changes", [PATTERN, [PATTERN], {PATTERN: 3}], ids=str)
def test_what_is_no_intervention_is_an_error(model_of: Make, changes: Any) -> None:
    with pytest.raises(InputError, match=r"intervene: .*expected a"):
        zoo.intervene(model_of(), changes).__enter__()


def test_hooks_are_removed_after_an_exception(model_of: Make, images: Make) -> None:
    model = model_of()

    def broken(tensor: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("in the function")

    with pytest.raises(RuntimeError, match="in the function"), zoo.capture(model, "**"), zoo.intervene(model, {"head": broken}):
        model(images())
    assert hooks(model) == 0
    assert model(images()).logits.isfinite().all()


def test_training_with_dropout_of_the_watched_weights(model_of: Make, images: Make) -> None:
    model = model_of({"stack.block.attention.dropout": 1.0}).train()
    with zoo.capture(model, ["**.attention", "**.pattern"]) as seen:
        model(images())
    close(seen[PATTERN].sum(-1), torch.ones(2, 3, 17, dtype=torch.float64))  # as they are before dropout
    bias = model.stack.layers[1].attention.output.bias
    close(seen["stack.layers.1.attention"], bias.expand(2, 17, 24))


def test_gradient_checkpointing_is_no_second_call(model_of: Make, images: Make) -> None:
    model, x = model_of().train(), images()
    with zoo.capture(model, [PATTERN, "stack.layers.0"], calls="all") as plain:
        expected = torch.autograd.grad(model(x).logits.sum(), list(model.parameters()))
    model.gradient_checkpointing()
    with zoo.capture(model, [PATTERN, "stack.layers.0"], calls="all") as seen:
        found = torch.autograd.grad(model(x).logits.sum(), list(model.parameters()))
    assert all(len(calls) == 1 for calls in seen.values())
    close(seen[PATTERN][0], plain[PATTERN][0])
    for a, b in zip(found, expected):
        close(a, b)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_gives_what_a_plain_one_gives(model_of: Make, images: Make, backend: str) -> None:
    torch._dynamo.reset()
    model, x = model_of(), images()
    names = ["embedding", "stack.layers.*", "**.pattern", "**.query", "head"]
    with zoo.capture(model, names) as expected:
        model(x)
    with zoo.intervene(model, {PATTERN: torch.zeros_like}):
        changed = model(x).logits
    compiled = torch.compile(model, fullgraph=True, backend=backend)

    def check() -> None:
        with zoo.capture(compiled, names) as seen:
            compiled(x)
        assert list(seen) == list(expected)
        for name in seen:
            assert torch.equal(seen[name], expected[name]), name
        with zoo.intervene(compiled, {PATTERN: torch.zeros_like}):
            assert torch.equal(compiled(x).logits, changed)

    check()  # before anything was compiled
    close(compiled(x).logits, model(x).logits)
    check()  # when the code is there
    runs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    close(compiled(x).logits, model(x).logits)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == runs  # the compiled code is still good


def test_compiling_inside_the_context(model_of: Make, images: Make) -> None:
    torch._dynamo.reset()
    model, x = model_of(), images()
    with zoo.capture(model, PATTERN) as seen:
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        compiled(x)
    kept = seen[PATTERN]
    compiled(images(1))
    assert seen[PATTERN] is kept and kept.shape[0] == 2  # nothing is written there any more


def test_a_model_can_be_exported_as_before(model_of: Make, images: Make) -> None:
    model, x = model_of(), images()
    exported = torch.export.export(model, (x,))
    close(exported.module()(x).logits, model(x).logits)


def test_names_work_through_wrappers(model_of: Make, images: Make) -> None:
    pytest.importorskip("lightning")
    from zoo.training.module import ZooModule

    model = model_of()
    module = ZooModule(model)
    assert zoo.hook_points(module) == zoo.hook_points(model) == zoo.hook_points(nn.Sequential(model))
    with zoo.capture(module, PATTERN) as seen:
        module(images())
    assert seen[PATTERN].shape == (2, 3, 17, 17)


def test_a_module_of_other_people_has_hook_points_too() -> None:
    other = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    with zoo.capture(other, "0") as seen:
        other(torch.ones(2, 3))
    assert seen["0"].shape == (2, 4) and zoo.hook_points(other) == ["0", "1"]
    with pytest.raises(InputError, match="expected a model, got str"):
        zoo.hook_points("vit-tiny")  # type: ignore[arg-type]
