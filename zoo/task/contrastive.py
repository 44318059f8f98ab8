"""Telling which text belongs to which image."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from zoo import registry
from zoo.config import Problem
from zoo.errors import DataError
from zoo.task.base import Direction, Step, Task, TaskConfig, step_of
from zoo.task.gather import gathered

CLIP_SCALE = 100.0
"""What cosines are multiplied by at most, as published for CLIP."""


class Contrastive(Task):
    """Scores each image with each text of a batch; the pairs are to score high, all else low.

    `softmax` finds the text of each image among all texts, and the image of each text among all images (CLIP); `sigmoid`
    says of each combination by itself whether it is a pair (SigLIP). Where several processes train, each one compares its
    own images and texts with those of all, so that the gradients are those of one process with the whole batch.

    Papers: Radford et al. 2021, https://arxiv.org/abs/2103.00020, section 2.3; Zhai et al. 2023,
    https://arxiv.org/abs/2303.15343.
    """

    class Config(TaskConfig):
        """Config of the `contrastive` task."""

        type: Literal["contrastive"] = "contrastive"
        loss: Literal["softmax", "sigmoid"] = "softmax"
        """Among all, or each combination by itself."""
        largest_scale: Annotated[float, Field(ge=1)] | None = None
        """What cosines are multiplied by at most; the learned scale is brought back between 1 and this after each step
        (default: 100 for softmax, as published for CLIP, and nothing for sigmoid, as published for SigLIP)."""

        zero_shot: bool = False
        """Whether images are classified, too, by the sentences that data with classes have for each; see `metrics`."""

        def problems(self, **context: Any) -> Iterator[Problem]:
            model, data = context["model"], context.get("data")
            if self.zero_shot and data is not None and not hasattr(registry.part("data", data.type), "prompts"):
                yield ("task", "zero_shot"), f"data {data.type!r} have no sentences for classes"
            if model.type != "dual-encoder":
                yield ("model", "type"), f"task 'contrastive' needs a model of type 'dual-encoder', and this is {model.type!r}"

    config: Config
    best: ClassVar[tuple[str, Direction]] = ("loss", "min")

    prompts: Tensor | None = None
    """(phrasings, classes, tokens): what is said of each class."""

    def adapt(self, data: Any) -> None:
        """Takes the sentences for classes from the data, if images are to be classified by them."""
        self.prompts = data.prompts if self.config.zero_shot else None

    def step(self, model: nn.Module, batch: Any) -> Step:
        """The loss of a batch: a mapping with the inputs of both towers, of which the n-th text belongs to the n-th image.

        Predictions (images, 1) are for each image the text with the highest score, and targets (images, 1) its own; both
        are places in the batch, or, where several processes train, in that of all of them. With `zero_shot` there are
        further columns: the class that the text with the highest score is of; the class by all phrasings together, and by
        each of them (in training, that of the text again); and as targets the label.

        Raises:
            DataError: images and texts are not as many, or one of them is missing.
        """
        if not isinstance(batch, Mapping):
            raise DataError("a batch for contrastive training is a mapping with the inputs of both towers")
        output: Any = model(**{name: value for name, value in batch.items() if name != "labels"})
        images, texts = _both(output)
        (all_images, all_texts), first = [images, texts], 0
        if model.training:  # of what is measured on, processes may have different numbers of batches
            (all_images, all_texts), first = gathered((images, texts), self.group)
        own = torch.arange(first, first + len(images), device=images.device)
        scores = _compared(images, all_texts, output)
        if self.config.loss == "softmax":
            others = _compared(texts, all_images, output)
            loss = (functional.cross_entropy(scores, own) + functional.cross_entropy(others, own)) / 2
        else:
            signs = torch.full_like(scores, -1.0).scatter(1, own[:, None], 1.0)
            loss = -functional.logsigmoid(signs * scores).sum(1).mean()
        found, wanted = scores.detach().argmax(1)[:, None], own[:, None]
        if self.config.zero_shot:
            labels: Tensor = batch["labels"]
            # of what other processes hold, the labels are not known here
            said = labels[scores.detach()[:, first : first + len(images)].argmax(1)][:, None]
            if model.training or self.prompts is None:
                classes = said.expand(-1, 2)
            else:
                classes = classified(model, self.prompts.to(images.device), images.detach())
            found, wanted = torch.cat([found, said, classes], 1), torch.cat([wanted, labels[:, None].expand(-1, 3)], 1)
        return step_of(loss, output, found, wanted)

    def after_step(self, model: nn.Module) -> None:
        """Brings the learned scale back into its bounds."""
        largest = self.config.largest_scale or (CLIP_SCALE if self.config.loss == "softmax" else None)
        scale = getattr(model, "logit_scale", None)
        if largest is not None and isinstance(scale, nn.Parameter):
            with torch.no_grad():
                scale.clamp_(0.0, math.log(largest))

    def metrics(self, model: nn.Module) -> Mapping[str, Any]:
        """`recall`: of how many images the own text is the first among those of the batch.

        With `zero_shot` also `class_recall`: of how many images the first text of the batch is about their class, be it their
        own or not, which is what retrieval can reach where many texts say the same; `accuracy`: how often the class whose
        sentences together, as the mean of their vectors, fit an image best is the right one; and `phrasing_accuracy`: the
        same by single sentences, the mean over all phrasings. In training, the last two are how often the best text of the
        batch is of the right class.
        """
        from zoo.task.recall import Recall

        return {
            "recall": Recall(0),
            **(
                {"class_recall": Recall(1), "accuracy": Recall(2), "phrasing_accuracy": Recall(3)}
                if self.config.zero_shot
                else {}
            ),
        }


@torch.no_grad()
def classified(model: nn.Module, prompts: Tensor, images: Tensor) -> Tensor:
    """The class that all phrasings together give each image, and that of each: (images, 1 + phrasings).

    Args:
        prompts: (phrasings, classes, tokens), sentences for each class.
        images: (images, size), vectors of length one.
    """
    texts = _exact(model(input_ids=prompts.flatten(0, 1)).text_embeds).unflatten(0, prompts.shape[:2])
    cosines = torch.einsum("pcs,is->ipc", texts, images)
    together = functional.normalize(texts.mean(0), dim=-1) @ images.t()
    return torch.cat([together.t().argmax(-1, keepdim=True), cosines.argmax(-1)], 1)


def _both(output: Any) -> tuple[Tensor, Tensor]:
    """The vectors of images and texts, of which there are as many."""
    images, texts = output.image_embeds, output.text_embeds
    if images is None or texts is None or len(images) != len(texts):
        counts = [0 if each is None else len(each) for each in (images, texts)]
        what = f"{counts[0]} images and {counts[1]} texts"
        raise DataError(f"a batch for contrastive training has a text for each image; this one has {what}")
    return _exact(images), _exact(texts)


def _compared(rows: Tensor, columns: Tensor, output: Any) -> Tensor:
    """The score of each of `rows` (number, size) with each of `columns`."""
    scores = rows @ columns.t() * output.logit_scale
    return scores if output.logit_bias is None else scores + output.logit_bias


def _exact(vectors: Tensor) -> Tensor:
    """The vectors in float32 at least: half precision would round cosines, which are multiplied by a hundred."""
    return vectors.float() if vectors.dtype in (torch.float16, torch.bfloat16) else vectors
