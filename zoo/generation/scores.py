"""What is done to scores before a token is chosen by them.

Each of these takes the tokens so far (rows, tokens) and scores (rows, vocabulary), and returns new scores. They come in the
order of `processors_of`, which is that of transformers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from zoo.generation.options import GenerationOptions

Processor = Callable[[Tensor, Tensor], Tensor]


class Processors:
    """All that is done to scores, in order."""

    def __init__(self, each: Sequence[Processor]) -> None:
        self.each = each

    def __call__(self, tokens: Tensor, scores: Tensor) -> Tensor:
        for process in self.each:
            scores = process(tokens, scores)
        return scores

    def choose(self, rows: Tensor) -> None:
        """Goes on with these rows."""
        for process in self.each:
            if isinstance(process, RepetitionPenalty):
                process.choose(rows)


def processors_of(
    options: GenerationOptions, prompt: int, real: Tensor | None, own: Sequence[Processor] = (), longest: int = 0
) -> Processors:
    """What the options ask for.

    Args:
        prompt: how many tokens the prompt has.
        real: (rows, tokens), true where a token of the prompt is none of padding.
        own: a user's own ones, which come before those that choose among likely tokens.
        longest: how many tokens a text may have, the prompt counted in.
    """
    each: list[Processor] = []
    if options.repetition_penalty != 1:
        each.append(RepetitionPenalty(options.repetition_penalty, real))
    if options.no_repeat_ngram_size:
        each.append(NoRepeat(options.no_repeat_ngram_size))
    if options.bad_words_ids:
        each.append(NoWords(options.bad_words_ids, options.ends))
    if (options.min_new_tokens or options.min_length) and options.ends:
        each.append(NoEnd(options.min_length or prompt + options.min_new_tokens, options.ends))
    if options.forced_bos_token_id is not None:
        each.append(Forced(1, options.forced_bos_token_id))
    if options.forced_eos_token_id is not None:
        each.append(Forced(longest - 1, options.forced_eos_token_id))
    if options.suppress_tokens:
        each.append(NoWords([[token] for token in options.suppress_tokens]))
    each.extend(own)
    if options.do_sample:
        if options.temperature != 1:
            each.append(lambda tokens, scores: scores / options.temperature)
        if options.top_k:
            each.append(lambda tokens, scores: top_k(scores, options.top_k))
        if options.top_p < 1:
            each.append(lambda tokens, scores: top_p(scores, options.top_p))
        if options.min_p:
            each.append(lambda tokens, scores: min_p(scores, options.min_p or 0.0))
    return Processors(each)


class RepetitionPenalty:
    """Makes tokens that stand in the text already less likely (Keskar et al. 2019, https://arxiv.org/abs/1909.05858)."""

    def __init__(self, penalty: float, real: Tensor | None) -> None:
        self.penalty = penalty
        self.skipped = None if real is None else real.int().argmax(1, keepdim=True)  # (rows, 1), padding in front

    def __call__(self, tokens: Tensor, scores: Tensor) -> Tensor:
        known = scores.gather(1, tokens)
        changed = torch.where(known < 0, known * self.penalty, known / self.penalty)
        if self.skipped is None:
            return scores.scatter(1, tokens, changed)
        # what stands for padding is written to a column of its own, so that a real token of the same number keeps its penalty
        padding = torch.arange(tokens.shape[1], device=tokens.device) < self.skipped
        wider = torch.nn.functional.pad(scores, (0, 1))
        return wider.scatter(1, tokens.masked_fill(padding, scores.shape[1]), changed)[:, :-1]

    def choose(self, rows: Tensor) -> None:
        """Goes on with these rows."""
        self.skipped = None if self.skipped is None else self.skipped.index_select(0, rows)


class NoRepeat:
    """Rules out each token that would complete a run of `size` tokens that the text has already."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, tokens: Tensor, scores: Tensor) -> Tensor:
        if tokens.shape[1] < self.size:
            return scores
        runs = tokens.unfold(1, self.size, 1)  # (rows, runs, size)
        begun = tokens[:, tokens.shape[1] - self.size + 1 :]
        same = (runs[..., :-1] == begun[:, None]).all(-1)
        banned = torch.zeros(scores.shape[0], scores.shape[1] + 1, dtype=torch.bool, device=scores.device)
        banned.scatter_(1, torch.where(same, runs[..., -1], scores.shape[1]), True)  # the last column takes what is allowed
        return scores.masked_fill(banned[:, :-1], -math.inf)


class NoEnd:
    """Rules out the tokens that end a text while it is shorter than `length`."""

    def __init__(self, length: int, ends: Sequence[int]) -> None:
        self.length, self.ends = length, list(ends)

    def __call__(self, tokens: Tensor, scores: Tensor) -> Tensor:
        if tokens.shape[1] >= self.length:
            return scores
        scores = scores.clone()
        scores[:, self.ends] = -math.inf
        return scores


class NoWords:
    """Rules out each token that would complete one of these runs of tokens; a run of one that ends texts is no such word."""

    def __init__(self, words: Sequence[Sequence[int]], ends: Sequence[int] = ()) -> None:
        self.words = [list(word) for word in words if len(word) > 1 or word[0] not in ends]
        self.never = sorted({word[0] for word in self.words if len(word) == 1})

    def __call__(self, tokens: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        scores[:, self.never] = -math.inf
        for word in self.words:
            begun = len(word) - 1
            if begun and tokens.shape[1] >= begun:
                same = (tokens[:, tokens.shape[1] - begun :] == torch.tensor(word[:-1], device=tokens.device)).all(1)
                scores[:, word[-1]] = scores[:, word[-1]].masked_fill(same, -math.inf)
        return scores


class Forced:
    """Rules out all but one token where a text has `length` tokens."""

    def __init__(self, length: int, token: int) -> None:
        self.length, self.token = length, token

    def __call__(self, tokens: Tensor, scores: Tensor) -> Tensor:
        if tokens.shape[1] != self.length:
            return scores
        scores = torch.full_like(scores, -math.inf)
        scores[:, self.token] = 0
        return scores


def top_k(scores: Tensor, number: int) -> Tensor:
    """Rules out all but the `number` highest scores, and those that equal the lowest of them."""
    least = scores.topk(min(number, scores.shape[1]))[0][:, -1:]
    return scores.masked_fill(scores < least, -math.inf)


def top_p(scores: Tensor, share: float) -> Tensor:
    """Rules out the least likely tokens, as long as what is left has the probability `share` together."""
    left = int((scores > -math.inf).sum(1).max()) if scores.device.type == "cpu" else scores.shape[1]
    ordered, places = scores.topk(max(left, 1))  # sorting all takes longer than to know how many there are
    behind = ordered.softmax(-1).flip(-1).cumsum(-1).flip(-1)  # the probability of each and of all that are less likely
    out = behind <= 1 - share
    out[:, 0] = False
    out = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, places, out)
    return scores.masked_fill(out, -math.inf)


def min_p(scores: Tensor, share: float) -> Tensor:
    """Rules out tokens with less than `share` of the likeliest one's probability."""
    likely = scores.softmax(-1)
    return scores.masked_fill(likely < share * likely.amax(-1, keepdim=True), -math.inf)


def draw(scores: Tensor, chance: Tensor) -> Tensor:
    """The token, (rows,), at which the probabilities summed up from token 0 on exceed `chance` (rows,), in [0, 1)."""
    summed = scores.softmax(-1).cumsum(-1, dtype=chance.dtype)
    found: Any = torch.searchsorted(summed, chance[:, None] * summed[:, -1:], right=True)
    return found.squeeze(1).clamp(max=scores.shape[1] - 1)
