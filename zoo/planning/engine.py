"""What an engine adds to a step on the meta device: what is gathered, freed and sent, and when."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zoo.inspect.cost import type_of
from zoo.planning.ledger import Ledger
from zoo.planning.precision import computed_again
from zoo.planning.share import EvenExchange, divided_experts, shards
from zoo.planning.strategy import Strategy

SCORED = {"language-model": 1.0, "masked-language-model": 0.15}
"""Which share of the tokens is scored in training, for heads that score only those which are guessed."""


class Engine:
    """FSDP2's gathering, DDP's buckets, tensor parallelism's sums, and the ways of rows to divided experts.

    What FSDP2 gathers at once is a group: the parameters of a block, of experts of which several devices have the same
    ones, and those that are in none of these, which are the model's.

    Args:
        model: what one device has before FSDP2 divides it.
        gloo: whether processes talk through gloo, which keeps copies of what it sends.
    """

    def __init__(self, model: Any, strategy: Strategy, ledger: Ledger, precision: str, gloo: bool) -> None:
        self.model, self.strategy, self.ledger = model, strategy, ledger
        self.gloo, self.precision = gloo, precision
        self.again = ExitStack()
        self.shards = shards(model, strategy)
        self.owned = self._groups()
        self.sizes = {group: bytes_of(own) for group, own in self.owned.items()}
        self.waiting = {group: sum(each.requires_grad for each in own) for group, own in self.owned.items()}
        self.gathered: set[nn.Module] = set()
        self.order: list[nn.Module] = []
        self.blocks: list[nn.Module] = []
        self.backward = False
        self.prefetched: nn.Module | None = None
        self.sending = self.left = 0
        self.traffic: Counter[str] = Counter()
        self.unsharded_gradients = 0

    def share(self, parameters: Iterable[Tensor]) -> float:
        """Bytes of what this device has of parameters."""
        return sum(bytes_of([each]) / self.shards[id(each)] for each in parameters)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within it the model's passes are followed."""
        handles: list[Any] = []
        for experts in divided_experts(self.model, self.strategy):
            exchange = EvenExchange(self.strategy, self._count)
            handles.append(experts.register_forward_pre_hook(exchange.bring))
            handles.append(experts.register_forward_hook(exchange.send_back))
        for part in self.model.modules():
            if part in self.owned and part is not self.model:
                # weights are there before anything else happens, and leave when it has happened
                handles.append(part.register_forward_pre_hook(self._before, prepend=True))
                handles.append(part.register_forward_hook(self._after, always_call=True))
            elif _kind(part) == "head" and self._scored(part) is not None:
                handles.append(part.register_forward_pre_hook(self._chosen))
            if self.strategy.tensor > 1:
                handles += self._sums(part)
        of = {id(parameter): group for group, own in self.owned.items() for parameter in own}
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                handles.append(parameter.register_post_accumulate_grad_hook(self._accumulated(of.get(id(parameter)))))
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
        for group in self.owned if self.strategy.sharded > 1 else ():
            self._reduced(group)  # one of which a parameter was not used, and that of the model
        if self.strategy.name == "ddp":
            self.traffic["average"] += round(2 * _ring(self.strategy.data) * self.unsharded_gradients)

    def _groups(self) -> dict[nn.Module, list[Tensor]]:
        """The parameters of each group; that of the model comes last."""
        apart = divided_experts(self.model, self.strategy) if self.strategy.expert > 1 else []
        groups: dict[nn.Module, list[Tensor]] = {}
        if self.strategy.expert > 1 and self.strategy.replicas > 1:
            groups |= {experts: list(experts.parameters()) for experts in apart}
        taken = {id(parameter) for experts in apart for parameter in experts.parameters()}
        for part in self.model.modules():
            if _kind(part) == "block":
                groups[part] = [each for each in part.parameters() if id(each) not in taken]
        taken |= {id(parameter) for own in groups.values() for parameter in own}
        return {**groups, self.model: [each for each in self.model.parameters() if id(each) not in taken]}

    def _start(self) -> None:
        """What lies there when a step begins, from the second one on."""
        trained = [each for each in self.model.parameters() if each.requires_grad]
        self.left = round(self.share(trained))
        self.ledger.add("gradients", self.left)
        if self.strategy.name == "ddp":
            self.ledger.add("buffers", bytes_of(trained))  # the buckets
        if self.strategy.sharded > 1:
            self._gather(self.model)

    def _among(self, group: nn.Module) -> int:
        return max((self.shards[id(each)] for each in self.owned[group]), default=1)

    def _gather(self, group: nn.Module) -> None:
        """An all-gather, and the copy of what came into the parameters; in the forward pass the first is kept a while."""
        if group in self.gathered:
            return
        size = self.sizes[group]
        self._fetch(group)
        if not self.backward:
            self.ledger.add("buffers", -self.sending)
            self.sending = size
        self.ledger.add("buffers", size)
        if self.backward:
            self.ledger.add("buffers", -size)

    def _fetch(self, group: nn.Module) -> None:
        """An all-gather."""
        size = self.sizes[group]
        self.gathered.add(group)
        self.traffic["gather"] += round(_ring(self._among(group)) * size)
        self.ledger.add("buffers", size * (2 if self.gloo else 1))
        if self.gloo:
            self.ledger.add("buffers", -size)

    def _before(self, group: nn.Module, inputs: Any) -> None:
        if self.backward and _kind(group) == "block":  # computed again; `backward` was called without the modes
            self.again.enter_context(computed_again(self.precision))
        elif self.strategy.sharded > 1:
            self._arrive(group)

    def _after(self, group: nn.Module, inputs: Any, output: Any) -> None:
        block = _kind(group) == "block"
        if self.backward and block:
            self.again.close()
            return
        if self.strategy.sharded > 1:
            self._free(group)
        if self.backward:
            return
        self.order.append(group)
        self.blocks += [group] if block else []
        first = output[0] if isinstance(output, tuple) else output
        if first.requires_grad:
            first.register_hook(lambda gradient: self._begin(group))

    def _begin(self, group: nn.Module) -> None:
        """The backward pass comes to a group."""
        if group in self.blocks:
            place, last = len(self.blocks) - 1 - self.blocks.index(group), len(self.blocks) - 1
            names = {0: "first block", 1: "second block", last - 1: "last block but one", last: "last block"}
            self.ledger.enter(names.get(place, "blocks between"))
        if self.strategy.sharded == 1:
            return
        self._arrive(group)
        place = self.order.index(group)
        if place > 0 and self.order[place - 1] not in self.gathered:
            self.prefetched = self.order[place - 1]
            self._fetch(self.prefetched)

    def _arrive(self, group: nn.Module) -> None:
        """The weights of a group are there."""
        if self.prefetched is group:  # its all-gather is over, and the copy follows
            self.ledger.add("buffers", self.sizes[group])
            self.ledger.add("buffers", -self.sizes[group])
            self.prefetched = None
        else:
            self._gather(group)

    def _accumulated(self, group: nn.Module | None) -> Any:
        def hook(parameter: Tensor) -> None:
            assert parameter.grad is not None
            self.ledger.is_gradient(parameter.grad)
            self.unsharded_gradients += bytes_of([parameter])
            if group is not None and group is not self.model and self.strategy.sharded > 1:
                self.waiting[group] -= 1
                if self.waiting[group] == 0:
                    self._reduced(group)

        return hook

    def _reduced(self, group: nn.Module) -> None:
        """A reduce-scatter of a block's gradients, or of those of all that is in no block."""
        if group not in self.gathered:
            return
        own, among = [each for each in self.owned[group] if each.grad is not None], self._among(group)
        size = bytes_of(own)
        self._free(group)
        self.ledger.add("buffers", -self.sending)  # what the block before sent
        self.ledger.add("buffers", size)
        for each in own:
            each.grad = None
        self.ledger.add("gradients", size // among)
        if self.gloo:
            self.ledger.add("buffers", size)
            self.ledger.add("buffers", -size)
        self.traffic["reduce"] += round(_ring(among) * size)
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
        self._count("sum", value)
        return value.clone()

    def _count(self, kind: str, value: Tensor) -> None:
        """What is sent of a tensor that is summed over a tensor-parallel group, or exchanged for another one's rows."""
        share = 2 * _ring(self.strategy.tensor) if kind == "sum" else _ring(self.strategy.expert)
        self.traffic[kind] += round(share * bytes_of([value]))


class _SumBackward(torch.autograd.Function):
    """Nothing forward; a sum over the tensor-parallel group backward."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, total: Any) -> Tensor:
        ctx.total = total
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return ctx.total(gradient), None


def _ring(devices: int) -> float:
    """Which share of what so many devices have together one sends, when all get it."""
    return (devices - 1) / devices


def _kind(part: nn.Module) -> str:
    return getattr(getattr(type(part), "Config", None), "kind", "")


def bytes_of(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


__all__ = ["Engine", "bytes_of"]
