"""Guessing words that are masked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from zoo.config import Problem
from zoo.config.base import Count, Probability, raise_problems
from zoo.errors import ConfigError, DataError
from zoo.extras import require
from zoo.task import unigram
from zoo.task.base import Direction, Step, Task, TaskConfig, step_of

IGNORED = -100
"""The label of a token that is not guessed, as in torch and transformers."""


class MaskedLanguage(Task):
    """Guesses words that are hidden in a text, from the words around them.

    Whole words are chosen anew in each step; of those chosen, most are replaced by the mask token, some by random
    tokens, and some stay as they are. When a model is measured, the choice follows from the text alone, so that it is the
    same every time and for every size of batches.

    Papers: Devlin et al. 2018, https://arxiv.org/abs/1810.04805, section 3.1; Wettig et al. 2022,
    https://arxiv.org/abs/2202.08005 (larger shares).
    """

    class Config(TaskConfig):
        """Config of the `masked-language` task."""

        type: Literal["masked-language"] = "masked-language"
        share: Annotated[float, Field(gt=0, le=1)] = 0.15
        """How likely each word is to be guessed."""
        training_share: Annotated[float, Field(gt=0, le=1)] | None = None
        """The same in training, where more words may teach faster (default: `share`)."""
        masked: Probability = 0.8
        """How many of these words become mask tokens."""
        random: Probability = 0.1
        """How many of them become random tokens; the rest stay as they are."""
        mask_token: Count | None = None
        """The id of the mask token (default: that of the data's tokenizer)."""

        @model_validator(mode="after")
        def _valid(self) -> Any:
            if self.masked + self.random > 1 + 1e-9:
                what = f"{self.random:g} and masked {self.masked:g} are more than all of the words"
                raise_problems("task", [(("random",), what)])
            return self

        def problems(self, **context: Any) -> Iterator[Problem]:
            head, data = context["model"].head, context.get("data")
            if getattr(head, "type", None) != "masked-language-model":
                found = "none" if head is None else repr(head.type)
                expected = "task 'masked-language' needs a head of type 'masked-language-model'"
                yield ("model", "head"), f"{expected}, and this is {found}"
            if data is not None and not hasattr(data, "tokenizer"):
                yield ("data",), f"task 'masked-language' needs texts, and data {data.type!r} have none"

    config: Config
    best: ClassVar[tuple[str, Direction]] = ("loss", "min")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.mask_token = config.mask_token
        self.special: list[int] = []

    def adapt(self, data: Any) -> None:
        """Takes the mask token from the data's tokenizer, and has the data say which token is of which word.

        Raises:
            ConfigError: the tokenizer has no mask token.
        """
        tokenizer = getattr(data, "tokenizer", None)
        if tokenizer is None:
            return
        data.words = True
        roles = (tokenizer.padding, tokenizer.start, tokenizer.end, tokenizer.mask)
        self.special = [role for role in roles if role is not None]
        if self.config.mask_token is None:
            self.mask_token = tokenizer.mask
        if self.mask_token is None:
            raise ConfigError(f"task.mask_token: the tokenizer of {data.place} has no mask token, so say which id to take")

    def step(self, model: nn.Module, batch: Any) -> Step:
        """The loss of a batch, the mean over all tokens that are guessed.

        A batch is a mapping with the model's inputs and `word_ids` (batch, tokens), which word of its text each token is
        of, -1 for none; or, if words are masked already, with `labels` (batch, tokens), -100 for what is not guessed.
        Predictions and targets are the likeliest token and the right one, of all tokens that are guessed.

        Raises:
            DataError: neither of the two is there.
        """
        inputs, labels = self._masked(model, batch)
        guessed = labels != IGNORED
        output = model(**inputs, score_mask=guessed)
        scores: Tensor = output.logits.float()
        targets = labels[guessed]
        loss = functional.cross_entropy(scores, targets) if len(targets) else scores.sum()
        return step_of(loss, output, scores.detach().argmax(-1), targets)

    def metrics(self, model: nn.Module) -> Mapping[str, Any]:
        """The share of guessed tokens whose highest score is the right token."""
        classification = require("torchmetrics.classification", "train", "training")
        vocabulary: int = model.config.embedding.vocabulary  # type: ignore[union-attr, assignment]
        return {"accuracy": classification.MulticlassAccuracy(vocabulary, average="micro", validate_args=False)}

    def references(self, data: Any, split: Any, targets: Tensor) -> Mapping[str, float]:
        """What guessing by frequencies alone reaches; see `zoo.task.unigram.references`."""
        return unigram.references(data, split, targets)

    def _masked(self, model: nn.Module, batch: Any) -> tuple[dict[str, Tensor], Tensor]:
        """The inputs with words hidden in them, and the labels (batch, tokens)."""
        if not isinstance(batch, Mapping) or "input_ids" not in batch:
            raise DataError("a batch for masked-language training is a mapping with 'input_ids'")
        inputs = {name: value for name, value in batch.items() if name not in ("word_ids", "labels")}
        ids: Tensor = inputs["input_ids"]
        if "word_ids" not in batch:
            if "labels" not in batch or batch["labels"].shape != ids.shape:
                raise DataError("a batch for masked-language training has 'word_ids' or 'labels' of the shape of 'input_ids'")
            return inputs, batch["labels"]
        if self.mask_token is None:
            raise ConfigError("task.mask_token: these data do not say which token is the mask, so say its id")
        words, texts = batch["word_ids"], batch.get("sequence_ids")
        share = (self.config.training_share or self.config.share) if model.training else self.config.share
        draws = torch.rand(3, *ids.shape, device=ids.device) if model.training else drawn(ids, words, texts)
        chance, kind = _of_words(draws[:2], words, texts)
        guessed = (chance < share) & (words >= 0)
        becomes_random = guessed & (kind >= self.config.masked) & (kind < self.config.masked + self.config.random)
        becomes_mask = guessed & (kind < self.config.masked)
        vocabulary: int = model.config.embedding.vocabulary  # type: ignore[union-attr, assignment]
        other = (draws[2] * vocabulary).long()
        if self.special:
            other = torch.where(torch.isin(other, other.new_tensor(self.special)), ids, other)
        hidden = torch.where(becomes_random, other, ids).masked_fill(becomes_mask, self.mask_token)
        return {**inputs, "input_ids": hidden}, ids.masked_fill(~guessed, IGNORED)


def drawn(ids: Tensor, words: Tensor, texts: Tensor | None) -> Tensor:
    """Numbers from 0 to 1 (3, batch, tokens) that follow from what each text says, wherever in a batch it stands."""
    here, numbers = ids.device, torch.zeros(3, *ids.shape)
    ids, words = ids.cpu(), words.cpu()
    parts = torch.zeros_like(ids) if texts is None else texts.cpu()
    for row, real in enumerate(words >= 0):
        for part in parts[row][real].unique():
            places = (real & (parts[row] == part)).nonzero().squeeze(1)
            digest = hashlib.blake2b(ids[row, places].numpy().tobytes(), digest_size=8, person=b"masked-language").digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
            numbers[:, row, places] = torch.rand(3, len(places), generator=generator)
    return numbers.to(here)


def _of_words(draws: Tensor, words: Tensor, texts: Tensor | None) -> Tensor:
    """For each token, what was drawn for the first token of its word; of the shape of `draws`."""
    first = torch.ones_like(words, dtype=torch.bool)
    first[:, 1:] = words[:, 1:] != words[:, :-1]
    if texts is not None:
        first[:, 1:] |= texts[:, 1:] != texts[:, :-1]
    places = torch.arange(words.shape[1], device=words.device).expand(words.shape)
    places = torch.where(first, places, 0).cummax(1).values
    return draws.gather(2, places.expand(draws.shape))
