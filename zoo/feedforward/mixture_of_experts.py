"""Feed-forwards of which each token meets only a few."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from zoo import kernel
from zoo.config import Config as AnyConfig
from zoo.config import Problem, Slot, within
from zoo.config.base import PositiveInt
from zoo.feedforward.gated import GatedFeedForward
from zoo.feedforward.mlp import MLP
from zoo.kernel.experts import Layer, expert_feedforward, mixture, row_counts, through_experts
from zoo.kernel.experts_product import Kept
from zoo.kernel.packed import Preparing, hooked
from zoo.kernel.share import share
from zoo.layout import Layout
from zoo.registry import make

Share = Annotated[float, Field(ge=0, lt=1)]
Coefficient = Annotated[float, Field(ge=0)]


class MixtureOfExperts(nn.Module):
    """A router chooses a few of many feed-forwards for each token, and mixes what they give.

    The experts are feed-forwards of any kind, all alike. What the routers of a model chose can be seen
    (`output_router_logits`), and their losses, which ignore padding, are part of the loss in training.
    Papers: Shazeer et al. 2017, https://arxiv.org/abs/1701.06538; Fedus et al. 2021, https://arxiv.org/abs/2101.03961
    (capacity, load balancing); Zoph et al. 2022, https://arxiv.org/abs/2202.08906 (z-loss); Jiang et al. 2024,
    https://arxiv.org/abs/2401.04088 (Mixtral); Dai et al. 2024, https://arxiv.org/abs/2401.06066 (shared experts).
    Shapes: (batch, tokens, width) -> (batch, tokens, width). Cost: `top_k` experts for each token, and the router's
    width x experts products.
    """

    class Config(AnyConfig):
        """Config of `mixture-of-experts`."""

        kind: ClassVar[str] = "feedforward"

        type: Literal["mixture-of-experts"] = "mixture-of-experts"
        experts: PositiveInt
        """How many experts there are."""
        top_k: PositiveInt = 2
        """How many of them each token meets."""
        expert: Annotated[AnyConfig, Slot("feedforward", default="mlp")]
        """What each expert is."""
        shared: Annotated[AnyConfig | None, Slot("feedforward", default="mlp", optional=True)] = None
        """A feed-forward that every token meets beside those chosen for it, without weight."""
        routing: Literal["softmax-then-top-k", "top-k-then-softmax"] = "softmax-then-top-k"
        """Whether the router's scores become shares of all experts, of which the largest are taken, or shares of those
        that are taken alone."""
        normalise: bool = True
        """In softmax-then-top-k: whether the shares taken are divided by their sum, so that they sum to one (Mixtral), or
        stay what they are (Switch)."""
        router_bias: bool = False
        """Whether the router has a bias for each expert."""
        precision: Literal["same", "softmax", "router"] = "softmax"
        """What is computed in float32 whatever type the model has: nothing, the softmax (Mixtral), or all of the router
        (Switch)."""
        capacity: PositiveInt | None = None
        """How many tokens of a text an expert takes: the first ones, first choices before second ones, padding included. A
        token that comes too late gets zero from that expert. None takes all."""
        jitter: Share = 0.0
        """In training, tokens are multiplied by numbers between 1 - jitter and 1 + jitter before router and experts."""
        balance: Coefficient = 0.0
        """What the load-balancing loss is multiplied by in training; it is smallest, `top_k`, where all experts are chosen
        alike."""
        z_loss: Coefficient = 0.0
        """What the mean square of the logarithm of the sum of exponentiated scores is multiplied by in training, which keeps
        scores small."""

        def inner(self, width: int) -> int:
            """The inner width of one expert for a model of this width."""
            inner: int = getattr(self.expert, "inner")(width)
            return inner

        @property
        def norm(self) -> Any:
            """The norm within each expert."""
            return getattr(self.expert, "norm", None)

        def problems(self, *, width: int, **context: Any) -> Iterator[Problem]:
            if self.top_k > self.experts:
                yield ("top_k",), f"{self.top_k} of {self.experts} experts cannot be chosen; {self.experts} would do"
            if self.routing == "top-k-then-softmax" and not self.normalise:
                yield ("normalise",), "shares of the chosen experts alone always sum to one; use true"
            for name in ("expert", "shared"):
                part = getattr(self, name)
                if getattr(part, "type", None) == "mixture-of-experts":
                    yield (name, "type"), "an expert is one feed-forward; use another type, such as 'gated'"
                elif part is not None:
                    yield from within(name, part.problems(width=width, **context))

    reads_layout: ClassVar[bool] = True
    """Whether a block hands it the layout, too."""
    sharding: ClassVar[dict[str, str]] = {"router": "same", "experts": "experts", "shared": "same"}
    """How tensor-parallel processes divide it: see `zoo.training.sharding`."""
    processes: Any = None
    """The torch group of processes whose batches together are one, so that the losses count the tokens of all; None for one."""

    def __init__(self, config: Config, *, width: int) -> None:
        super().__init__()
        self.config = config
        self.router = kernel.Linear(width, config.experts, config.router_bias)
        self.experts = Experts(config.expert, config.experts, width)
        self.shared = make(config.shared, width=width)

    def forward(self, x: Tensor, layout: Layout | None = None) -> Tensor:
        config = self.config
        if self.training and config.jitter > 0:
            x = x * torch.empty_like(x).uniform_(1 - config.jitter, 1 + config.jitter)
        tokens = x.flatten(0, -2)
        logits = self._scores(tokens)
        if layout is not None and layout.shared is not None:
            routed = layout.shared.setdefault("routed", {})
            routed[id(self)] = Routed(logits, config.top_k, config.balance, config.z_loss, self.processes)
        weights, chosen = self._choice(logits)
        if config.capacity is not None:
            chosen = self._within_capacity(chosen, x, layout)
        mixed = self.experts.mixture(tokens, chosen, weights)
        if mixed is None:
            mixed = through_experts(tokens, chosen, weights, config.experts, self.experts, full=config.capacity is None)
        mixed = mixed.view_as(x)
        return mixed if self.shared is None else mixed + self.shared(x)

    @property
    def idle_parameters(self) -> int:
        """How many parameters a token does not meet."""
        own = sum(parameter.numel() for parameter in self.experts.parameters())
        return own // self.config.experts * (self.config.experts - self.config.top_k)

    def _scores(self, tokens: Tensor) -> Tensor:
        """The router's scores: (tokens, width) -> (tokens, experts)"""
        if self.config.precision != "router" or tokens.dtype == torch.float32:
            scores: Tensor = self.router(tokens)
            return scores
        bias = None if self.router.bias is None else self.router.bias.float()
        return kernel.linear(tokens.float(), self.router.weight.float(), bias)

    def _choice(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The weights and the numbers of the experts of each token, (tokens, top_k) each."""
        config = self.config
        scores = logits if config.precision == "same" else logits.float()
        if config.routing == "top-k-then-softmax":
            best, chosen = scores.topk(config.top_k, dim=-1)
            return best.softmax(-1), chosen
        shares = scores.softmax(-1)
        if config.top_k == 1 and not config.normalise:
            weights, chosen = shares.max(-1, keepdim=True)
            return weights, chosen
        weights, chosen = shares.topk(config.top_k, dim=-1)
        return (weights / weights.sum(-1, keepdim=True) if config.normalise else weights), chosen

    def _within_capacity(self, chosen: Tensor, x: Tensor, layout: Layout | None) -> Tensor:
        """The same choices, of which those that come too late to an expert, text by text, are of none."""
        experts, capacity = self.config.experts, self.config.capacity
        lengths = None if layout is None else layout.lengths
        texts = chosen.split(lengths) if lengths is not None else chosen.view(-1, x.shape[-2], chosen.shape[1])
        kept = []
        for text in texts if lengths is not None else (texts,):
            own = text[None] if lengths is not None else text
            # first choices of all tokens, then second ones
            queue = functional.one_hot(own.transpose(1, 2).flatten(1), experts)
            turn = (queue.cumsum(1) * queue).sum(-1).unflatten(1, (chosen.shape[1], -1)).transpose(1, 2)
            kept.append(own.masked_fill(turn > capacity, experts).flatten(0, 1))
        return torch.cat(kept)

    def extra_repr(self) -> str:
        return f"experts={self.config.experts}, top_k={self.config.top_k}, routing={self.config.routing}"


class Routed(NamedTuple):
    """What a router of a model gave in a forward pass, and what its losses count for."""

    logits: Tensor
    """(tokens of all texts, experts)"""
    top_k: int
    balance: float
    z_loss: float
    processes: Any = None
    """Those whose tokens count together."""


class Experts(Preparing):
    """Feed-forwards that are all alike; each parameter holds those of all, with the experts as its first dimension.

    Shapes: rows (rows, width), sorted by expert, and how many each has (experts,) -> (rows, width).
    """

    memory = Kept

    def __init__(self, config: Any, number: int, width: int) -> None:
        super().__init__()
        with torch.device("meta"):
            plan: nn.Module = make(config, width=width)
        self.__dict__["plan"] = plan  # it has shapes and a forward pass, but no weights of its own
        self.number = number
        self.forget()
        for name, module in plan.named_modules():
            for each, parameter in module.named_parameters(recurse=False):
                place = self._place(name)
                place.register_parameter(each, nn.Parameter(torch.empty(number, *parameter.shape)))

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        if not self._usual:
            return self._each(rows, counts)
        plan, (up, down, gate) = self.__dict__["plan"], self._layers()
        dropout = plan.dropout if self.training else 0.0
        # weights that are here for the length of one call only are not prepared
        kept = None if self._forward_pre_hooks else self.prepared
        return expert_feedforward(rows, counts, up, plan.activation, down, gate, dropout, kept)

    def mixture(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor | None:
        """What `through_experts` does with these experts, in one call; None where that is not faster, or somebody watches."""
        plan = self.__dict__["plan"]
        if not self._usual or hooked(self) or (self.training and plan.dropout):
            return None
        up, down, gate = self._layers()
        return mixture(x, chosen, weights, up, plan.activation, down, gate, self.prepared)

    @property
    def _usual(self) -> bool:
        plan: Any = self.__dict__["plan"]
        return type(plan) in (MLP, GatedFeedForward) and plan.norm is None

    def initialize(self, init: Any) -> None:
        """Each expert is drawn by itself, as a feed-forward alone would be."""
        for expert in range(self.number):
            own = copy.deepcopy(self.__dict__["plan"]).to_empty(device="cpu")
            init.draw(own)
            for name, parameter in own.named_parameters():
                self.get_parameter(name).data[expert] = parameter.data

    def _each(self, rows: Tensor, counts: Tensor) -> Tensor:
        """Experts of any other kind, one after another."""
        plan = self.__dict__["plan"].train(self.training)
        stacked = {name: share(parameter) for name, parameter in self.named_parameters()}
        sizes = row_counts(rows, counts)
        with kernel.plain():  # what is prepared from weights belongs to modules, and these are one for all
            if sizes is None:
                raise NotImplementedError("experts of this kind cannot be compiled")
            parts = rows.split([*sizes, rows.shape[0] - sum(sizes)])[:-1]
            each = [{name: tensor[expert] for name, tensor in stacked.items()} for expert in range(self.number)]
            found = [torch.func.functional_call(plan, own, (part,)) for own, part in zip(each, parts)]
        return torch.cat(found)

    def _place(self, name: str) -> nn.Module:
        """The module of this name, made if there is none: what it holds is called as in one expert."""
        place: nn.Module = self
        for step in name.split(".") if name else ():
            if step not in place._modules:
                place.add_module(step, Stacked())
            place = place._modules[step]  # type: ignore[assignment]
        return place

    def _layers(self) -> tuple[Layer, Layer, Layer | None]:
        """Up, down, and gate if there is one."""
        up, down, gate = (self._layer(self._modules.get(name)) for name in ("up", "down", "gate"))
        assert up is not None and down is not None
        return up, down, gate

    def _layer(self, module: Any) -> Layer | None:
        if module is None:
            return None
        bias = getattr(module, "bias", None)
        return Layer(share(module.weight), None if bias is None else share(bias))


class Stacked(nn.Module):
    """The parameters of one layer of all experts; they are drawn with the experts."""

    def initialize(self, init: Any) -> None:
        pass
