"""Writing a text behind what is given: a source in front of it in the same row, or an image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from zoo import registry
from zoo.config import Problem
from zoo.data.tokenizer import make_tokenizer
from zoo.errors import DataError
from zoo.task.base import Direction, Step, Task, TaskConfig, step_of
from zoo.task.causal_language import unfit
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
        ranked: bool = False
        """Whether a measurement also asks how often a sentence for the right class is likelier than the same sentence for any
        other, of images whose data have sentences for classes; see `metrics`."""

        def problems(self, **context: Any) -> Iterator[Problem]:
            data = context.get("data")
            for path, message in unfit(context["model"], self.type):
                yield ("model", *path), message
            if data is not None and not hasattr(data, "tokenizer"):
                yield ("data",), f"task {self.type!r} needs pairs of texts, or images with captions; {data.type!r} have none"
            elif self.ranked and data is not None and not hasattr(registry.part("data", data.type), "prompts"):
                yield ("task", "ranked"), f"data {data.type!r} have no sentences for classes"

    config: Config
    best: ClassVar[tuple[str, Direction]] = ("loss", "min")

    end: int | None = None
    """The token that ends a text, where one fills rows up, too."""
    prompts: Tensor | None = None
    """(phrasings, classes, tokens): what is said of each class, if sentences are ranked."""

    def adapt(self, data: Any) -> None:
        """Takes from the data which token ends a text, and the sentences for classes, if these are ranked."""
        self.prompts = data.prompts if self.config.ranked else None
        tokenizer, name = getattr(data, "tokenizer", None), getattr(data.config, "tokenizer", None)
        if tokenizer is None and name is not None:
            tokenizer = make_tokenizer(name, data.place)
        self.end = getattr(tokenizer, "end", None)

    def step(self, model: nn.Module, batch: Any) -> Step:
        """The loss of a batch, the mean over all tokens that are guessed, in nats.

        A batch is a mapping with `input_ids` and `labels` (batch, tokens of the target, -100 behind), as data of pairs give
        it; or with `input_ids` and what else the model reads, such as `pixel_values`. Predictions and targets are those of
        `sequence-to-sequence`, both told from one pass; with `ranked`, where a model is measured, a third column says of each
        text whether it is the likeliest of the same sentences for all classes. `labels` (batch,) are then the classes.

        Raises:
            DataError: no `input_ids`, or sentences are to be ranked among which a text is not.
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
        said = [likeliest, judged[guessed]]
        silent: tuple[str, ...] = ()
        if self.prompts is not None and model.training:
            silent = ("class_accuracy",)  # as many passes as there are classes are too much for each step
        elif self.prompts is not None:
            best = self._ranked(model, inputs, batch["labels"], self.prompts.to(labels.device))
            said.append(torch.where(first, best[:, None].long(), -1)[guessed])
        return step_of(loss, output, torch.stack(said, dim=-1), targets, without=silent)

    def metrics(self, model: nn.Module) -> Mapping[str, Any]:
        """`accuracy`: of how many tokens the likeliest one is right; `exact_match`: of how many texts all of them are.

        With `ranked` also `class_accuracy`, where a model is measured: of how many images the caption is likelier than the
        same sentence for each other class.
        """
        from zoo.task.exact_match import Right

        return {"accuracy": Right(0), "exact_match": Right(1), **({"class_accuracy": Right(2)} if self.config.ranked else {})}

    @torch.no_grad()
    def _ranked(self, model: nn.Module, inputs: Mapping[str, Any], classes: Tensor, prompts: Tensor) -> Tensor:
        """Whether the text of each image is likelier than the same sentence for any other class: (images,)."""
        same = (prompts[:, classes] == inputs["input_ids"]).all(-1)
        if not bool(same.any(0).all()):
            raise DataError("a text is none of the sentences that its data have for its class, so that it cannot be ranked")
        sentences = prompts[same.long().argmax(0)]
        others = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
        costs = []
        for each in sentences.unbind(1):
            given, labels = self._captions({**others, "input_ids": each})
            following = functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
            guessed = following != IGNORED
            scores = model(**given, score_mask=guessed).logits.float()
            cost = functional.cross_entropy(scores, following[guessed], reduction="none")
            costs.append(torch.zeros_like(following, dtype=cost.dtype).masked_scatter(guessed, cost).sum(1))
        return torch.stack(costs).argmin(0) == classes

    def _captions(self, batch: Mapping[str, Any]) -> tuple[dict[str, Any], Tensor]:
        """The inputs, and the texts with -100 where nothing is guessed."""
        inputs = {name: value for name, value in batch.items() if name not in ("labels", "word_ids", "token_bytes")}
        labels: Tensor = inputs["input_ids"]
        if inputs.get("attention_mask") is not None:
            labels = labels.masked_fill(inputs["attention_mask"] == 0, IGNORED)
        if self.end is not None:
            ends = (inputs["input_ids"] == self.end).long()
            behind = ends.cumsum(1) - ends > 0
            labels = labels.masked_fill(behind, IGNORED)
            if behind.any():  # what fills a row up is padding, of which no expert is to take any account
                mask = inputs.get("attention_mask")
                inputs["attention_mask"] = (~behind).long() if mask is None else mask.masked_fill(behind, 0)
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
