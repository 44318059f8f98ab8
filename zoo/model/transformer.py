"""The transformer: an embedding, a stack of blocks and a head."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Annotated, Any, Literal

import torch
from pydantic import model_validator
from torch import Tensor

from zoo.cache import Cache
from zoo.config import Config, Problem, Slot, within
from zoo.config.base import raise_problems
from zoo.errors import InputError, did_you_mean, one_of
from zoo.layout import Layout
from zoo.model.base import Model, ModelConfig, bind, chosen, masked
from zoo.model.memory import memory_of
from zoo.model.routing import router_answers
from zoo.output import FeatureMap, TransformerOutput
from zoo.registry import make


class Transformer(Model):
    """An embedding, a stack of blocks and a head: ViT, BERT, GPT and Swin are configs of this.

    Papers: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, and those of the parts.
    """

    class Config(ModelConfig):
        """Config of a `transformer`."""

        type: Literal["transformer"] = "transformer"
        embedding: Annotated[Config, Slot("embedding")]
        """What turns inputs into tokens."""
        stack: Annotated[Config, Slot("stack", default="uniform")]
        """The blocks."""
        head: Annotated[Config | None, Slot("head", optional=True)] = None
        """What turns tokens into answers; without one the model gives its last hidden state."""

        @model_validator(mode="after")
        def _fits(self) -> Any:
            raise_problems("transformer", self.problems())
            return self

        def problems(self, **context: Any) -> Iterator[Problem]:
            width: int = getattr(self.stack, "output_width", None) or getattr(self.stack, "width")
            class_token = getattr(self.embedding, "class_token", True)
            yield from within("embedding", self.embedding.problems(width=getattr(self.stack, "width")))
            grid = None if getattr(self.embedding, "patch_dropout", 0.0) else getattr(self.embedding, "grid", None)
            around = {"grid": grid, "prefix": getattr(self.embedding, "prefix", 0)}
            yield from within("stack", self.stack.problems(**around))
            if self.head is not None:
                vocabulary = getattr(self.embedding, "vocabulary", None)
                context = {"width": width, "class_token": class_token, "vocabulary": vocabulary}
                context["channels"] = {name: feature.channels for name, feature in feature_maps(self).items()}
                yield from within("head", self.head.problems(**context))

    def __init__(self, config: Config, *, own_table: bool = True) -> None:
        super().__init__(config)
        borrowed = {} if own_table else {"own_table": False}
        self.embedding = make(config.embedding, width=getattr(config.stack, "width"), **borrowed)
        self.stack = make(config.stack)
        self.head = make(config.head, **head_context(config, getattr(self.stack, "output_width", self.stack.width)))

    def forward(
        self,
        *inputs: Tensor,
        attention_mask: Tensor | None = None,
        global_attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        score_mask: Tensor | None = None,
        logits_to_keep: int | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        output_hidden_states: Any = False,
        output_attentions: Any = False,
        output_router_logits: bool = False,
        features: Collection[str] | None = None,
        table: Tensor | None = None,
        **named: Any,
    ) -> TransformerOutput:
        """Runs the model.

        Args:
            inputs, named: what the embedding reads, by position or by name, and its options: `pixel_values`
                (batch, channels, height, width) and `interpolate_pos_encoding`, or `input_ids` (batch, tokens) and
                `token_type_ids`, `position_ids`, `sequence_ids`.
            attention_mask: (batch, tokens), 1 for tokens that may be attended to; or (batch, 1, tokens, tokens), true
                where one token may attend to another, or a float to be added to the scores. A token that may attend
                to none gets zeros from the attention. Tokens of the past count too, at the front; without a mask they
                are masked as they were when they came.
            global_attention_mask: (batch, tokens), 1 for tokens that see all tokens and are seen by all, in models whose
                attention is local otherwise.
            encoder_hidden_states: (batch, others, width), what blocks with cross-attention look at. A cache keeps their keys
                and values, so that later calls need neither these nor their mask.
            encoder_attention_mask: (batch, others), or (batch, 1, tokens, others), of these as `attention_mask` of its own.
            score_mask: (batch, tokens), true for the tokens that a head which scores each token is to score; its logits
                are then (number of these tokens, classes), row by row. Scoring few tokens saves most of a large head.
            logits_to_keep: the head scores only so many tokens at the end; 0 stands for all.
            past_key_values: what an earlier call with `use_cache` gave. These tokens then follow those, and are added to it
                in place. Positions go on counting, padding included, unless `position_ids` says otherwise.
            use_cache: whether to keep keys and values for tokens to come (default: if there are `past_key_values`).
            output_hidden_states: all states, or a list of those wanted: 0 is the embedding, n is
                what the n-th block gives, negative numbers count from the last.
            output_attentions: attention weights of all layers, or of a list of layers from 0.
            output_router_logits: whether to give what the routers of experts said, and how evenly they chose.
            features: the feature maps wanted, of those that the stack has (`model.config.stack.features()`): `stem` is the
                embedding, `stage1`, `stage2`, ... what the stages give before their tokens are merged, or the blocks of a
                stack without stages. They are not normed, unless the head is one of `feature-maps`, which says how.

            table: (vocabulary, width), another model's vectors of tokens, where the embedding has none of its own.

        Raises:
            InputError: an input that does not fit, or an argument that this model cannot honour.
        """
        given = bind(inputs, named, self.embedding.inputs, self.embedding.options)
        if given.get("position_ids") is not None and not self._placed():
            raise InputError("position_ids: the tokens of this model have no positions")
        cache = self._cache(past_key_values, use_cache)
        given |= {"table": table} if table is not None else {}
        x, layout = self.embedding(**given, **({} if cache is None else {"past": len(cache)}))
        layout = masked(layout, attention_mask, (x.shape[0], x.shape[1]), cache)
        if encoder_hidden_states is not None or encoder_attention_mask is not None or getattr(self.stack, "across", False):
            layout = self._beside(layout, encoder_hidden_states, encoder_attention_mask, x)
        if global_attention_mask is not None:
            layout = self._with_global(layout, global_attention_mask, (x.shape[0], x.shape[1]))
        depth = len(self.stack.layers)
        states = chosen(output_hidden_states, depth + 1, "output_hidden_states")
        maps = chosen(output_attentions, depth, "output_attentions")
        wanted = self._features(features, layout)
        needed = [*states, *(feature.state for feature in wanted.values())]
        start = layout
        x, kept, seen = self.stack(x, layout, hidden_states=needed, attentions=maps)
        layout = self.stack.behind(layout) if hasattr(self.stack, "behind") else layout
        attentions, across = weights_of(seen, maps)
        routed = router_answers(start, output_router_logits, self.training)
        answers: dict[str, Any] = {**routed, **self._answers(x, layout, score_mask, logits_to_keep)}
        return TransformerOutput(
            last_hidden_state=x,
            hidden_states=tuple(kept[index] for index in states) if states else None,
            past_key_values=cache,
            feature_maps=self._maps(wanted, kept, start) if wanted else None,
            attentions=attentions,
            cross_attentions=across,
            **answers,
        )

    def _beside(self, layout: Layout, tokens: Any, mask: Any, x: Tensor) -> Layout:
        """The layout with the other sequence, which blocks with cross-attention look at."""
        if not getattr(self.stack, "across", False):
            name = "encoder_hidden_states" if tokens is not None else "encoder_attention_mask"
            raise InputError(f"{name}: no block of this model attends to another sequence; see block.cross_attention")
        return layout._replace(memory=memory_of(tokens, mask, x, layout.cache))

    def _with_global(self, layout: Layout, mask: Any, shape: tuple[int, int]) -> Layout:
        """The layout with what the caller says of global tokens; padding is none."""
        blocks = (getattr(layer, "attention", None) for layer in self.stack.layers)
        if not any(getattr(part, "has_global_tokens", False) for part in blocks):
            raise InputError("global_attention_mask: this model has no local attention, so that all tokens are global")
        if not isinstance(mask, Tensor) or mask.is_floating_point() or mask.is_complex() or tuple(mask.shape) not in (
            shape, (layout.choices and shape[0] // layout.choices, layout.choices, shape[1])
        ):  # fmt: skip
            found = f"{tuple(mask.shape)} of {mask.dtype}" if isinstance(mask, Tensor) else type(mask).__name__
            raise InputError(f"global_attention_mask: expected 0 and 1 of shape {shape} (batch, tokens), got {found}")
        chosen = mask.reshape(shape).bool()
        return layout._replace(global_tokens=chosen if layout.real is None else chosen & layout.real)

    def _features(self, names: Any, layout: Layout) -> dict[str, Any]:
        """The feature maps that are asked for, or that the head is made for."""
        own: tuple[str, ...] = getattr(self.head, "features", ())
        if not own and names is None:
            return {}
        known = feature_maps(self.config)
        if names is not None and (isinstance(names, (str, bytes)) or not isinstance(names, Collection)):
            raise InputError(f"features: expected a list of names, got {names!r:.60}")
        for name in own if names is None else names:
            if name not in known:
                given = f"expected {one_of(known)[7:]}" if known else "this model has none"
                raise InputError(f"features: {name!r} is no feature map{did_you_mean(name, known) or f'; {given}'}")
            if own and name not in own:
                raise InputError(f"features: {name!r} is none of the head's, which has {', '.join(own)}")
        if layout.grid is None:
            raise InputError("features: the tokens of this input form no grid, so that there are no feature maps")
        return {name: feature for name, feature in known.items() if name in (own if names is None else names)}

    def _maps(self, wanted: dict[str, Any], kept: dict[int, Tensor], layout: Layout) -> dict[str, FeatureMap]:
        """The states that the stack kept, as images of features."""
        assert layout.grid is not None
        sides: tuple[int, int] = getattr(self.embedding.config, "patch_size", (1, 1))
        norms = getattr(self.head, "norms", {})
        found = {}
        for name, feature in wanted.items():
            x = kept[feature.state][:, layout.prefix :]
            x = norms[name](x) if name in norms else x
            grid = [-(-length // feature.reduction) for length in layout.grid]
            stride = (sides[0] * feature.reduction, sides[1] * feature.reduction)
            found[name] = FeatureMap(x.transpose(1, 2).unflatten(2, grid), stride, feature.channels)
        return found

    def _placed(self) -> bool:
        """Whether anything asks where tokens stand."""
        blocks = (getattr(layer, "attention", None) for layer in self.stack.layers)
        return any(getattr(part, "position", None) is not None for part in (self.embedding, *blocks))

    def _cache(self, past: Any, use: bool | None) -> Cache | None:
        """What to keep keys and values in, if they are to be kept."""
        if past is not None and not isinstance(past, Cache):
            raise InputError(f"past_key_values: expected what an earlier call gave, got {type(past).__name__}")
        if past is None:
            return self.new_cache() if use else None
        if use is False:
            raise InputError("use_cache: tokens are added to the past_key_values; copy.deepcopy keeps them as they are")
        if len(past.layers) != len(self.stack.layers):
            raise InputError(f"past_key_values: of {len(past.layers)} layers, but this model has {len(self.stack.layers)}")
        return past

    def _answers(
        self, x: Tensor, layout: Layout, score_mask: Tensor | None, logits_to_keep: int | None = None
    ) -> dict[str, Tensor]:
        """What the head gives."""
        if logits_to_keep:
            return self._last_answers(x, layout, score_mask, logits_to_keep)
        if score_mask is None:
            answers: dict[str, Tensor] = {} if self.head is None else self.head(x, layout)
            return answers
        tensor = isinstance(score_mask, Tensor)
        if not tensor or score_mask.shape != x.shape[:2] or score_mask.dtype != torch.bool:
            found = f"{tuple(score_mask.shape)} of {score_mask.dtype}" if tensor else type(score_mask).__name__
            raise InputError(f"score_mask: expected true and false of shape {tuple(x.shape[:2])} (batch, tokens), got {found}")
        number = int(score_mask.sum())
        chosen = x[score_mask][None] if number else x[:1, :1]  # without a token a head could not say what it is
        given = {} if self.head is None else self.head(chosen, layout._replace(real=None, mask=None))
        if "logits" not in given or given["logits"].shape[:-1] != chosen.shape[:-1]:
            kind = repr(getattr(self.config.head, "type")) if self.head is not None else "none"
            raise InputError(f"score_mask: this needs a head that scores each token by itself, and this is {kind}")
        return {"logits": given["logits"][0, :number]}

    def _last_answers(self, x: Tensor, layout: Layout, score_mask: Tensor | None, number: Any) -> dict[str, Tensor]:
        """What the head gives for the last tokens."""
        if isinstance(number, bool) or not isinstance(number, int) or number < 0 or score_mask is not None:
            what = "cannot be given beside score_mask" if score_mask is not None else f"expected 0 or more, got {number!r}"
            raise InputError(f"logits_to_keep: {what}")
        number = min(number, x.shape[1])
        real = None if layout.real is None else layout.real[:, -number:]
        given: dict[str, Tensor] = {} if self.head is None else self.head(x[:, -number:], layout._replace(real=real))
        if "logits" not in given or given["logits"].ndim != 3 or given["logits"].shape[1] != number:
            kind = repr(getattr(self.config.head, "type")) if self.head is not None else "none"
            raise InputError(f"logits_to_keep: this needs a head that scores each token by itself, and this is {kind}")
        return given


def feature_maps(config: Any) -> dict[str, Any]:
    """The feature maps that a model of this config can give, of images."""
    known = getattr(config.stack, "features", None)
    return known() if known is not None and hasattr(config.embedding, "grid") else {}


def head_context(config: Any, width: int) -> dict[str, Any]:
    """What the head of a model's config is built with, of what it asks for."""
    block = getattr(config.stack, "block", None)
    known = {
        "width": width,
        "vocabulary": getattr(config.embedding, "vocabulary", None),
        "norm": getattr(block, "norm", None),
        "channels": {name: feature.channels for name, feature in feature_maps(config).items()},
    }
    return {name: known[name] for name in getattr(config.head, "context", ("width",))}


def weights_of(seen: dict[int, Any], wanted: list[int]) -> tuple[tuple[Tensor, ...] | None, tuple[Tensor, ...] | None]:
    """The attention weights of the wanted layers, and those to another sequence; None where there are none."""
    pairs = [seen[index] if isinstance(seen[index], tuple) else (seen[index], None) for index in wanted]
    own, across = (tuple(each for pair in pairs if (each := pair[which]) is not None) for which in (0, 1))
    return own or None, across or None
