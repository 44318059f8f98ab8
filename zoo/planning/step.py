"""One training step of one device, run on the meta device: what is alive in each phase, and what is sent.

The device's share of the model is what the engine would leave to it. Tensor parallelism cuts the linear layers as the
parts' `sharding` says; what FSDP2 gathers and frees, and when, is counted by hooks on the blocks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.errors import ConfigError
from zoo.inspect.cost import example_inputs, type_of
from zoo.model.construct import collection_paused, on_meta
from zoo.planning.ledger import Ledger
from zoo.planning.precision import computed_again, forward_pass
from zoo.planning.strategy import Strategy

SCORED = {"language-model": 1.0, "masked-language-model": 0.15}
"""Which share of the tokens is scored in training, for heads that score only those which are guessed."""


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
    largest: float
    """Bytes of its largest parameter."""
    peaks: dict[str, dict[str, float]]
    """For each phase, the bytes of each kind (`zoo.planning.ledger.KINDS`) when they were the most."""
    traffic: dict[str, float]
    """Bytes that it sends, by `gather`, `reduce` (once for each micro-batch) and `average` (once for each step)."""

    def beyond(self, other: Step, times: float) -> Step:
        """What follows if `times` as much as between `other` and this one comes on top of this one."""

        def further(ours: Mapping[str, float], theirs: Mapping[str, float]) -> dict[str, float]:
            return {name: value + times * (value - theirs.get(name, 0)) for name, value in ours.items()}

        return Step(
            self.parameters + times * (self.parameters - other.parameters),
            self.gradients + times * (self.gradients - other.gradients),
            self.largest,
            {phase: further(peak, other.peaks[phase]) for phase, peak in self.peaks.items() if phase in other.peaks},
            further(self.traffic, other.traffic),
        )


def share_of(config: Any, strategy: Strategy, precision: str) -> Any:
    """The part of a model that one device of a tensor-parallel group holds, on the meta device and in train mode.

    Raises:
        ConfigError: the model cannot be divided among so many devices.
    """
    from zoo.training.sharding import misfits

    model = on_meta(config)
    for problem in misfits(model, strategy.tensor):
        raise ConfigError(problem)
    for part in model.modules() if strategy.tensor > 1 else ():
        for name, way in getattr(type(part), "sharding", {}).items():
            layer = getattr(part, name, None)
            if isinstance(layer, nn.Linear) and way in ("column", "row"):
                _cut(layer, way, strategy.tensor)
            elif way == "heads" and layer is not None:
                own = torch.empty(*layer.shape[:-1], layer.shape[-1] // strategy.tensor, device="meta")
                setattr(part, name, nn.Parameter(own, layer.requires_grad))
            elif way == "experts":
                raise ConfigError("experts that are divided among processes are not counted yet; use ddp or fsdp")
    return model.to(torch.bfloat16 if precision == "bf16-true" else torch.float32).train()


def _cut(layer: nn.Linear, way: str, among: int) -> None:
    rows, columns = layer.weight.shape
    if way == "column":
        layer.out_features = rows = rows // among
        if layer.bias is not None:
            layer.bias = nn.Parameter(layer.bias[:rows], layer.bias.requires_grad)
    else:
        layer.in_features = columns = columns // among
    layer.weight = nn.Parameter(torch.empty(rows, columns, dtype=layer.weight.dtype, device="meta"), layer.weight.requires_grad)


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
        engine = _Engine(model, strategy, ledger, settings)
        inputs = example_inputs(model, batch, settings.tokens)
        with engine.watching(), ledger:
            with forward_pass(settings.precision):
                output = model(**inputs)
                loss = loss_of(output)
            del output
            engine.turn()
            loss.backward()
            engine.end()
        return engine.result()


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


class _Engine:
    """What an engine adds to a step: FSDP2's gathering, DDP's buckets, tensor parallelism's sums."""

    def __init__(self, model: Any, strategy: Strategy, ledger: Ledger, settings: Settings) -> None:
        self.model, self.strategy, self.ledger = model, strategy, ledger
        self.gloo, self.precision = settings.gloo, settings.precision
        self.again = ExitStack()
        self.sizes: dict[nn.Module, int] = {}
        self.blocks: list[nn.Module] = []
        self.gathered: set[nn.Module] = set()
        self.waiting: dict[nn.Module, int] = {}
        self.order: list[nn.Module] = []
        self.backward = False
        self.prefetched: nn.Module | None = None
        self.sending = self.left = 0
        self.traffic: Counter[str] = Counter()
        self.unsharded_gradients = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within it the model's passes are followed."""
        handles, owned = [], set()
        for part in self.model.modules():
            if getattr(getattr(type(part), "Config", None), "kind", "") == "block":
                self.blocks.append(part)
                own = list(part.parameters())
                owned |= set(map(id, own))
                self.sizes[part], self.waiting[part] = _bytes(own), sum(each.requires_grad for each in own)
                handles += [
                    part.register_forward_pre_hook(self._before),
                    part.register_forward_hook(self._after, always_call=True),
                ]
                handles += [
                    each.register_post_accumulate_grad_hook(self._accumulated(part)) for each in own if each.requires_grad
                ]
            elif getattr(getattr(type(part), "Config", None), "kind", "") == "head" and self._scored(part) is not None:
                handles.append(part.register_forward_pre_hook(self._chosen))
            if self.strategy.tensor > 1:
                handles += self._sums(part)
        rest = [each for each in self.model.parameters() if id(each) not in owned]
        handles += [each.register_post_accumulate_grad_hook(self._accumulated(None)) for each in rest if each.requires_grad]
        self.sizes[self.model] = _bytes(rest)
        self._start()
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def turn(self) -> None:
        """The forward pass is over: gradients of the step before, which were held until now, are freed."""
        self.backward = True
        self.ledger.add("gradients", -self.left)
        self.ledger.add("buffers", -self.sending)
        self.sending = 0
        self.ledger.enter("loss")

    def end(self) -> None:
        """The backward pass is over."""
        fully = self.strategy.sharded > 1
        if fully:
            for block in self.blocks:
                self._reduced(block)  # one of which a parameter was not used
            self._reduced(self.model)
        if self.strategy.name == "ddp":
            self.traffic["average"] += round(2 * self._ring() * self.unsharded_gradients)

    def result(self) -> Step:
        model, among = self.model, self.strategy.sharded
        total = _bytes(model.parameters())
        trained = _bytes(each for each in model.parameters() if each.requires_grad)
        largest = max(_bytes([each]) for each in model.parameters()) / among
        peaks: dict[str, dict[str, float]] = {name: dict(peak) for name, peak in self.ledger.peaks.items()}
        return Step(total / among, trained / among, largest, peaks, dict(self.traffic))

    def _start(self) -> None:
        """What lies there when a step begins, from the second one on."""
        among = self.strategy.sharded
        trained = _bytes(each for each in self.model.parameters() if each.requires_grad)
        self.left = trained // among
        self.ledger.add("gradients", self.left)
        if self.strategy.name == "ddp":
            self.ledger.add("buffers", trained)  # the buckets
        if among > 1:
            self._gather(self.model)

    def _ring(self) -> float:
        return (self.strategy.data - 1) / self.strategy.data

    def _gather(self, group: nn.Module) -> None:
        """An all-gather, and the copy of what came into the parameters; in the forward pass the first is kept a while."""
        if group in self.gathered:
            return
        size = self.sizes[group]
        self.gathered.add(group)
        self.traffic["gather"] += round(self._ring() * size)
        self.ledger.add("buffers", size * (2 if self.gloo else 1))
        if self.gloo:
            self.ledger.add("buffers", -size)
        if not self.backward:
            self.ledger.add("buffers", -self.sending)
            self.sending = size
        self.ledger.add("buffers", size)
        if self.backward:
            self.ledger.add("buffers", -size)

    def _before(self, block: nn.Module, inputs: Any) -> None:
        if self.backward:  # a checkpointed block is computed again; `backward` was called without the modes
            self.again.enter_context(computed_again(self.precision))
            return
        self.order.append(block)
        if self.strategy.sharded > 1:
            self._gather(block)

    def _after(self, block: nn.Module, inputs: Any, output: Any) -> None:
        if self.backward:
            self.again.close()
            return
        if self.strategy.sharded > 1:
            self._free(block)
        first = output[0] if isinstance(output, tuple) else output
        if first.requires_grad:
            first.register_hook(lambda gradient: self._begin(block))

    def _begin(self, block: nn.Module) -> None:
        """The backward pass comes to a block."""
        place, last = len(self.order) - 1 - self.order.index(block), len(self.order) - 1
        names = {0: "first block", 1: "second block", last - 1: "last block but one", last: "last block"}
        self.ledger.enter(names.get(place, "blocks between"))
        if self.strategy.sharded == 1:
            return
        if self.prefetched is block:  # its all-gather is over, and the copy follows
            self.ledger.add("buffers", self.sizes[block])
            self.ledger.add("buffers", -self.sizes[block])
            self.prefetched = None
        else:
            self._gather(block)
        if place < last:
            self.prefetched = self.order[last - place - 1]
            size = self.sizes[self.prefetched]
            if self.prefetched not in self.gathered:
                self.gathered.add(self.prefetched)
                self.traffic["gather"] += round(self._ring() * size)
                self.ledger.add("buffers", size * (2 if self.gloo else 1))
                self.ledger.add("buffers", -size if self.gloo else 0)

    def _accumulated(self, block: nn.Module | None) -> Any:
        def hook(parameter: Tensor) -> None:
            assert parameter.grad is not None
            self.ledger.is_gradient(parameter.grad)
            self.unsharded_gradients += _bytes([parameter])
            if block is not None and self.strategy.sharded > 1:
                self.waiting[block] -= 1
                if self.waiting[block] == 0:
                    self._reduced(block)

        return hook

    def _reduced(self, group: nn.Module) -> None:
        """A reduce-scatter of a block's gradients, or of those of all that is in no block."""
        if group not in self.gathered:
            return
        inside = set() if group is not self.model else {id(each) for block in self.blocks for each in block.parameters()}
        own = [each for each in group.parameters() if each.grad is not None and id(each) not in inside]
        size = _bytes(own)
        self._free(group)
        self.ledger.add("buffers", -self.sending)  # what the block before sent
        self.ledger.add("buffers", size)
        for each in own:
            each.grad = None
        self.ledger.add("gradients", size // self.strategy.data)
        if self.gloo:
            self.ledger.add("buffers", size)
            self.ledger.add("buffers", -size)
        self.traffic["reduce"] += round(self._ring() * size)
        self.sending = size

    def _free(self, group: nn.Module) -> None:
        if group in self.gathered:
            self.gathered.discard(group)
            self.ledger.add("buffers", -self.sizes[group])

    def _scored(self, head: nn.Module) -> float | None:
        return SCORED.get(type_of(head))

    def _chosen(self, head: Any, inputs: Any) -> Any:
        x = inputs[0]
        return (x[:, : math.ceil((self._scored(head) or 1.0) * x.shape[1])].clone(), *inputs[1:])

    def _sums(self, part: nn.Module) -> list[Any]:
        """Hooks on the layers that tensor parallelism cuts: a sum over the group behind rows, and before columns backward."""
        handles = []
        for name, way in getattr(type(part), "sharding", {}).items():
            layer = getattr(part, name, None)
            if way == "row" and isinstance(layer, nn.Linear):
                handles.append(layer.register_forward_hook(lambda module, inputs, output: self._sum(output)))
            if way == "column" and isinstance(layer, nn.Linear):
                handles.append(
                    layer.register_forward_pre_hook(lambda module, inputs: (_SumBackward.apply(inputs[0], self._sum),))
                )
        return handles

    def _sum(self, value: Tensor) -> Tensor:
        among = self.strategy.tensor
        self.traffic["sum"] += round(2 * (among - 1) / among * _bytes([value]))
        return value.clone()


class _SumBackward(torch.autograd.Function):
    """Nothing forward; a sum over the tensor-parallel group backward."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, total: Any) -> Tensor:
        ctx.total = total
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return ctx.total(gradient), None


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


__all__ = ["Settings", "Step", "share_of", "simulate"]
