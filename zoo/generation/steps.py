"""The model's side of decoding: it reads tokens, and scores what may come next."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from zoo.cache import Cache
from zoo.errors import InputError
from zoo.generation.prompt import Prompt


class Steps:
    """A model in the middle of texts. All that decoding asks of a model is asked here.

    A model that reads something else beside the tokens (an encoder's output) is served by a subclass that overrides `call`
    and `choose`.

    Args:
        cache: what the texts so far are kept in.
    """

    def __init__(self, model: Any, cache: Cache) -> None:
        self.model, self.cache = model, cache
        self._next: Tensor | None = None  # (rows, 1), the position of the next token; None where the model counts itself

    def call(self, ids: Tensor, **named: Any) -> Tensor:
        """(rows, tokens) -> (rows, vocabulary), the scores of what comes next."""
        logits: Tensor = self.model(ids, past_key_values=self.cache, logits_to_keep=1, **named).logits
        return logits[:, -1].float()

    def read(self, prompt: Prompt, chunk: int | None = None) -> Tensor:
        """Reads the prompts, but for what is in the cache already, at most `chunk` tokens at once."""
        start, tokens = len(self.cache), prompt.ids.shape[1]
        if prompt.positions is not None:
            self._next = prompt.positions[:, -1:] + 1
        for first in range(start, tokens, chunk or tokens):
            end = min(first + (chunk or tokens), tokens)
            named = {}
            if prompt.real is not None:
                named["attention_mask"] = prompt.real[:, :end]
            if prompt.positions is not None:
                named["position_ids"] = prompt.positions[:, first:end]
            scores = self.call(prompt.ids[:, first:end], **named)
        if scores.shape[1] != self.model.config.embedding.vocabulary:
            what = f"{scores.shape[1]} classes, not the {self.model.config.embedding.vocabulary} tokens"
            raise InputError(f"generate: the head scores {what} that could come next")
        return scores

    def next(self, tokens: Tensor) -> Tensor:
        """Reads one more token of each row, (rows,) -> (rows, vocabulary). The cache knows which ones were padding."""
        if self._next is None:
            return self.call(tokens[:, None])
        position, self._next = self._next, self._next + 1
        return self.call(tokens[:, None], position_ids=position)

    def choose(self, rows: Tensor) -> None:
        """Goes on with these rows, (rows,) whole numbers; some may come twice, some not at all."""
        self.cache.choose(rows)
        if self._next is not None:
            self._next = self._next.index_select(0, rows)
