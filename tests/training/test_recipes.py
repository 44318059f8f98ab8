"""Recipes: schedules, decay by layer, frozen parts, fine-tuning, checkpointing, compiling; each through the run's config."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import resource
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay

import zoo
from zoo.errors import ConfigError, ZooError
from zoo.training.module import ZooModule, freeze
from zoo.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from zoo.training.run import train

RUN = "vit-tiny-digits"
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def rates(schedule: str, steps: int = 50, **fields: Any) -> list[list[float]]:
    """The learning rate of each group before each step, and after the last."""
    config = OptimizerConfig(lr=1.0, schedule=schedule, **fields)  # type: ignore[arg-type]
    optimizer = make_optimizer(zoo.build("vit-tiny", {"stack.depth": 2}), config)
    schedule_ = make_schedule(optimizer, config, steps)
    found = [[group["lr"] for group in optimizer.param_groups]]
    for step in range(1, steps + 1):
        optimizer.step()
        schedule_.step_update(step) if hasattr(schedule_, "step_update") else schedule_.step()
        found.append([group["lr"] for group in optimizer.param_groups])
    return found


@pytest.mark.parametrize("schedule", ["cosine", "linear", "one-cycle", "constant"])
def test_the_learning_rate_rises_and_falls(schedule: str) -> None:
    first = [row[0] for row in rates(schedule, warmup=0.2, final_lr=0.1)]
    assert max(first) == pytest.approx(1.0, rel=0.01)
    top = first.index(max(first))
    assert 9 <= top <= 10
    assert first[: top + 1] == sorted(first[: top + 1])
    assert first[top:] == sorted(first[top:], reverse=True)
    assert first[-1] == pytest.approx(1.0 if schedule == "constant" else 0.1, rel=0.02)


def test_a_cosine_is_a_cosine_and_a_line_a_line() -> None:
    cosine, line = ([row[0] for row in rates(name, 10)] for name in ("cosine", "linear"))
    assert cosine[5] == pytest.approx(0.5) and cosine[2] == pytest.approx((1 + 0.80901699) / 2)
    assert line == pytest.approx([1.0 - step / 10 for step in range(11)])


@pytest.mark.parametrize("schedule", ["cosine", "linear", "one-cycle", "constant"])
def test_decay_by_layer_scales_the_whole_schedule(schedule: str) -> None:
    for row in rates(schedule, 20, warmup=0.2, final_lr=0.1, layer_decay=0.5):
        assert row[0] == pytest.approx(row[-1] * 0.5**3)  # the embedding under two layers under the head


def test_groups_are_those_of_timm() -> None:
    reference = timm.create_model("vit_tiny_patch16_224", depth=3)
    theirs = param_groups_layer_decay(reference, 0.05, reference.no_weight_decay(), layer_decay=0.7)
    model = zoo.build("vit-tiny", {"stack.depth": 3})
    ours = make_optimizer(model, OptimizerConfig(layer_decay=0.7, weight_decay=0.05)).param_groups

    def sizes(groups: Any) -> dict[tuple[float, float], int]:
        return {(round(g["lr_scale"], 9), g["weight_decay"]): sum(p.numel() for p in g["params"]) for g in groups}

    assert sizes(ours) == sizes(theirs)


def test_everything_frozen_is_an_error() -> None:
    module = ZooModule(zoo.build("vit-tiny", {"stack.depth": 1}), frozen=["**"])
    with pytest.raises(ConfigError, match="nothing is trained"):
        make_optimizer(module.model, OptimizerConfig())


def test_a_pattern_of_no_parameter_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"frozen: 'embeding' names no part or parameter; did you mean 'embedding'"):
        freeze(zoo.build("vit-tiny", {"stack.depth": 1}), ["embeding"])
    with pytest.raises(ConfigError, match="frozen: expected a list of patterns"):
        ZooModule("vit-tiny", frozen="embedding")


def test_fine_tuning_keeps_what_is_frozen_and_reports_the_new_head(finished: Any, small: dict[str, Any], capfd: Any) -> None:
    before = zoo.load(finished.folder / "model").state_dict()
    fine = {
        **small,
        "weights": str(finished.folder / "model"),
        "frozen": ["embedding", "stack.layers.0.attention"],
        "model.head.bias": False,
        "averaging": None,
    }
    result = train(RUN, fine)
    after = zoo.load(result.folder / "model").state_dict()
    for name in before.keys() & after.keys():
        frozen = name.startswith(("embedding.", "stack.layers.0.attention."))
        assert torch.equal(before[name], after[name]) == frozen, name
    assert "ignored" in capfd.readouterr().err  # the old head's bias, in the report of what was loaded


def test_a_head_for_other_classes_is_drawn_afresh_and_reported(finished: Any, small: dict[str, Any]) -> None:
    start = zoo.load(finished.folder / "model", {"head.classes": 7})
    zoo.save(start, Path(small["folder"]) / "seven")
    fine = {**small, "weights": str(Path(small["folder"]) / "seven"), "frozen": ["stack"]}
    module = ZooModule.from_run(RUN, fine)
    fresh = {entry.name for entry in module.model.load_report.of("re-initialised")}
    assert fresh == {"head.output.weight", "head.output.bias"}
    assert not module.model.stack.final_norm.weight.requires_grad


def test_weights_of_another_model_are_refused(finished: Any, small: dict[str, Any]) -> None:
    with pytest.raises(ZooError, match=r"stack\.width is 32 there, 48 here"):
        ZooModule.from_run(RUN, {**small, "model.stack.width": 48, "weights": str(finished.folder / "model")})


def gradients(model: Any, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)  # dropout draws the same
    model.zero_grad()
    model(pixels).logits.square().mean().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_activation_checkpointing_gives_equal_gradients() -> None:
    drop = {"stack.depth": 3, "stack.drop_path": 0.2, "stack.block.dropout": 0.1, "stack.block.attention.dropout": 0.1}
    torch.manual_seed(0)
    model = zoo.build("vit-tiny", {**drop, "embedding.image_size": 32}, dtype="float64")
    pixels = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    plain = gradients(model, pixels)
    module = ZooModule(model)
    module.model.gradient_checkpointing()
    for name, gradient in gradients(module.model, pixels).items():
        assert float((gradient - plain[name]).abs().max()) <= 1e-10, name


def _peak(checkpointing: bool, answers: Any) -> None:
    model = zoo.build("vit-tiny", {"head.classes": 10})
    model.gradient_checkpointing(checkpointing)
    model(torch.randn(1, 3, 224, 224)).logits.mean().backward()  # what is imported and allocated once
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model(torch.randn(16, 3, 224, 224)).logits.mean().backward()
    answers.put((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


@pytest.mark.slow
def test_activation_checkpointing_needs_less_memory() -> None:
    processes = multiprocessing.get_context("forkserver")
    peaks = []
    for checkpointing in (False, True):
        answers = processes.SimpleQueue()
        process = processes.Process(target=_peak, args=(checkpointing, answers))
        process.start()
        peaks.append(answers.get())
        process.join()
    assert peaks[1] < 0.5 * peaks[0], peaks  # seen: see docs/training.md


def test_activation_checkpointing_in_a_run(small: dict[str, Any], tmp_path: Path) -> None:
    ends = []
    for checkpointing in (False, True):
        folder = str(tmp_path / str(checkpointing))
        result = train(RUN, {**small, "folder": folder, "activation_checkpointing": checkpointing}, progress=False)
        ends.append(zoo.load(result.folder / "model").state_dict())
    for name, value in ends[0].items():
        assert torch.allclose(value, ends[1][name], atol=1e-5), name


@pytest.mark.parametrize(
    "recipe",
    [
        {"optimizer.name": "lamb", "optimizer.layer_decay": 0.8, "optimizer.schedule": "one-cycle"},
        {"trainer.accumulate_grad_batches": 2, "trainer.gradient_clip_val": 0.5, "averaging": 0.9, "save_every": 2},
        {"trainer.precision": "bf16-mixed", "task.label_smoothing": 0.1, "optimizer.name": "adamw"},
    ],
    ids=["lamb", "accumulated", "bfloat16"],
)
def test_recipes_run(recipe: dict[str, Any], small: dict[str, Any]) -> None:
    result = train(RUN, {**small, **recipe}, progress=False)
    assert result.metrics["train_loss"] > 0
    steps = 2 if "trainer.accumulate_grad_batches" in recipe else 1
    assert result.metrics["steps"] == 2 * -(-5 // steps)
    assert "lr-AdamW" not in json.dumps(result.metrics)


def test_accumulated_batches_are_one_large_batch(small: dict[str, Any], tmp_path: Path) -> None:
    plain = {"averaging": None, "trainer.max_epochs": 1, "optimizer": {"name": "sgd", "lr": 0.1}}
    still = {f"data.{name}": 0.0 for name in ("shift", "rotation", "zoom", "shear", "validation")}
    ends = []
    for size, batches, steps in ((128, 1, 2), (64, 2, 2)):
        change = {"data.batch_size": size, "trainer.accumulate_grad_batches": batches}
        change["trainer.limit_train_batches"] = steps * batches
        result = train(RUN, {**small, **plain, **still, **change, "folder": str(tmp_path / str(size))}, progress=False)
        ends.append(zoo.load(result.folder / "model").state_dict())
    for name, value in ends[0].items():
        assert torch.allclose(value, ends[1][name], atol=1e-6), name


def test_the_average_is_what_is_saved(small: dict[str, Any]) -> None:
    result = train(RUN, {**small, "averaging": 0.5}, progress=False)
    content = torch.load(result.folder / "last.ckpt", weights_only=True)
    saved = zoo.load(result.folder / "model").state_dict()
    for name, value in saved.items():
        assert torch.equal(value, content["state_dict"][f"model.{name}"]), name
    trained = content["current_model_state"]
    assert any(not torch.equal(value, trained[f"model.{name}"]) for name, value in saved.items())


@pytest.mark.slow
def test_a_compiled_run(small: dict[str, Any], tmp_path: Path) -> None:
    plain = {**small, "averaging": None, "optimizer.name": "adamw"}
    ends = []
    for compiled in (False, True):
        result = train(RUN, {**plain, "compile": compiled, "folder": str(tmp_path / str(compiled))}, progress=False)
        ends.append(zoo.load(result.folder / "model").state_dict())
    for name, value in ends[0].items():
        assert torch.allclose(value, ends[1][name], atol=1e-3), name


def test_weights_that_are_no_numbers_are_not_saved(small: dict[str, Any]) -> None:
    module = ZooModule("vit-tiny")
    state = copy.deepcopy(module.model.config.plain())
    with torch.no_grad():
        next(module.model.parameters()).view(-1)[0] = float("nan")
    with pytest.raises(ZooError, match=r"embedding\.\S+ is not finite any more: lower optimizer\.lr"):
        module.on_save_checkpoint({})
    assert module.model.config.plain() == state


def _example(name: str, *words: str, folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(EXAMPLES / name), *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def test_a_lightning_script_of_ones_own(tmp_path: Path) -> None:
    said = _example("lightning_script.py", "2", folder=tmp_path)
    assert "accuracy on the test part: 0." in said and "best.ckpt: " in said


def test_lightnings_own_command_line(tmp_path: Path) -> None:
    pytest.importorskip("jsonargparse")
    config = str(EXAMPLES / "lightning_cli.yaml")
    _example("lightning_cli.py", "fit", "--config", config, "--trainer.max_epochs", "1", folder=tmp_path)
    (checkpoint,) = tmp_path.glob("lightning_logs/*/checkpoints/*.ckpt")
    assert zoo.load(checkpoint).config.head.classes == 10


def test_low_rank_adapters(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    pytest.importorskip("peft")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lora.py", "1"])
    runpy.run_path(str(EXAMPLES / "lora.py"), run_name="__main__")
    said = capsys.readouterr().out
    difference = float(said.partition("largest difference of a logit is ")[2].split()[0])
    assert difference <= 1e-5
    assert "LoRA: 51,082 of 947,540 parameters are trained" in said
    assert "trained on 0 to 4" in said
