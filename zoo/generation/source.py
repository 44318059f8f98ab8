"""Texts that are written from a source: an encoder reads it once, and each step of the decoder looks at what it gave."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.cache import Cache
from zoo.errors import InputError
from zoo.generation.steps import Steps


class Source:
    """What an encoder-decoder reads, before it is read.

    Args:
        model: the encoder-decoder.
        inputs: what its encoder reads, by name, and its options.
        mask: which tokens of it are real; (batch, tokens), or None where all are.
        outputs: what the encoder gave, or its last hidden state, instead.
        kept: a cache that has the keys and values of all that was read, instead.

    Raises:
        InputError: there is nothing to read, or more than one of these is given.
    """

    def __init__(self, model: Any, inputs: Mapping[str, Any], mask: Any, outputs: Any, kept: Cache | None) -> None:
        self.model, self.inputs, self.mask, self.outputs = model, inputs, mask, outputs
        self.kept = kept if kept is not None and kept.layers[0].across is not None else None
        name = model.encoder.embedding.inputs[0]
        given = inputs.get(name)
        if outputs is not None:
            outputs = outputs if isinstance(outputs, Tensor) else getattr(outputs, "last_hidden_state", None)
            if not isinstance(outputs, Tensor) or outputs.ndim != 3:
                raise InputError(f"encoder_outputs: expected what model.encoder(...) gave, got {type(self.outputs).__name__}")
            if given is not None:
                raise InputError(f"encoder_outputs: given beside {name}, which it was made of")
            self.outputs = given = outputs
        elif given is None and self.kept is None:
            raise InputError(f"{name} is missing: this model writes from what it reads, or from encoder_outputs")
        if given is not None and (not isinstance(given, Tensor) or not given.ndim or not len(given)):
            found = f"shape {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
            raise InputError(f"{name}: expected a batch, got {found}")
        self.rows = len(given) if isinstance(given, Tensor) else self._kept_rows()

    def beginning(self, ids: Any, mask: Any, start: int) -> tuple[Any, Any]:
        """What the decoder's texts begin with: `start`, and behind it the prompts, if there are any.

        As in transformers, `start` is put in front unless a prompt begins with it.
        """
        first = torch.full((self.rows, 1), start, dtype=torch.int64, device=self.model.device)
        if ids is None:
            ids = first
        elif isinstance(ids, Tensor) and ids.ndim == 2 and ids.numel() and not ids.is_floating_point():
            if len(ids) != self.rows:
                raise InputError(f"decoder_input_ids: {len(ids)} texts, but there are {self.rows} sources")
            if self.kept is None and not bool((ids[:, 0] == start).any()):
                ids = torch.cat([first.to(ids), ids], 1)
                mask = mask if mask is None else torch.nn.functional.pad(mask, (1, 0), value=1)
        if mask is None and isinstance(ids, Tensor):
            mask = torch.ones_like(ids)  # what begins a text is often the token that fills up others
        return ids, mask

    def read(self) -> dict[str, Any]:
        """What the decoder is given in its first call; nothing where a cache has it."""
        if self.kept is not None:
            return {}
        tokens = self.outputs
        if tokens is None:
            tokens = self.model.encoder(**self.inputs, attention_mask=self.mask).last_hidden_state
        return {"encoder_hidden_states": tokens, "encoder_attention_mask": self.mask}

    @property
    def table(self) -> Tensor | None:
        """(vocabulary, width), the vectors of the decoder's tokens, where they are the encoder's."""
        table: Tensor | None = self.model.encoder.embedding.table if self.model.config.share_embeddings else None
        return table

    def _kept_rows(self) -> int:
        assert self.kept is not None and self.kept.layers[0].across is not None
        return self.kept.several * int(self.kept.layers[0].across[0].shape[0])


class SourceSteps(Steps):
    """A decoder in the middle of texts that it writes from a source.

    Args:
        read: what its first call is given of the source; later ones find it in the cache.
        table: (vocabulary, width), the vectors of tokens, where they are the encoder's.
    """

    def __init__(self, model: Any, cache: Cache, read: dict[str, Any], table: Tensor | None) -> None:
        super().__init__(model, cache)
        self._source = read
        self._always = {} if table is None else {"table": table}

    def call(self, ids: Tensor, **named: Any) -> Tensor:
        read, self._source = self._source, {}
        return super().call(ids, **read, **self._always, **named)


def decoder_start(options: Mapping[str, Any], model: Any) -> int:
    """The token that texts begin with: `decoder_start_token_id`, or the model's own.

    Raises:
        InputError: it is none of the decoder's tokens.
    """
    given, vocabulary = options.get("decoder_start_token_id"), model.config.decoder.embedding.vocabulary
    start = model.config.start if given is None else given
    if isinstance(start, bool) or not isinstance(start, int) or not 0 <= start < vocabulary:
        raise InputError(f"decoder_start_token_id: {start!r} is none of the decoder's tokens, 0 to {vocabulary - 1}")
    return start
