"""Plans: against formulas, against the same step on real tensors, and (slow) against the memory of real trainings."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

import zoo
from tests.planning.measure import CASES, measured, planned
from zoo.cli import main
from zoo.config.resolve import resolve
from zoo.errors import ConfigError, InputError, UnknownNameError
from zoo.inspect.cost import example_inputs
from zoo.planning.ledger import Ledger
from zoo.planning.plan import _shortened, read_memory, scaled
from zoo.planning.step import Settings, loss_of, simulate
from zoo.planning.strategy import Strategy, all_strategies, read_strategy

WIDTH, DEPTH, TOKENS = 64, 12, 128
TEXT = {
    "embedding": {"vocabulary": 500, "dropout": 0.0},
    "stack": {"width": WIDTH, "depth": DEPTH, "block": {"attention": {"heads": 4, "dropout": 0.0}, "dropout": 0.0}},
}
EXPERTS = {"type": "mixture-of-experts", "experts": 8, "top_k": 2, "expert": {"type": "mlp", "hidden": 96, "bias": False}}
APART = Strategy("fsdp", 4, expert=2)
SPARSE = {**TEXT, "stack.block.feedforward": EXPERTS}
IMAGE = {"stack": {"width": 64, "depth": 3, "block": {"attention": {"heads": 4}}}, "head": {"classes": 10}}


def settings(precision: str = "32-true", checkpointing: bool = False, tokens: int | None = TOKENS) -> Settings:
    return Settings(precision, checkpointing, tokens, gloo=False)


def total(peaks: dict[str, dict[str, float]]) -> dict[str, float]:
    return {phase: sum(peak.values()) for phase, peak in peaks.items()}


@pytest.mark.parametrize(("checkpointing", "expected"), [(False, 32), (True, 2)])
def test_activations_are_those_of_the_formula(checkpointing: bool, expected: int) -> None:
    """Korthikanti et al. 2022, table 2, with neither attention weights nor dropout masks: bytes for each token and channel."""
    short = _shortened(resolve("gpt2", TEXT))
    assert short is not None
    few, more = (simulate(each, Strategy("single"), settings("bf16-true", checkpointing), 3) for each in short[:2])
    layer = more.peaks["loss"]["activations"] - few.peaks["loss"]["activations"]
    assert layer / (3 * TOKENS * WIDTH) == pytest.approx(expected, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [Strategy("single"), Strategy("fsdp", 4), Strategy("fsdp x tensor", 2, 2), APART])
@pytest.mark.parametrize(("precision", "checkpointing"), [("32-true", False), ("bf16-mixed", True)])
def test_a_few_layers_tell_of_all(strategy: Strategy, precision: str, checkpointing: bool) -> None:
    config = resolve("gpt2", SPARSE if strategy.expert > 1 else TEXT)
    whole = simulate(config, strategy, settings(precision, checkpointing), 2)
    few, more, times = _shortened(config) or pytest.fail("it is long enough")
    found = simulate(more, strategy, settings(precision, checkpointing), 2)
    found = found.beyond(simulate(few, strategy, settings(precision, checkpointing), 2), times)
    assert found.parameters == whole.parameters and found.gradients == whole.gradients
    assert found.traffic == pytest.approx(whole.traffic, rel=1e-6)
    assert max(total(found.peaks).values()) == pytest.approx(max(total(whole.peaks).values()), rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "change"), [("gpt2", {**TEXT, "stack.depth": 3}), ("vit-tiny", IMAGE)])
@pytest.mark.parametrize(("precision", "checkpointing"), [("32-true", False), ("32-true", True), ("bf16-mixed", False)])
def test_the_same_step_on_real_tensors(name: str, change: dict[str, Any], precision: str, checkpointing: bool) -> None:
    """Operator for operator, on the CPU instead of the meta device."""
    tokens = TOKENS if name == "gpt2" else None
    found = simulate(resolve(name, change), Strategy("single"), settings(precision, checkpointing, tokens), 4)
    model = zoo.build(name, change)
    if checkpointing:
        model.gradient_checkpointing()
    inputs = {key: torch.zeros_like(value, device="cpu") for key, value in example_inputs(model, 4, tokens).items()}
    ledger = Ledger([*model.parameters(), *model.buffers()])
    with ledger:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            loss = loss_of(model(**inputs))
        ledger.enter("loss")
        loss.backward()
    chosen = 4 * TOKENS * WIDTH * 4 if name == "gpt2" else 0  # the copy of the tokens that a task has scored
    kept = found.peaks["forward"]["activations"] - chosen
    assert kept == pytest.approx(ledger.peaks["forward"]["activations"], rel=0.02)
    backward = max(size for phase, size in total(found.peaks).items() if phase != "forward")
    assert backward == pytest.approx(sum(ledger.peaks["loss"].values()), rel=0.02)


def test_states_and_shares() -> None:
    number = zoo.plan("gpt2", TEXT, batch=1, tokens=8).parameters
    for strategy, among in (("single", 1), ("ddp", 1), ("fsdp", 4)):
        estimate = zoo.plan("gpt2", TEXT, devices=1 if strategy == "single" else 4, strategy=strategy, batch=4).estimates[0]
        assert estimate.memory is not None and estimate.fits
        assert (estimate.memory.parameters, estimate.memory.optimizer) == (4 * number / among, 8 * number / among)
    half = zoo.plan("gpt2", TEXT, precision="bf16-true", batch=1).estimates[0].memory
    assert half is not None and (half.parameters, half.optimizer) == (2 * number, 4 * number)
    momentum = zoo.plan("gpt2", TEXT, optimizer="sgd", batch=1).estimates[0].memory
    assert momentum is not None and momentum.optimizer == 4 * number


def test_communication() -> None:
    """Data parallel sends every gradient about twice, fully sharded weights twice and gradients once."""
    whole = 4 * zoo.plan("gpt2", TEXT, batch=1, tokens=8).parameters
    outside = whole - 4 * DEPTH * sum(p.numel() for p in zoo.build("gpt2", TEXT, device="meta").stack.layers[0].parameters())
    options: dict[str, Any] = {"devices": 4, "batch": 16, "tokens": TOKENS}
    ddp, fsdp, tensor = zoo.plan("gpt2", TEXT, strategy=["ddp", "fsdp", "tensor"], **options).estimates
    assert ddp.communication == {"average": pytest.approx(2 * 3 / 4 * whole)}
    assert fsdp.accumulate == 1 and fsdp.communication["reduce"] == pytest.approx(3 / 4 * whole, rel=1e-5)
    assert fsdp.communication["gather"] == pytest.approx(3 / 4 * (2 * whole - outside), rel=1e-5)
    sums = 2 + 4  # behind attention and feed-forward; backward, in front of query, key, value and the feed-forward
    assert tensor.communication == {"sum": pytest.approx(DEPTH * sums * 2 * 3 / 4 * 16 * TOKENS * WIDTH * 4)}


def test_experts_are_divided() -> None:
    """Among 4 devices of which each has others, or two the same ones, or which work on one batch."""
    whole = 4 * zoo.plan("gpt2", SPARSE, batch=1, tokens=8).parameters
    experts = 4 * DEPTH * EXPERTS["experts"] * 2 * WIDTH * 96
    kept, rest = experts / 4, whole - experts
    options: dict[str, Any] = {"devices": 4, "batch": 16, "tokens": TOKENS}
    strategies = [{"data": 4, "expert": 4}, {"data": 4, "expert": 2}, {"tensor": 4}]
    four, two, tensor = zoo.plan("gpt2", SPARSE, strategy=strategies, **options).estimates
    rows = 2 * TOKENS * WIDTH * 4  # of one text, two for each token, in float32
    for each, among, sent in ((four, 1, 3 / 4), (two, 2, 1 / 2)):
        assert each.memory is not None and each.memory.parameters == whole / 4 and each.memory.optimizer == whole / 2
        # there and back, forward and backward
        assert each.communication["exchange"] == pytest.approx(DEPTH * 4 * sent * 4 * rows)
        scattered = 3 / 4 * rest + (among - 1) / among * experts / each.strategy.expert
        assert each.communication["reduce"] == pytest.approx(scattered, rel=1e-5)
    assert tensor.memory is not None and kept < tensor.memory.parameters < kept + rest
    of_attention = (1 + 3) * 16 * TOKENS * WIDTH * 4
    assert tensor.communication == {"sum": pytest.approx(2 * 3 / 4 * DEPTH * (of_attention + 2 * 16 * rows))}
    momentum = zoo.plan("gpt2", SPARSE, strategy=strategies[1], optimizer="sgd", **options).estimates[0]
    assert momentum.memory is not None and momentum.memory.optimizer == whole / 4
    assert [each.label for each in all_strategies(4, 6)] == ["ddp", "fsdp", "fsdp, expert 2", "fsdp 2 x tensor 2", "tensor"]


def test_numbers_of_heads_are_divided() -> None:
    change = {**TEXT, "stack.depth": 2, "stack.block.attention.position": "alibi"}
    assert zoo.plan("gpt2", change, devices=2, strategy="tensor", batch=2, tokens=16).fits


@pytest.mark.parametrize("strategy", ["single", "fsdp"])
def test_the_largest_micro_batch_is_the_largest(strategy: str) -> None:
    options: dict[str, Any] = {"devices": 1 if strategy == "single" else 2, "strategy": strategy, "tokens": TOKENS}
    largest = zoo.plan("gpt2", TEXT, memory="60MB", **options).estimates[0]
    assert largest.largest > 3 and largest.memory is not None and largest.memory.total <= 60e6
    more = (largest.largest + 1) * options["devices"]
    next_one = zoo.plan("gpt2", TEXT, memory="1GB", batch=more, **options).estimates[0]
    assert next_one.micro_batch == largest.largest + 1 and next_one.memory is not None and next_one.memory.total > 60e6
    divided = zoo.plan("gpt2", TEXT, memory="60MB", batch=60 * options["devices"], **options).estimates[0]
    assert divided.micro_batch <= largest.largest and divided.micro_batch * divided.accumulate == 60


def test_what_does_not_fit_says_why() -> None:
    reasons = {each.strategy.label: each.reason for each in zoo.plan("gpt2", TEXT, devices=8, memory="8MB").estimates}
    assert set(reasons) == {"ddp", "fsdp", "fsdp 4 x tensor 2", "fsdp 2 x tensor 4", "tensor"}
    assert re.fullmatch(r"weights and optimiser states alone take [\d.]+ MB of 8.00 MB", reasons["ddp"])
    assert reasons["tensor"] == "stack.layers.0.attention.heads: 4 cannot be divided evenly among 8 processes"
    assert not zoo.plan("gpt2", TEXT, devices=8, memory="8MB").fits


@pytest.mark.slow
def test_all_families_can_be_planned() -> None:
    for name in ("t5-small", "clip-vit-b32", "swin-tiny"):
        found = zoo.plan(name, memory="80GB", batch=2, checkpointing=True, precision="bf16-mixed")
        assert found.fits and found.estimates[0].micro_batch == 2, name


@pytest.mark.slow
def test_the_largest_model_takes_seconds() -> None:
    start = time.process_time()
    found = zoo.plan("palm-540b", devices=1024, batch=1024, tokens=2048, precision="bf16-true", checkpointing=True)
    assert time.process_time() - start < 10
    assert found.parameters == 540_356_474_880 and [each.strategy.label for each in found.estimates if each.fits] == ["fsdp"]


def test_strategies_are_spelled_as_the_trainer_does() -> None:
    assert read_strategy("{type: model-parallel, tensor: 2}", 8) == Strategy("fsdp x tensor", 4, 2)
    assert read_strategy("model-parallel", 8) == read_strategy("fsdp", 8) == Strategy("fsdp", 8)
    assert read_strategy("auto", 1) == Strategy("single")
    for each in all_strategies(8, 4):
        assert read_strategy(each.trainer, 8) == each
    with pytest.raises(ConfigError, match="data 3 x tensor 2 are 6 processes, and not 8"):
        read_strategy({"type": "model-parallel", "data": 3, "tensor": 2}, 8)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"devices": 2, "strategy": "fdsp"}, UnknownNameError, "unknown strategy 'fdsp'; did you mean 'fsdp'?"),
        ({"devices": 2, "strategy": "single"}, ConfigError, "strategy: 'single' uses one device, and there are 2"),
        ({"strategy": "ddp"}, ConfigError, "strategy: 'ddp' needs 2 devices or more"),
        ({"memory": "80"}, InputError, "memory: '80' has no unit; did you mean '80GB'?"),
        ({"memory": "80GP"}, InputError, "memory: unknown unit 'GP'"),
        ({"memory": "much"}, InputError, "memory: 'much' is no size"),
        ({"devices": 4, "batch": 6, "strategy": "ddp"}, ConfigError, "batch: 6 examples cannot be divided evenly among 4"),
        ({"precision": "bf16"}, UnknownNameError, "unknown precision 'bf16'; did you mean 'bf16-"),
        ({"optimizer": "adamwx"}, ConfigError, "did you mean 'adamw'"),
        ({"devices": 0}, InputError, "devices: expected 1 or more, got 0"),
    ],
)
def test_mistakes_are_one_line(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        zoo.plan("gpt2", TEXT, **options)
    assert message in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_sizes() -> None:
    assert [read_memory(text) for text in ("80GB", "80 gb", "1.5TiB", "512MiB")] == [8 * 10**10] * 2 + [3 * 2**39, 2**29]
    assert [scaled(size) for size in (12, 1234, 99_960_000, 2.5e12, 4e15)] == [
        "12 B",
        "1.23 kB",
        "100 MB",
        "2.50 TB",
        "4000 TB",
    ]


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "vit-tiny", "stack.depth=3", "--devices", "2", "--memory", "1GB", "--batch", "8"]
    run: Callable[[list[str]], Any] = main
    with pytest.raises(SystemExit) as ended:
        run(words)
    text = capsys.readouterr().out
    assert not ended.value.code and "largest that fits" in text
    assert "tensor does not fit: stack.layers.0.attention.heads: 3 cannot be divided evenly among 2 processes" in text
    with pytest.raises(SystemExit) as ended:
        run([*words, "--json", "--strategy", "fsdp"])
    found = json.loads(capsys.readouterr().out)
    assert not ended.value.code and found["fits"] and found["estimates"][0]["strategy"] == "fsdp"
    assert found["estimates"][0]["trainer"] == {"type": "model-parallel", "data": 2, "tensor": 1}
    with pytest.raises(SystemExit) as ended:
        run(["plan", "vit-tinny"])
    assert ended.value.code == 1 and capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
@pytest.mark.parametrize("case", CASES)
def test_the_memory_of_real_trainings(case: str) -> None:
    pytest.importorskip("lightning")
    assert planned(CASES[case]).memory.total == pytest.approx(measured(CASES[case]), rel=0.1)
