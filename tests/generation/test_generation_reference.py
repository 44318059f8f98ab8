"""Greedy and beam search give what transformers gives, token for token, from equal weights."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from generation_helpers import pair, prompts

pytest.importorskip("transformers")
ENDS: list[Any] = [None, 5, list(range(3, 12)), list(range(30)), [7, 9, 21]]
"""So many tokens of 61 end a text that some rows end at once, some later, and some never."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("references")


@pytest.fixture(scope="module")
def both(folder: Path) -> tuple[Any, Any]:
    return pair("gpt2", folder / "gpt2")


def cases(number: int, beams: tuple[int, ...]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Random prompts and options, the same every time."""
    choose, found = random.Random(7), []
    for index in range(number):
        new = choose.choice([1, 3, 8, 14])
        options: dict[str, Any] = {"max_new_tokens": new, "pad_token_id": 60, "num_beams": choose.choice(beams)}
        ends = choose.choice(ENDS)
        options |= {} if ends is None else {"eos_token_id": ends}
        if choose.random() < 0.3:
            options["repetition_penalty"] = choose.choice([1.5, 0.7, 3.0])
        if choose.random() < 0.3:
            options["no_repeat_ngram_size"] = choose.choice([1, 2, 3])
        if choose.random() < 0.3:
            options["min_new_tokens"] = choose.randint(1, new)
        if options["num_beams"] > 1:
            options["length_penalty"] = choose.choice([-1.0, 0.0, 1.0, 2.0])
            options["early_stopping"] = choose.choice([True, False, "never"])
            options["num_return_sequences"] = choose.randint(1, options["num_beams"])
        found.append((prompts(choose.choice([1, 8, 8]), choose.choice([1, 4, 9, 20]), seed=index), options))
    return found


@pytest.mark.parametrize("beams", [(1,), (2, 4, 5)], ids=["greedy", "beam"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral"])
def test_tokens_equal_those_of_transformers(folder: Path, family: str, beams: tuple[int, ...]) -> None:
    """Mistral's window is five tokens, so that its cache drops most of each text."""
    number = 60
    ours, theirs = pair(family, folder / f"{family}-{len(beams)}")
    rows = early = 0
    for index, (texts, options) in enumerate(cases(number, beams)):
        found = ours.generate(**texts, **options)
        expected = theirs.generate(**texts, **options)
        assert torch.equal(found, expected), (index, options)
        prompt = texts["input_ids"].shape[1]
        rows += len(texts["input_ids"])
        early += bool((found[:, prompt:] == 60).any()) or found.shape[1] < prompt + options["max_new_tokens"]
    assert rows >= 200 and early >= 10  # texts did end before others, so that the ends were tried


@pytest.mark.parametrize("penalty", [-1.0, 0.0, 1.0, 2.0])
@pytest.mark.parametrize("early", [True, False, "never"])
def test_worth_of_beams(both: tuple[Any, Any], penalty: float, early: Any) -> None:
    options = {
        "max_new_tokens": 9, "num_beams": 4, "num_return_sequences": 4, "eos_token_id": ENDS[2], "pad_token_id": 60,
        "length_penalty": penalty, "early_stopping": early, "output_scores": True, "return_dict_in_generate": True,
    }  # fmt: skip
    found, expected = (model.generate(**prompts(8), **options) for model in both)
    assert torch.equal(found.sequences, expected.sequences) and found.past_key_values is None
    assert torch.allclose(found.sequences_scores, expected.sequences_scores, rtol=1e-6, atol=1e-6)  # float32 sums, as theirs
    assert len(found.scores) == len(expected.scores) and found.scores[0].shape == (32, 61)
