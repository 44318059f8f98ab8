"""One token after another: the likeliest, or one that is drawn."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoo.errors import InputError
from zoo.generation.options import GenerationOptions
from zoo.generation.scores import Processors, draw
from zoo.generation.steps import Steps
from zoo.generation.stopping import Stop

ALWAYS = ("cpu",)
"""Where looking at values costs nothing."""
PATIENCE = 16
"""After how many tokens to look elsewhere whether all texts have ended: a device has to be waited for."""


class Kept(NamedTuple):
    """What is kept of each step, if it was asked for."""

    scores: list[Tensor] | None
    logits: list[Tensor] | None


def chances(options: GenerationOptions, rows: int, new: int, generator: torch.Generator | None, device: Any) -> Tensor | None:
    """(rows, new), uniform in [0, 1), one for each token that may be drawn; None where none is.

    All randomness is here, so that a row draws the same whatever other rows there are and whenever they end.

    Raises:
        InputError: another number of seeds than of rows.
    """
    if not options.do_sample:
        return None
    kind = torch.float32 if device.type == "mps" else torch.float64
    if options.seed is None:
        place = "cpu" if generator is None else generator.device
        return torch.rand(rows, new, dtype=kind, generator=generator, device=place).to(device)
    seeds = options.seed if isinstance(options.seed, list) else [(options.seed + row) % 2**63 for row in range(rows)]
    if len(seeds) != rows:
        raise InputError(f"seed: {len(seeds)} seeds for {rows} rows")
    drawn = [torch.rand(new, dtype=kind, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(drawn).to(device)


def decode(
    steps: Steps,
    tokens: Tensor,
    start: int,
    scores: Tensor,
    processors: Processors,
    stop: Stop,
    *,
    fill: int | None,
    chance: Tensor | None,
    kept: Kept,
    streamer: Any = None,
    drops: bool = True,
) -> Tensor:
    """Generates until every text has ended.

    Args:
        tokens: (rows, start + new), with the prompts in front and `fill` behind them; it is written into.
        scores: (rows, vocabulary), for the first token.
        chance: (rows, new), what to draw by; None takes the likeliest tokens.
        streamer: gets the new tokens of each step, (rows,), on the CPU.
        drops: whether rows that have ended may leave the batch, so that they cost no more.

    Returns:
        (rows, tokens), as many as the longest text has.
    """
    whole, rows = tokens, None  # `tokens` are the rows that go on, and `rows` says which of the whole they are
    ended = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device) if stop else None
    patience = 1 if tokens.device.type in ALWAYS or streamer is not None else PATIENCE
    unseen: list[Tensor] = []  # which rows had ended, after each step that nobody has looked at yet
    last = tokens.shape[1] - 1
    for place in range(start, last + 1):
        if kept.logits is not None:
            kept.logits.append(scores)
        if processors.each:
            scores = processors(tokens[:, :place], scores)
        if kept.scores is not None:
            kept.scores.append(scores)
        new = scores.max(-1).indices if chance is None else draw(scores, chance[:, place - start])
        if ended is not None:
            new = new.masked_fill(ended, fill or 0)
        tokens[:, place] = new
        if streamer is not None:
            streamer(_spread(new, rows, whole, fill))
        if ended is not None:
            ended = ended | stop(tokens[:, : place + 1])
            unseen.append(ended)
            if len(unseen) >= patience or place == last:
                over = torch.stack(unseen).all(1).tolist()
                if True in over:
                    end = place + 1 - len(over) + over.index(True) + 1
                    break
                unseen = []
                if drops and place < last and int(ended.sum()) * 2 >= len(ended):
                    left = (~ended).nonzero().squeeze(1)
                    if rows is not None:
                        whole[rows] = tokens
                    rows = left if rows is None else rows[left]
                    tokens, ended, new = tokens[left], ended[left], new[left]
                    chance = None if chance is None else chance[left]
                    steps.choose(left)
                    processors.choose(left)
        if place < last:
            scores = steps.next(new)
    else:
        end = last + 1
    if rows is not None:
        whole[rows] = tokens
    for each in (kept.scores, kept.logits):
        if each is not None:
            del each[end - start :]
    return whole[:, :end]


def _spread(new: Tensor, rows: Tensor | None, whole: Tensor, fill: int | None) -> Tensor:
    """The new tokens of the whole batch, on the CPU; rows that have left it get padding."""
    if rows is None:
        return new.cpu()
    spread = new.new_full((len(whole),), fill or 0)
    spread[rows] = new
    return spread.cpu()
