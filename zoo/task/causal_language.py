"""Guessing the next token of a text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, ValidationError
from torch import Tensor, nn
from torch.nn import functional

from zoo.config import Problem, within
from zoo.config.base import raise_problems
from zoo.config.messages import config_error
from zoo.data.byte_pairs import BytePairs
from zoo.data.windows import boundaries
from zoo.errors import DataError
from zoo.task import compression
from zoo.task.base import Direction, Step, Task, TaskConfig, step_of
from zoo.task.masked_language import IGNORED


class CausalLanguage(Task):
    """Guesses each token of a text from those before it.

    A text is the start token, its own tokens and the end token; all but the start are guessed, each once. With
    `data.pack`, several texts share a row without seeing each other, and one that is longer than `data.length` goes on in
    further windows, whose first token is the last one of the window before and is not guessed again. Without, what is
    behind `data.length` tokens is neither read nor counted.

    What a model of this sort is worth is measured in bits for each byte of the original text (`bits_per_byte`), which
    does not depend on the tokens; the `loss` is in nats for each token.

    Papers: Bengio et al. 2003, https://www.jmlr.org/papers/v3/bengio03a.html; Radford et al. 2018,
    https://openai.com/research/language-unsupervised.
    """

    class Config(TaskConfig):
        """Config of the `causal-language` task."""

        type: Literal["causal-language"] = "causal-language"
        merge_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
        """How likely each merge of a tokenizer of byte pairs is left out in training, so that a word is met in another
        spelling each time; a great help where there is little text (Provilkov et al. 2020,
        https://arxiv.org/abs/1910.13267). Measured is always with all merges."""

        def problems(self, **context: Any) -> Iterator[Problem]:
            model, data = context["model"], context.get("data")
            tokenizer = getattr(data, "tokenizer", None)
            if self.merge_dropout and tokenizer in ("bytes", "wordpiece"):
                yield ("task", "merge_dropout"), f"tokenizer {tokenizer!r} has no merges; choose 'bpe', or leave this out"
            yield from within("model", unfit(model))
            if data is not None and not hasattr(data, "tokenizer"):
                yield ("data",), f"task 'causal-language' needs texts, and data {data.type!r} have none"

    config: Config
    best: ClassVar[tuple[str, Direction]] = ("bits_per_byte", "min")

    def adapt(self, data: Any) -> None:
        """Has the data cut texts into windows of one run of tokens, and say how many bytes a token stands for.

        Raises:
            DataError: the tokenizer has no token that could begin or end a text, or no merges that could be left out.
        """
        if not hasattr(data, "runs"):
            return
        data.runs, data.dropout = True, self.config.merge_dropout
        try:
            boundaries(data.tokenizer)
            if data.dropout:
                BytePairs(data.tokenizer)
        except DataError as error:
            raise DataError(f"{data.place}: {error}") from None

    def step(self, model: nn.Module, batch: Any) -> Step:
        """The loss of a batch, the mean over all tokens that are guessed, in nats.

        A batch is a mapping with the model's inputs, and perhaps with `labels` (batch, tokens): a token is guessed where
        its label is not -100, from those before it (the shift by one is made here). Without labels every token is guessed
        that `attention_mask` calls real, but the first of a row or, with `sequence_ids`, of each text. `token_bytes`
        (batch, tokens) says how many bytes of the original text each token stands for.
        Predictions (tokens, 2) are for each token that was guessed what it cost, in nats, and its bytes; without
        `token_bytes` these are not numbers, and neither are the bits per byte. Targets (tokens,) are the tokens.

        Raises:
            DataError: no `input_ids`, or labels of another shape.
        """
        inputs, following, sizes = _asked(batch)
        guessed = following != IGNORED
        output = model(**inputs, score_mask=guessed)
        scores: Tensor = output.logits.float()
        targets = following[guessed]
        costs = functional.cross_entropy(scores, targets, reduction="none")
        said = torch.stack([costs.detach(), sizes[guessed].to(costs.dtype)], dim=-1)
        return step_of(costs.mean() if len(targets) else scores.sum(), output, said, targets)

    def metrics(self, model: nn.Module) -> Mapping[str, Any]:
        """The bits for each byte of the text.

        Raises:
            ConfigError: the model could look at the token that it is to guess.
        """
        from zoo.task.bits_per_byte import BitsPerByte

        try:  # a run's config was checked, but a model of a user's own script is seen here for the first time
            raise_problems("model", unfit(model.config))
        except ValidationError as error:
            raise config_error(error, "model") from None
        return {"bits_per_byte": BitsPerByte()}

    def references(self, data: Any, split: Any, targets: Tensor) -> Mapping[str, float]:
        """What general compressors reach; see `zoo.task.compression.references`."""
        return compression.references(data, split)


def unfit(model: Any, task: str = "causal-language") -> Iterator[Problem]:
    """Where a model's config does not allow a task in which each token is guessed from those before it."""
    head = model.head
    if getattr(head, "type", None) != "language-model":
        found = "none" if head is None else repr(head.type)
        yield ("head",), f"task {task!r} needs a head of type 'language-model', and this is {found}"
    stack = model.stack
    own = ("stack", "block", "attention", "causal")
    kinds = stack.blocks() if hasattr(stack, "blocks") else [getattr(stack, "block", None)]
    changes = getattr(stack, "pattern", None) or [{}]
    for number, block in enumerate(kinds[: len(changes)]):
        if not getattr(getattr(block, "attention", None), "causal", False):
            path = own if getattr(stack, "pattern", None) is None else ("stack", "pattern", number, "attention", "causal")
            yield path, "a token that sees those behind it sees what it is to guess; this has to be true"


def _asked(batch: Any) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """The inputs, for each token the one behind it or -100 (batch, tokens), and the bytes of that (batch, tokens)."""
    if not isinstance(batch, Mapping) or "input_ids" not in batch:
        raise DataError("a batch for causal-language training is a mapping with 'input_ids'")
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "token_bytes", "word_ids")}
    ids: Tensor = inputs["input_ids"]
    labels, sizes = batch.get("labels"), batch.get("token_bytes")
    texts, mask = inputs.get("sequence_ids"), inputs.get("attention_mask")
    if labels is None or (sizes is not None and labels.ndim == 1):  # labels of texts from data with classes say nothing here
        labels = ids
        if mask is not None and mask.ndim == 2:
            labels = labels.masked_fill(mask == 0, IGNORED)
            labels = labels.masked_fill(_before(mask, 0) == 0, IGNORED)  # the first one of a row, behind padding
    elif labels.shape != ids.shape:
        raise DataError(f"labels: expected shape {tuple(ids.shape)}, as input_ids, got {tuple(labels.shape)}")
    if texts is not None:
        labels = labels.masked_fill((_before(texts, -1) != texts) | (texts < 0), IGNORED)
        if sizes is not None:  # in rows of our own, padding is a text by itself, which is all that a mask could say
            inputs.pop("attention_mask", None)
    following = functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
    if sizes is None:
        sizes = torch.full(ids.shape, float("nan"), device=ids.device)
    return inputs, following, functional.pad(sizes[:, 1:], (0, 1))


def _before(values: Tensor, first: int) -> Tensor:
    """What stands one place before each token (batch, tokens)."""
    return functional.pad(values[:, :-1], (1, 0), value=first)
