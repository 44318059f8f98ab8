"""Writing one text for another, such as its translation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from zoo.config import Problem
from zoo.config.base import Count
from zoo.data.pairs import IGNORED
from zoo.errors import DataError
from zoo.task.base import Direction, Step, Task, TaskConfig, step_of


class SequenceToSequence(Task):
    """Learns to write a target for a source: each token of the target is guessed from the source and those before it.

    In training the tokens before are always the right ones (teacher forcing). What counts is whether the model, left alone,
    writes the whole target: the share of examples where it does is `exact_match`. Taking the likeliest token each time, it
    does exactly where each token is the likeliest behind the right ones, so that one pass can tell as well; where a model is
    measured it is made to write nevertheless, step by step as it will be used.

    Papers: Sutskever et al. 2014, https://arxiv.org/abs/1409.3215; Vaswani et al. 2017, https://arxiv.org/abs/1706.03762,
    section 5.4 (label smoothing).
    """

    class Config(TaskConfig):
        """Config of the `sequence-to-sequence` task."""

        type: Literal["sequence-to-sequence"] = "sequence-to-sequence"
        label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
        """Share of each target that is spread evenly over all tokens, in training; the first transformer had 0.1."""
        written: Count | None = None
        """How many targets of each batch are written step by step where a model is measured, the first ones; what is left
        is told from one pass (default: all of them)."""

        def problems(self, **context: Any) -> Iterator[Problem]:
            model, data = context["model"], context.get("data")
            name = "task 'sequence-to-sequence'"
            if model.type != "encoder-decoder":
                yield ("model", "type"), f"{name} needs a model of type 'encoder-decoder', and this is {model.type!r}"
                return
            head = model.decoder.head
            if getattr(head, "type", None) != "language-model":
                found = "none" if head is None else repr(head.type)
                yield ("model", "decoder", "head"), f"{name} needs a head of type 'language-model', and this is {found}"
            if data is not None and not hasattr(data, "target_length"):
                yield ("data",), f"{name} needs pairs of texts, and data {data.type!r} have none"

    config: Config
    best: ClassVar[tuple[str, Direction]] = ("exact_match", "max")

    end: int | None = None
    """The token that ends a target."""

    def adapt(self, data: Any) -> None:
        """Takes from the data which token ends a target.

        Raises:
            DataError: no token does.
        """
        self.end = data.tokenizer.end
        if self.end is None:
            raise DataError(f"{data.place}: its tokenizer has no token that ends a text, so that no target would ever end")

    def step(self, model: nn.Module, batch: Any) -> Step:
        """The loss of a batch, the mean over all tokens of its targets, in nats.

        A batch is a mapping with the inputs of the encoder and `labels` (batch, tokens), the targets with -100 where they are
        filled up. Predictions (tokens, 2) are for each token of a target the likeliest one, and at the first of each target
        whether the whole of it came out right, 1 or 0, and -1 at the others. Targets (tokens,) are the right tokens.

        Raises:
            DataError: no labels, or such that are no targets.
        """
        if not isinstance(batch, Mapping) or getattr(batch.get("labels"), "ndim", 0) != 2:
            raise DataError("a batch for sequence-to-sequence training is a mapping with 'labels' of shape (batch, tokens)")
        inputs, labels = {name: value for name, value in batch.items() if name != "labels"}, batch["labels"]
        guessed = labels != IGNORED
        shifted: Any = model.shifted
        output = model(**inputs, decoder_input_ids=shifted(labels), score_mask=guessed)
        scores: Tensor = output.logits.float()
        targets = labels[guessed]
        smoothing = self.config.label_smoothing if model.training else 0.0
        loss = functional.cross_entropy(scores, targets, label_smoothing=smoothing) if len(targets) else scores.sum()
        likeliest = scores.detach().argmax(-1)
        found = labels.masked_scatter(guessed, likeliest)
        right = (found == labels).all(1)
        if not model.training:
            self._write(model, inputs, labels, right)
        judged = torch.full_like(labels, -1)
        judged[:, 0] = right.to(labels.dtype)
        return step_of(loss, output, torch.stack([likeliest, judged[guessed]], dim=-1), targets)

    def metrics(self, model: nn.Module) -> Mapping[str, Any]:
        """`accuracy`: of how many tokens of targets the likeliest one is right; `exact_match`: how many targets are."""
        from zoo.task.exact_match import Right

        return {"accuracy": Right(0), "exact_match": Right(1)}

    def _write(self, model: Any, inputs: Mapping[str, Tensor], labels: Tensor, right: Tensor) -> None:
        """Lets the model write the first targets of a batch, and puts into `right` (batch,) which of them it wrote."""
        rows = len(labels) if self.config.written is None else min(self.config.written, len(labels))
        # processes that share the weights of one model would have to take every step together
        shared = any(hasattr(parameter, "to_local") for parameter in model.parameters())
        if not rows or self.end is None or shared:
            return
        some = {name: value[:rows] for name, value in inputs.items()}
        wanted = labels[:rows].masked_fill(labels[:rows] == IGNORED, self.end)
        said = model.generate(**some, max_new_tokens=labels.shape[1], eos_token_id=self.end, pad_token_id=self.end)[:, 1:]
        said = functional.pad(said, (0, labels.shape[1] - said.shape[1]), value=self.end)
        right[:rows] = (said == wanted).all(1)


__all__ = ["SequenceToSequence"]
