"""Writing a text behind what is given: a source in front of it in the same row, or an image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from zoo.config import Problem
from zoo.data.tokenizer import make_tokenizer
from zoo.errors import DataError
from zoo.task.base import Direction, Step, Task, TaskConfig, with_router_loss
from zoo.task.causal_language import unfit
from zoo.task.exact_match import Right
from zoo.task.masked_language import IGNORED


class PrefixLanguage(Task):
    """Guesses each token of a text from those before it and from what is given: a source in the same row, or an image.

    Data of pairs give sources and targets, which become one row, the target behind the source's end; only the target is
    guessed. Data of images with captions give texts, all of which are guessed but for the first token, up to and with the
    first one that ends a text. A model of type `multi-task` is told how long a source is, so that its tokens see each other.

    Papers: Raffel et al. 2019, https://arxiv.org/abs/1910.10683, section 3.2 (prefix language model); Wang et al. 2021,
    https://arxiv.org/abs/2108.10904 (images).
    """

    class Config(TaskConfig):
        """Config of the `prefix-language` task."""

        type: Literal["prefix-language"] = "prefix-language"
        label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
        """Share of each target that is spread evenly over all tokens, in training."""

        def problems(self, **context: Any) -> Iterator[Problem]:
            data = context.get("data")
            for path, message in unfit(context["model"], self.type):
                yield ("model", *path), message
            if data is not None and not hasattr(data, "tokenizer"):
                yield ("data",), f"task {self.type!r} needs pairs of texts, or images with captions; {data.type!r} have none"

    config: Config
    best: ClassVar[tuple[str, Direction]] = ("loss", "min")

    end: int | None = None
    """The token that ends a text, where one fills rows up, too."""

    def adapt(self, data: Any) -> None:
        """Takes from the data which token ends a text."""
        tokenizer, name = getattr(data, "tokenizer", None), getattr(data.config, "tokenizer", None)
        if tokenizer is None and name is not None:
            tokenizer = make_tokenizer(name, data.place)
        self.end = getattr(tokenizer, "end", None)

    def step(self, model: nn.Module, batch: Any) -> Step:
        """The loss of a batch, the mean over all tokens that are guessed, in nats.

        A batch is a mapping with `input_ids` and `labels` (batch, tokens of the target, -100 behind), as data of pairs give
        it; or with `input_ids` and what else the model reads, such as `pixel_values`. Predictions and targets are those of
        `sequence-to-sequence`, both told from one pass.

        Raises:
            DataError: no `input_ids`, or nothing is to be guessed from anything.
        """
        if not isinstance(batch, Mapping) or getattr(batch.get("input_ids"), "ndim", 0) != 2:
            raise DataError("a batch for prefix-language training is a mapping with 'input_ids' of shape (batch, tokens)")
        pairs = getattr(batch.get("labels"), "ndim", 0) == 2
        inputs, labels = rows_of(batch) if pairs else self._captions(batch)
        if not hasattr(model, "causal"):  # a transformer is causal throughout
            inputs.pop("prefix_lengths", None)
        following = functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
        guessed = following != IGNORED
        output = model(**inputs, score_mask=guessed)
        scores: Tensor = output.logits.float()
        targets = following[guessed]
        smoothing = self.config.label_smoothing if model.training else 0.0
        loss = functional.cross_entropy(scores, targets, label_smoothing=smoothing) if len(targets) else scores.sum()
        likeliest = scores.detach().argmax(-1)
        right = (following.masked_scatter(guessed, likeliest) == following).all(1)
        first = guessed & (guessed.cumsum(1) == 1)
        judged = torch.where(first, right[:, None].long(), -1)
        return Step(with_router_loss(loss, output), torch.stack([likeliest, judged[guessed]], dim=-1), targets)

    def metrics(self, model: nn.Module) -> Mapping[str, Any]:
        """`accuracy`: of how many tokens the likeliest one is right; `exact_match`: of how many texts all of them are."""
        return {"accuracy": Right(0), "exact_match": Right(1)}

    def _captions(self, batch: Mapping[str, Any]) -> tuple[dict[str, Any], Tensor]:
        """The inputs, and the texts with -100 where nothing is guessed."""
        inputs = {name: value for name, value in batch.items() if name not in ("labels", "word_ids", "token_bytes")}
        labels: Tensor = inputs["input_ids"]
        if inputs.get("attention_mask") is not None:
            labels = labels.masked_fill(inputs["attention_mask"] == 0, IGNORED)
        if self.end is not None:
            ends = (inputs["input_ids"] == self.end).long()
            labels = labels.masked_fill(ends.cumsum(1) - ends > 0, IGNORED)
        return inputs, labels


def rows_of(batch: Mapping[str, Any]) -> tuple[dict[str, Any], Tensor]:
    """Sources and targets in one row each: the inputs, and labels (batch, tokens) with -100 but for the targets.

    Args:
        batch: `input_ids` and perhaps `attention_mask` (batch, tokens), of sources that are filled up behind, and `labels`
            (batch, tokens of the target) with -100 behind.
    """
    ids, labels = batch["input_ids"], batch["labels"]
    mask = batch.get("attention_mask")
    lengths = torch.full((len(ids),), ids.shape[1], device=ids.device) if mask is None else mask.sum(1)
    wanted = labels != IGNORED
    at = torch.arange(labels.shape[1], device=ids.device) + lengths[:, None]  # where each token of a target goes
    whole = int((lengths + wanted.sum(1)).max()) if len(ids) else ids.shape[1]
    room = ids.shape[1] + labels.shape[1]
    row = functional.pad(ids, (0, labels.shape[1])).scatter(1, at, labels.clamp(min=0))
    targets = torch.full((len(ids), room), IGNORED, device=ids.device, dtype=labels.dtype).scatter(1, at, labels)
    real = (torch.arange(room, device=ids.device) < (lengths + wanted.sum(1))[:, None]).long()
    inputs = {"input_ids": row[:, :whole], "attention_mask": real[:, :whole], "prefix_lengths": lengths}
    return inputs, targets[:, :whole]


__all__ = ["PrefixLanguage", "rows_of"]
