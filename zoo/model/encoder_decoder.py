"""A transformer that reads, and one that writes what it read in other words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn

from zoo.cache import Cache
from zoo.config import Config, Problem, Slot
from zoo.config.base import Count, raise_problems
from zoo.errors import InputError
from zoo.model.base import Model, bind
from zoo.output import EncoderDecoderOutput, TransformerOutput
from zoo.registry import make

SIDES = ("encoder", "decoder")
IGNORED = -100
"""What stands in labels where no token is to be learned."""


class EncoderDecoder(Model):
    """An encoder, and a decoder that looks at its tokens: the first transformer, BART and T5 are configs of this.

    The encoder may read images too. Papers: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762; Lewis et al. 2019,
    https://arxiv.org/abs/1910.13461; Raffel et al. 2020, https://arxiv.org/abs/1910.10683.
    """

    class Config(Config):
        """Config of an `encoder-decoder`."""

        kind: ClassVar[str] = "model"

        type: Literal["encoder-decoder"] = "encoder-decoder"
        encoder: Annotated[Config, Slot("model", default="transformer")]
        """The transformer that reads; it has no head."""
        decoder: Annotated[Config, Slot("model", default="transformer")]
        """The transformer that writes: its attention is causal, and its blocks have a `cross_attention`."""
        share_embeddings: bool = False
        """Whether the decoder's tokens have the vectors of the encoder's tokens; otherwise they have their own."""
        start: Count
        """The token that a text of the decoder begins with; what the decoder is to write is not told it otherwise."""
        padding: Count | None = None
        """The token that stands in the decoder's input where labels have -100 (default: the padding of its embedding, or
        `start`)."""
        decoder_input: Literal["given", "shifted"] = "given"
        """What the decoder reads where a call gives it nothing: that is an error, or it reads the encoder's tokens behind
        `start`, as a model that repairs broken texts is trained (BART)."""

        embedding: ClassVar[None] = None
        stack: ClassVar[None] = None
        head: ClassVar[None] = None

        @model_validator(mode="after")
        def _fits(self) -> Any:
            raise_problems("encoder-decoder", self.problems())
            return self

        def problems(self, **context: Any) -> Iterator[Problem]:
            encoder: Any = self.encoder
            decoder: Any = self.decoder
            for name, side in (("encoder", encoder), ("decoder", decoder)):
                if side.type != "transformer":
                    yield (name, "type"), f"it is a 'transformer', and this is {side.type!r}"
                    return
            if encoder.head is not None:
                yield ("encoder", "head"), f"an encoder has none, and this is {encoder.head.type!r}"
            if decoder.embedding.type != "tokens":
                yield ("decoder", "embedding"), f"a decoder reads tokens, and {decoder.embedding.type!r} does not"
                return
            if decoder.stack.type != "uniform":
                yield ("decoder", "stack"), f"a stack of type 'uniform' is needed, and this is {decoder.stack.type!r}"
                return
            yield from self._blocks(decoder.stack)
            width = getattr(encoder.stack, "output_width", None) or encoder.stack.width
            if width != decoder.stack.width:
                yield ("decoder", "stack", "width"), f"{decoder.stack.width} is not the encoder's width {width}"
            vocabulary = decoder.embedding.vocabulary
            for name, token in (("start", self.start), ("padding", self.padding)):
                if token is not None and token >= vocabulary:
                    yield (name,), f"{token} is none of the decoder's tokens, 0 to {vocabulary - 1}"
            same = encoder.embedding.type == "tokens" and encoder.embedding.vocabulary == vocabulary
            if self.share_embeddings and not same:
                yield ("share_embeddings",), "the encoder reads other tokens than the decoder"
            if self.decoder_input == "shifted" and not same:
                yield ("decoder_input",), "the encoder reads other tokens than the decoder; use given"

        def _blocks(self, stack: Any) -> Iterator[Problem]:
            for block in stack.blocks():
                if getattr(block, "cross_attention", None) is None:
                    yield ("decoder", "stack", "block", "cross_attention"), "missing: how does it look at the encoder's tokens?"
                    return
                if not block.attention.causal:
                    what = "a decoder's token must not see those behind it, which it is to write; use true"
                    yield ("decoder", "stack", "block", "attention", "causal"), what
                    return

    embedding = None
    stack = None
    head = None

    def __init__(self, config: Config) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.encoder: Any = make(config.encoder)
        self.decoder: Any = make(config.decoder, own_table=not config.share_embeddings)

    def forward(
        self,
        *inputs: Tensor,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        score_mask: Tensor | None = None,
        logits_to_keep: int | None = None,
        output_hidden_states: Any = False,
        output_attentions: Any = False,
        output_router_logits: bool = False,
        **named: Any,
    ) -> EncoderDecoderOutput:
        """Runs the encoder, unless what it gave is given, and the decoder.

        Args:
            inputs, named: what the encoder's embedding reads, by position or by name, and its options (`input_ids`,
                `position_ids`, ...); and the options of the decoder's embedding with `decoder_` in front.
            attention_mask: of the encoder's tokens, as a transformer takes it; (batch, tokens) also says which of them the
                decoder may look at.
            decoder_input_ids: (batch, tokens), what has been written so far, or is to be scored: it begins with `start`.
            decoder_attention_mask: of these, as a transformer takes it.
            labels: (batch, tokens), what is to be written, from which the decoder's input is made where it is not given (see
                `shifted`). The loss is the caller's.
            encoder_outputs: what `model.encoder(...)` gave, or its last hidden state, so that it need not run again.
            past_key_values, use_cache, score_mask, logits_to_keep: of the decoder, as a transformer takes them. Keys and
                values of the encoder's tokens are kept too, so that a later call needs neither `input_ids` nor
                `encoder_outputs`, nor their mask.
            output_hidden_states, output_attentions, output_router_logits: of both, as a transformer takes them.

        Raises:
            InputError: an input that does not fit, or an argument that this model cannot honour.
        """
        own, others = self._told(inputs, named)
        if decoder_input_ids is None:
            decoder_input_ids = self._decoder_input(labels, own.get("input_ids"))
        kept = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        kept["output_router_logits"] = output_router_logits
        continues = isinstance(past_key_values, Cache) and past_key_values.layers[0].across is not None
        seen = self._encoded(own, attention_mask, encoder_outputs, continues, kept)
        mask = attention_mask if attention_mask is None or attention_mask.ndim == 2 else None
        borrowed = {"table": self.encoder.embedding.table} if self.config.share_embeddings else {}
        written = self.decoder(
            decoder_input_ids,
            attention_mask=decoder_attention_mask,
            encoder_hidden_states=None if seen is None else seen.last_hidden_state,
            encoder_attention_mask=mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            score_mask=score_mask,
            logits_to_keep=logits_to_keep,
            **borrowed,
            **others,
            **kept,
        )
        return EncoderDecoderOutput(
            logits=written.logits,
            last_hidden_state=written.last_hidden_state,
            past_key_values=written.past_key_values,
            decoder_hidden_states=written.hidden_states,
            decoder_attentions=written.attentions,
            cross_attentions=written.cross_attentions,
            encoder_last_hidden_state=None if seen is None else seen.last_hidden_state,
            encoder_hidden_states=None if seen is None else seen.hidden_states,
            encoder_attentions=None if seen is None else seen.attentions,
            encoder_router_logits=None if seen is None else seen.router_logits,
            decoder_router_logits=written.router_logits,
            router_loss=_both(None if seen is None else seen.router_loss, written.router_loss),
        )

    def shifted(self, labels: Tensor) -> Tensor:
        """What the decoder reads to learn to write `labels` (batch, tokens): they themselves, behind `start`, without the last.

        Where labels have -100, it reads padding.
        """
        if not isinstance(labels, Tensor) or labels.ndim != 2 or labels.is_floating_point() or labels.is_complex():
            found = f"{tuple(labels.shape)} of {labels.dtype}" if isinstance(labels, Tensor) else type(labels).__name__
            raise InputError(f"labels: expected whole numbers of shape (batch, tokens), got {found}")
        padding = self.config.padding
        if padding is None:
            padding = self.config.decoder.embedding.padding
        padding = self.config.start if padding is None else padding
        first = torch.full_like(labels[:, :1], self.config.start)
        return torch.cat([first, labels[:, :-1].masked_fill(labels[:, :-1] == IGNORED, padding)], 1)

    def generate(  # type: ignore[override]
        self,
        *inputs: Tensor,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: Cache | None = None,
        logits_processor: Sequence[Any] | None = None,
        tokenizer: Any = None,
        streamer: Any = None,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> Any:
        """Writes texts from what the encoder reads, once: greedily, by drawing tokens, or by beam search.

        As `zoo.model.base.Model.generate`, and beside it:

        Args:
            inputs: what the encoder reads, by position or by name, and its options.
            attention_mask: (batch, tokens), 0 for padding of the source, on either side (default: nothing is padding).
            decoder_input_ids: (batch, tokens), how the texts begin (default: with `start`, which also comes first where none
                of them begins with it).
            decoder_attention_mask: of these, 0 for padding, which stands on the left.
            encoder_outputs: what `model.encoder(...)` gave, instead of its inputs.
            options: as there, and `decoder_start_token_id` instead of the model's own `start`.

        Returns:
            (batch x num_return_sequences, tokens), what the decoder wrote, with what it began with.
        """
        from zoo.generation.run import generate
        from zoo.generation.source import Source, decoder_start

        read = self.encoder.embedding
        own = {name: options.pop(name) for name in list(options) if name in (*read.inputs, *read.options)}
        given = bind(inputs, own, read.inputs, read.options, needed="none")
        if past_key_values is not None and not isinstance(past_key_values, Cache):
            raise InputError(f"past_key_values: expected what an earlier call gave, got {type(past_key_values).__name__}")
        source = Source(self, given, attention_mask, encoder_outputs, past_key_values)
        start = decoder_start(options, self)
        options.pop("decoder_start_token_id", None)
        ids, mask = source.beginning(decoder_input_ids, decoder_attention_mask, start)
        return generate(
            self.decoder,
            ids,
            mask,
            past_key_values=past_key_values,
            logits_processor=logits_processor,
            tokenizer=tokenizer,
            streamer=streamer,
            generator=generator,
            given=options,
            source=source,
        )

    def initialize_weights(self) -> None:
        """Draws all weights afresh, those of each side by its own recipe."""
        for name in SIDES:
            getattr(self, name).initialize_weights()

    def new_cache(self, capacity: int | None = None) -> Cache:
        """An empty cache for the decoder's `past_key_values`."""
        cache: Cache = self.decoder.new_cache(capacity)
        return cache

    def _told(self, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The inputs of the encoder and the options of the decoder, by name."""
        read, own = self.encoder.embedding, self.decoder.embedding
        options = {f"decoder_{name}": name for name in own.options if name != "sequence_ids"}
        allowed = (*(name for name in read.options if name != "sequence_ids"), *options)
        given = bind(inputs, named, read.inputs, allowed, needed="none")
        others = {options[name]: given.pop(name) for name in list(given) if name in options}
        return given, others

    def _decoder_input(self, labels: Any, ids: Any) -> Tensor:
        if labels is not None:
            return self.shifted(labels)
        if self.config.decoder_input == "shifted" and ids is not None:
            return self.shifted(ids)
        raise InputError("decoder_input_ids is missing: give what the decoder has written so far, or labels; or use generate")

    def _encoded(
        self, given: dict[str, Any], mask: Any, outputs: Any, continues: bool, kept: dict[str, Any]
    ) -> TransformerOutput | None:
        """What the encoder gives, or gave; None where a cache has all that is needed of it."""
        if outputs is not None:
            if given.get(self.encoder.embedding.inputs[0]) is not None:
                raise InputError(f"encoder_outputs: given beside {self.encoder.embedding.inputs[0]}, which it was made of")
            if isinstance(outputs, Tensor):
                return TransformerOutput(last_hidden_state=outputs)
            tokens = getattr(outputs, "last_hidden_state", None)
            if not isinstance(tokens, Tensor):
                raise InputError(f"encoder_outputs: expected what model.encoder(...) gave, got {type(outputs).__name__}")
            kept_too = {name: getattr(outputs, name, None) for name in ("hidden_states", "attentions", "router_logits")}
            return TransformerOutput(last_hidden_state=tokens, **kept_too)
        if all(given.get(name) is None for name in self.encoder.embedding.inputs):
            if continues:
                return None
            raise InputError(f"{self.encoder.embedding.inputs[0]} is missing: this model reads it, or encoder_outputs")
        read: TransformerOutput = self.encoder(**given, attention_mask=mask, **kept)
        return read


def _both(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """The sum of two losses, as far as there are any."""
    if first is None or second is None:
        return second if first is None else first
    return first + second
