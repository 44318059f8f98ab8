"""One training step of one device, run on the meta device: what is alive in each phase, and what is sent.

The device's share of the model is what the engine would leave to it; what the engine gathers, frees and sends is counted by
hooks on the model's parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from zoo.inspect.cost import example_inputs
from zoo.model.construct import collection_paused
from zoo.planning.engine import Engine
from zoo.planning.ledger import Ledger
from zoo.planning.precision import forward_pass
from zoo.planning.share import share_of
from zoo.planning.strategy import Strategy


class Settings(NamedTuple):
    """What of a run matters to its memory, beside its model."""

    precision: str
    checkpointing: bool
    tokens: int | None
    gloo: bool
    """Whether processes talk through gloo (on CPUs), which keeps copies of what it sends."""


class Step(NamedTuple):
    """What one device needs in one forward and backward pass."""

    parameters: float
    """Bytes of its share of the weights."""
    gradients: float
    """Bytes of the gradients when the step is over."""
    peaks: dict[str, dict[str, float]]
    """For each phase, the bytes of each kind (`zoo.planning.ledger.KINDS`) when they were the most."""
    traffic: dict[str, float]
    """Bytes that it sends, once for each micro-batch by `gather`, `reduce`, `sum` and `exchange`, and once for each step
    by `average`."""

    def beyond(self, other: Step, times: float) -> Step:
        """What follows if `times` as much as between `other` and this one comes on top of this one."""

        def further(ours: Mapping[str, float], theirs: Mapping[str, float]) -> dict[str, float]:
            return {name: value + times * (value - theirs.get(name, 0)) for name, value in ours.items()}

        return Step(
            self.parameters + times * (self.parameters - other.parameters),
            self.gradients + times * (self.gradients - other.gradients),
            {phase: further(peak, other.peaks[phase]) for phase, peak in self.peaks.items() if phase in other.peaks},
            further(self.traffic, other.traffic),
        )


def simulate(config: Any, strategy: Strategy, settings: Settings, batch: int) -> Step:
    """Runs one step of one device.

    Raises:
        ConfigError: the model cannot be divided as the strategy asks for.
        InputError: the model does not say how large its inputs are.
    """
    with collection_paused():
        model = share_of(config, strategy, settings.precision)
        if settings.checkpointing:
            model.gradient_checkpointing()
        ledger = Ledger([*model.parameters(), *model.buffers()])
        engine = Engine(model, strategy, ledger, settings.precision, settings.gloo)
        inputs = example_inputs(model, batch, settings.tokens)
        with engine.watching(), ledger:
            with forward_pass(settings.precision):
                output = model(**inputs)
                loss = loss_of(output)
            del output
            engine.turn()
            loss.backward()
            engine.end()
        trained = engine.share(each for each in model.parameters() if each.requires_grad)
        peaks: dict[str, dict[str, float]] = {name: dict(peak) for name, peak in ledger.peaks.items()}
        return Step(engine.share(model.parameters()), trained, peaks, dict(engine.traffic))


def loss_of(output: Any) -> Tensor:
    """A loss like that of the tasks, of whatever the model answers."""
    scored = ("logits", "prediction_logits", "seq_relationship_logits", "logits_per_image", "logits_per_text")
    answers = [getattr(output, name, None) for name in scored]
    losses = [_cross_entropy(answer) for answer in answers if answer is not None and answer.ndim > 1]
    names = ("pooler_output", "sentence_embedding", "start_logits", "image_embeds", "text_embeds", "last_hidden_state")
    found = (getattr(output, name, None) for name in names)
    losses = losses or [next(answer for answer in found if answer is not None).float().square().mean()]
    router = getattr(output, "router_loss", None)
    return torch.stack(losses).sum() + (0 if router is None else router)


def _cross_entropy(scores: Tensor) -> Tensor:
    targets = torch.zeros(scores[..., 0].numel(), dtype=torch.int64, device=scores.device)
    return functional.cross_entropy(scores.flatten(0, -2).float(), targets)


__all__ = ["Settings", "Step", "loss_of", "simulate"]
