"""Generation with GPT-2 against transformers, beside what the memory allows."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import zoo
from benchmarks.harness import interleave

PROMPT, NEW = 32, 64


class Job(NamedTuple):
    """A GPT-2 and how many texts it continues."""

    batch: int
    sizes: dict[str, int]
    """What differs from gpt2 (124M)."""


NARROW = {"n_embd": 48, "vocab_size": 1024}
JOBS = {
    "gpt2-generate": Job(1, {}),
    "gpt2-generate-8": Job(8, {}),
    "gpt2-narrow-generate": Job(1, NARROW),
    "gpt2-narrow-generate-8": Job(8, NARROW),
}
"""The narrow ones compute next to nothing: what they take is what each token costs beside the products."""


@functools.lru_cache(maxsize=1)
def contenders(name: str) -> tuple[Any, Any]:
    """The same model with the same fresh weights: transformers draws and saves them, zoo reads the folder."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    torch.manual_seed(0)
    config = transformers.GPT2Config(**JOBS[name].sizes, bos_token_id=None, eos_token_id=None)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = zoo.load(folder)
        ours.load_state_dict({key: value.clone() for key, value in ours.state_dict().items()}, assign=True)
    return ours.eval(), theirs


def work(model: Any, ids: Tensor, **options: Any) -> Callable[[], Tensor]:
    """One call of `generate`, greedy; every contender is told the same."""
    mask = torch.ones_like(ids)
    return lambda: model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=NEW, min_new_tokens=NEW, **options)


def reading(model: Any) -> Callable[[], Any]:
    """Reads every weight once for each new token, and does nothing else: no token can come sooner at this batch size."""
    table = model.embedding.table  # the head reads it whole; of the positions a token reads one row
    read = {each for name, each in model.named_parameters() if "embedding" not in name} | {table}
    weights = torch.cat([each.detach().flatten() for each in read])
    return lambda: [weights.sum() for _ in range(NEW)]


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Milliseconds for each new token, the reading of the prompt counted in, and ours as a multiple of the faster peer's."""
    job = JOBS[name]
    ours, theirs = contenders(name)
    ids = torch.randint(0, ours.config.embedding.vocabulary, (job.batch, PROMPT), generator=torch.Generator().manual_seed(0))
    jobs: dict[str, Callable[[], Any]] = {
        "zoo": work(ours, ids),
        "transformers": work(theirs, ids),
        "transformers, static cache": work(theirs, ids, cache_implementation="static"),
    }
    answers = {key: run() for key, run in jobs.items()}
    assert all(torch.equal(each, answers["zoo"]) for each in answers.values()), "the contenders say different tokens"
    assert answers["zoo"].shape == (job.batch, PROMPT + NEW)
    jobs["reading the weights"] = reading(ours)
    timings = interleave(jobs, "zoo", rounds, warmup=1)
    return {
        "model": name,
        "mode": f"{job.batch} x {PROMPT} + {NEW} tokens",
        "dtype": "float32",
        "milliseconds": {key: round(timing.median / NEW * 1e3, 2) for key, timing in timings.items()},
        "spread": {key: round(timing.spread, 3) for key, timing in timings.items()},
        "faster than the faster peer": round(
            min(timing.ratio for key, timing in timings.items() if key.startswith("transformers")), 3
        ),
        "tokens a second": round(job.batch * NEW / timings["zoo"].median, 1),
    }
