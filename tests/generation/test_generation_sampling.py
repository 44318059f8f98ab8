"""Scores and draws are those of transformers, from equal weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from generation_helpers import pair, prompts

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return pair("gpt2", tmp_path_factory.mktemp("gpt2"), layers=1)


PROCESSED: dict[str, dict[str, Any]] = {
    "plain": {"top_k": 0},
    "default": {},
    "temperature": {"temperature": 0.6, "top_k": 0},
    "top_k": {"top_k": 7},
    "top_p": {"top_p": 0.7, "top_k": 0},
    "top_p of top_k": {"top_p": 0.8, "top_k": 12},
    "top_p of one": {"top_p": 0.0},
    "min_p": {"min_p": 0.2, "top_k": 0},
    "repetition_penalty": {"repetition_penalty": 2.5, "top_k": 0},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1, "top_k": 0},
    "min_new_tokens": {"min_new_tokens": 3, "eos_token_id": list(range(30)), "top_k": 0},
    "all": {
        "temperature": 1.7, "top_k": 20, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 0.5, "no_repeat_ngram_size": 2,
        "min_new_tokens": 2, "eos_token_id": 5,
    },
}  # fmt: skip
"""What acts on scores, alone and together. The order shows where they act together."""


@pytest.mark.parametrize("name", PROCESSED)
def test_scores_equal_those_of_transformers(both: tuple[Any, Any], name: str) -> None:
    options = {**PROCESSED[name], "do_sample": True, "max_new_tokens": 3, "pad_token_id": 60}
    asked = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    for seed in range(6):
        texts = prompts(8, 12, seed=seed)
        found, expected = (model.generate(**texts, **options, **asked) for model in both)
        assert torch.allclose(found.logits[0], expected.logits[0], atol=1e-6)
        assert torch.equal(found.scores[0] == -torch.inf, expected.scores[0] == -torch.inf)
        assert torch.allclose(found.scores[0], expected.scores[0], atol=1e-6)


@pytest.mark.parametrize("name", PROCESSED)
def test_draws_are_distributed_as_those_of_transformers(both: tuple[Any, Any], name: str) -> None:
    """Chi-square of 20,000 draws against the probabilities that transformers draws by."""
    ours, theirs = both
    texts = prompts(1, 6, seed=11)
    new = PROCESSED[name].get("min_new_tokens", 1)
    options = {**PROCESSED[name], "do_sample": True, "max_new_tokens": new, "pad_token_id": 60}
    scores = theirs.generate(**texts, **options, return_dict_in_generate=True, output_scores=True).scores[0]
    likely = scores[0].double().softmax(0)
    drawn = [ours.generate(**texts, **options, num_return_sequences=5000, seed=5000 * part)[:, 6] for part in range(4)]
    assert fits(torch.cat(drawn).bincount(minlength=61), likely)


def test_pairs_of_draws(both: tuple[Any, Any]) -> None:
    """The second token is drawn by what the first one was, and by chances of its own."""
    ours, theirs = both
    texts = prompts(1, 6, seed=12)
    options = {"do_sample": True, "top_k": 4, "temperature": 2.0, "pad_token_id": 60}
    asked = {"max_new_tokens": 1, "return_dict_in_generate": True, "output_scores": True}
    first = theirs.generate(**texts, **options, **asked).scores[0][0].double().softmax(0)
    expected = torch.zeros(61, 61, dtype=torch.float64)
    for token in first.nonzero().flatten():
        longer = torch.cat([texts["input_ids"], token.view(1, 1)], 1)
        second = theirs.generate(longer, **options, **asked).scores[0][0].double().softmax(0)
        expected[token] = first[token] * second
    for chance in ({"seed": 1}, {"generator": torch.Generator().manual_seed(2)}, {}):
        drawn = ours.generate(**texts, **options, **chance, max_new_tokens=2, num_return_sequences=10_000)[:, -2:]
        assert fits((drawn[:, 0] * 61 + drawn[:, 1]).bincount(minlength=61 * 61), expected.flatten())


def fits(counts: torch.Tensor, likely: torch.Tensor) -> bool:
    """Whether chi-square is at most four of its deviations above its mean, and nothing impossible was drawn."""
    expected = likely * counts.sum()
    if int(counts[likely == 0].sum()):
        return False
    rare = expected < 5
    groups = [(counts[~rare], expected[~rare]), (counts[rare].sum()[None], expected[rare].sum()[None])]
    seen, wanted = (torch.cat([group[index].double() for group in groups]) for index in (0, 1))
    seen, wanted = seen[wanted > 0], wanted[wanted > 0]
    freedom = max(len(seen) - 1, 1)
    return float(((seen - wanted).square() / wanted).sum()) < freedom + 4 * (2 * freedom) ** 0.5
