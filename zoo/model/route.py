"""A way through a model of many tasks: what is read, which tokens see which, and the head that answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.cache import Cache
from zoo.errors import InputError
from zoo.generation.source import Source
from zoo.layout import Layout
from zoo.model.base import bind, chosen, masked
from zoo.model.routing import router_answers
from zoo.model.transformer import Transformer, weights_of
from zoo.output import TransformerOutput


class Route(Transformer):
    """One task of a `multi-task` model, as a transformer of its own whose parts are those of the whole model.

    What it reads last is what its head answers for, such as a text; what it reads before that, such as an image, stands in
    front of it in the same sequence. In a causal route a token sees what stands in front and the earlier ones of its own;
    the tokens in front all see each other, and nothing else.

    Args:
        config: as which transformer it can be trained and asked; its embedding is the last one.
        front: the embeddings of what stands in front.
        embedding, stack, head: the other parts.
        causal: whether no token of the last embedding sees later ones.
        task: its name, for messages.
    """

    front: Any

    def __init__(
        self, config: Any, front: Sequence[Any], embedding: Any, stack: Any, head: Any, *, causal: bool, task: str
    ) -> None:
        nn.Module.__init__(self)
        self.config, self.causal, self.task = config, causal, task
        self.front = nn.ModuleList(front)
        self.embedding, self.stack, self.head = embedding, stack, head

    @property
    def training(self) -> bool:  # type: ignore[override]
        """Whether the parts are: whoever sets this of the whole model, module by module, does not meet its routes."""
        return bool(self.stack.training)

    @training.setter
    def training(self, mode: bool) -> None:
        pass

    @property
    def decodes(self) -> bool:
        """Whether keys and values can be kept for tokens to come."""
        return self.causal and bool(getattr(self.embedding, "continues", False))

    @property
    def inputs(self) -> tuple[str, ...]:
        """What is read: first that for which the head answers, then what stands in front of it."""
        return tuple(name for part in (self.embedding, *self.front) for name in part.inputs)

    @property
    def options(self) -> tuple[str, ...]:
        """The options of these."""
        return tuple(name for part in (self.embedding, *self.front) for name in part.options)

    def new_cache(self, capacity: int | None = None) -> Cache:
        """An empty cache, as of every model.

        Raises:
            InputError: the route is not causal.
        """
        if not self.decodes:
            raise InputError(f"use_cache: task {self.task!r} is not causal, so that its tokens depend on later ones")
        return Cache(len(self.stack.layers), capacity)

    def forward(  # type: ignore[override]
        self,
        *inputs: Tensor,
        attention_mask: Tensor | None = None,
        prefix_lengths: Tensor | None = None,
        score_mask: Tensor | None = None,
        logits_to_keep: int | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        output_hidden_states: Any = False,
        output_attentions: Any = False,
        output_router_logits: bool = False,
        **named: Any,
    ) -> TransformerOutput:
        """Runs this path alone; the arguments are those of a `transformer`, for the tokens that are read last.

        Logits are of these, too; `last_hidden_state`, states and attention weights are of all, what stands in front first.

        Args:
            prefix_lengths: (batch,), how many first tokens of each text of a causal route are given: they see each other, the
                later ones of them included (a prefix language model; default: none).

        Raises:
            InputError: an input that does not fit, or an argument that this route cannot honour.
        """
        given = bind(inputs, named, self.inputs, self.options, needed="none")
        cache = self._cache(past_key_values, use_cache)
        if cache is not None and (not self.decodes or (len(cache) and bool(cache.front) != bool(self.front))):
            raise InputError(f"past_key_values: they are not of task {self.task!r}, or it is not causal")
        kept_front = 0 if cache is None else cache.front
        self._check_given(given, continues=kept_front > 0)
        front = [] if kept_front else [self._embedded(part, given)[0] for part in self.front]
        past = {} if cache is None else {"past": len(cache) - kept_front}
        text, own = self._embedded(self.embedding, given, **past)
        new, before = sum(part.shape[1] for part in front), kept_front + sum(part.shape[1] for part in front)
        x = torch.cat([*front, text], 1) if front else text
        if before:
            layout = _behind(own, new, before, kept_front)
            attention_mask = _extended(attention_mask, before, (len(x), text.shape[1] + past.get("past", 0)))
        else:
            layout = own
        layout = masked(layout, attention_mask, (x.shape[0], x.shape[1]), cache)
        if cache is not None:
            cache.front = before
        if before:
            real = None if layout.real is None else layout.real[:, new:]
            own = own._replace(real=real, mask=None if real is None else real[:, None, None, :])
        else:
            own = layout
        seeing = self._causal(layout, x, before, prefix_lengths)
        depth = len(self.stack.layers)
        states = chosen(output_hidden_states, depth + 1, "output_hidden_states")
        maps = chosen(output_attentions, depth, "output_attentions")
        x, kept, seen = self.stack(x, seeing, hidden_states=states, attentions=maps)
        answers = self._answers(x[:, new:] if new else x, own, score_mask, logits_to_keep)
        return TransformerOutput(
            last_hidden_state=x,
            hidden_states=tuple(kept[index] for index in states) if states else None,
            past_key_values=cache,
            attentions=weights_of(seen, maps)[0],
            **{**router_answers(seeing, output_router_logits, self.training), **answers},
        )

    def generate(self, input_ids: Tensor, attention_mask: Tensor | None = None, **named: Any) -> Any:  # type: ignore[override]
        """Continues texts, as `zoo.model.base.Model.generate`, behind what stands in front of them.

        Args:
            input_ids, attention_mask: how the texts begin, and what of that is padding.
            named: what stands in front (`pixel_values`), `prefix_lengths`, and the options there.

        Raises:
            InputError: as there, or what stands in front is missing.
        """
        from zoo.generation.run import generate

        names = ["prefix_lengths"]
        for part in self.front:
            names += [*part.inputs, *part.options]
        read = {name: named.pop(name) for name in names if named.get(name) is not None}
        self._check_given({**read, self.embedding.inputs[0]: input_ids})
        if read and (named.get("past_key_values") is not None or named.get("prefill_chunk_size") is not None):
            what = f"{next(iter(read))} and the texts are read at once"
            raise InputError(f"generate: {what}; leave past_key_values and prefill_chunk_size out")
        known = ("position_ids", "past_key_values", "logits_processor", "tokenizer", "streamer", "generator")
        arguments = {name: named.pop(name) for name in known if name in named}
        source = Front(self, read) if read else None
        return generate(self, input_ids, attention_mask, **arguments, given=named, source=source)

    def _embedded(self, part: Any, given: dict[str, Any], **past: int) -> tuple[Tensor, Layout]:
        """What one embedding makes of its share of the inputs."""
        own = {name: given[name] for name in (*part.inputs, *part.options) if given.get(name) is not None}
        found: tuple[Tensor, Layout] = part(**own, **past)
        return found

    def _check_given(self, given: dict[str, Any], continues: bool = False) -> None:
        """Whether all is there that is to be read, for as many examples, and packed texts stand behind nothing."""
        first = self.embedding.inputs[0]
        needed = [first] if continues else list(self.inputs)
        for name in needed:
            if given.get(name) is None:
                raise InputError(f"{name} is missing: task {self.task!r} reads {' and '.join(needed)}")
        counts = {name: len(given[name]) for name in needed if isinstance(given[name], Tensor) and given[name].ndim}
        if len(set(counts.values())) > 1:
            raise InputError(f"{', '.join(f'{number} {name}' for name, number in counts.items())}: as many are needed of each")
        if given.get("position_ids") is not None and not self._placed():
            raise InputError("position_ids: the tokens of this model have no positions")
        if self.front and given.get("sequence_ids") is not None:
            raise InputError(f"sequence_ids: task {self.task!r} reads {needed[-1]} too, behind which one text stands")
        if self.front and getattr(given[first], "ndim", 2) == 3:
            raise InputError(f"{first}: expected shape (batch, tokens), got {tuple(given[first].shape)}")

    def _causal(self, layout: Layout, x: Tensor, front: int, prefix: Any) -> Layout:
        """The layout in which no token sees later ones, but for those in front and those of a prefix."""
        if not self.causal:
            if prefix is not None:
                raise InputError(f"prefix_lengths: task {self.task!r} is not causal, so that all tokens see each other")
            return layout
        keys = x.shape[1] + (0 if layout.cache is None else len(layout.cache))
        if x.shape[1] == 1:
            return layout  # the only new token is the last one
        at = torch.arange(keys, device=x.device)
        seen = (at <= at[keys - x.shape[1] :, None]) | (at < front)
        seen = seen[None, None]
        if prefix is not None:
            if not isinstance(prefix, Tensor) or prefix.is_floating_point() or tuple(prefix.shape) != (x.shape[0],):
                found = f"{tuple(prefix.shape)} of {prefix.dtype}" if isinstance(prefix, Tensor) else type(prefix).__name__
                raise InputError(f"prefix_lengths: expected whole numbers of shape ({x.shape[0]},), got {found}")
            seen = seen | (at < (front + prefix.to(x.device))[:, None])[:, None, None]
        if layout.mask is None:
            return layout._replace(mask=seen)
        mask = layout.mask
        return layout._replace(mask=mask.masked_fill(~seen, -math.inf) if mask.is_floating_point() else mask & seen)


class Front(Source):
    """What stands in front of texts that are generated, in the form in which generation asks for a source.

    Args:
        model: the route.
        given: what its first call is given beside the tokens.
    """

    table = None

    def __init__(self, model: Route, given: dict[str, Any]) -> None:
        self.model, self.inputs = model, given

    def read(self) -> dict[str, Any]:
        """What the first call is given."""
        return dict(self.inputs)


def _behind(own: Layout, new: int, before: int, kept: int) -> Layout:
    """The layout of a text with `new` tokens in front, or behind `kept` ones of a cache: places are counted on."""
    positions = own.positions
    if positions is not None:
        positions = positions + before
        first = torch.arange(new, device=positions.device).expand(len(positions), -1)
        positions = torch.cat([first, positions], 1) if new else positions
    return Layout(positions=positions, past=own.past + kept, table=own.table)


def _extended(mask: Any, before: int, shape: tuple[int, int]) -> Any:
    """A mask of texts, (batch, tokens), that says of what stands in front that it is real."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or tuple(mask.shape) != shape:
        found = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise InputError(f"attention_mask: expected shape {shape} (batch, tokens), got {found}")
    return functional.pad(mask, (before, 0), value=1)
