"""Beam search: several continuations of each prompt are followed, and the best ones that end are returned."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.generation.options import GenerationOptions
from zoo.generation.sampling import Kept
from zoo.generation.scores import Processors
from zoo.generation.steps import Steps
from zoo.generation.stopping import Stop

NEVER = -1e9
"""The log-probability that all beams but the first begin with, as they are all alike."""


class Ended(NamedTuple):
    """The best texts of each prompt that have come to an end, best first."""

    tokens: Tensor
    """(prompts, beams, tokens)"""
    worth: Tensor
    """(prompts, beams): log-probabilities divided by lengths to the penalty; minus infinity where there is none yet."""
    sizes: Tensor
    """(prompts, beams): how many tokens were generated."""

    def best_with(self, tokens: Tensor, worth: Tensor, size: int) -> Ended:
        """The best of these and of further ones, which have generated `size` tokens each."""
        best, at = torch.cat([self.worth, worth], 1).topk(self.worth.shape[1])
        sizes = torch.cat([self.sizes, torch.full_like(at[:, :1], size).expand_as(worth)], 1)
        return Ended(_take(torch.cat([self.tokens, tokens], 1), at), best, sizes.gather(1, at))


def search(
    steps: Steps,
    tokens: Tensor,
    start: int,
    scores: Tensor,
    processors: Processors,
    stop: Stop,
    options: GenerationOptions,
    *,
    kept: Kept,
    drops: bool = True,
) -> tuple[Tensor, Tensor]:
    """Follows the `num_beams` likeliest continuations of each prompt (Wu et al. 2016, https://arxiv.org/abs/1609.08144).

    The arguments are those of `zoo.generation.sampling.decode`; there are as many rows as prompts.

    Returns:
        (prompts x num_return_sequences, tokens) and the worth of each, best first.
    """
    beams, penalty, vocabulary = options.num_beams, options.length_penalty, scores.shape[1]
    prompts, length = tokens.shape
    # as many as can end at once are looked at beside those that go on
    looked_at = min(max(2, 1 + len(options.ends)) * beams, beams * vocabulary)
    rows = torch.arange(prompts, device=tokens.device).repeat_interleave(beams)
    steps.choose(rows)
    processors.choose(rows)
    scores = scores[rows]
    running = tokens[:, None].repeat(1, beams, 1)
    value = scores.new_full((prompts, beams), NEVER)  # the log-probability of each beam
    value[:, 0] = 0
    ended = Ended(running, torch.full_like(value, -math.inf), torch.zeros_like(rows).view(prompts, beams))
    result = ended
    going = torch.arange(prompts, device=tokens.device)  # the prompts whose beams go on
    over = torch.zeros(prompts, dtype=torch.bool, device=tokens.device)  # which of these have come to an end
    for place in range(start, length):
        size = place - start + 1
        if kept.logits is not None:
            kept.logits.append(scores)
        likely = processors(running[:, :, :place].flatten(0, 1), scores.log_softmax(-1))
        if kept.scores is not None:
            kept.scores.append(likely)
        total = likely.view(len(running), beams, vocabulary) + value[:, :, None]
        best, at = total.flatten(1).topk(looked_at)
        origin = at.div(vocabulary, rounding_mode="floor")
        seen = _take(running, origin)
        seen[:, :, place] = at % vocabulary
        if place == length - 1:
            ends = torch.ones_like(best, dtype=torch.bool)
        elif stop:
            ends = stop(seen[:, :, : place + 1].flatten(0, 1)).view_as(best)
        else:
            ends = torch.zeros_like(best, dtype=torch.bool)
        # only what is among the best `num_beams` ends; the others are looked at so that enough go on
        fresh = best[:, :beams].masked_fill(~ends[:, :beams] | over[:, None], -math.inf) / size**penalty
        ended = ended.best_with(seen[:, :beams], fresh, size)
        value, at = best.masked_fill(ends, -math.inf).topk(beams)
        running, origin = _take(seen, at), origin.gather(1, at)
        over = over | _over(ended.worth, value, size, length - start, options)
        if place == length - 1 or bool((over | (value[:, 0] == -math.inf)).all()):
            break
        if drops and bool(over.any()):
            result = _stored(result, ended, going)
            left = (~over).nonzero().squeeze(1)
            going, over, value, origin, running = going[left], over[left], value[left], origin[left], running[left]
            ended = Ended(*(each[left] for each in ended))
        else:
            left = torch.arange(len(running), device=tokens.device)
        rows = (origin + left[:, None] * beams).flatten()
        if len(left) * beams != len(scores) or not torch.equal(rows, torch.arange(len(rows), device=rows.device)):
            steps.choose(rows)
            processors.choose(rows)
        scores = steps.next(running[:, :, place].flatten())
    result = _stored(result, ended, going)
    returned = options.num_return_sequences
    end = start + int(result.sizes[:, :returned].max())
    return result.tokens[:, :returned, :end].flatten(0, 1), result.worth[:, :returned].flatten()


def _over(worth: Tensor, value: Tensor, size: int, most: int, options: GenerationOptions) -> Tensor:
    """(prompts,), whether what goes on can no longer become one of the best: `early_stopping` says how this is judged."""
    full = worth[:, -1] > -math.inf
    if options.early_stopping is True:
        return full
    reach = most if options.early_stopping == "never" and options.length_penalty > 0 else size
    return full & ~(value[:, 0] / reach**options.length_penalty > worth[:, -1])


def _stored(result: Ended, ended: Ended, prompts: Tensor) -> Ended:
    """The result with what these prompts have ended with."""
    return Ended(*(whole.index_copy(0, prompts, part) for whole, part in zip(result, ended)))


def _take(each: Tensor, at: Tensor) -> Tensor:
    """(prompts, several, tokens), (prompts, chosen) -> (prompts, chosen, tokens)"""
    return each.gather(1, at[:, :, None].expand(-1, -1, each.shape[2]))
