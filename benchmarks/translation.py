"""Encoder-decoders against transformers: forward pass, training step, and texts written greedily and by beam search."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

import zoo
from benchmarks.harness import Products, interleave
from zoo import kernel
from zoo.model.base import Model

SOURCE, TARGET, BATCH, NEW = 128, 64, 4, 64
"""Tokens of a source and a target, pairs of a batch, and tokens that are written."""


class Writing(NamedTuple):
    """A model, how many sources it writes from, and how many beams it follows for each."""

    model: str
    batch: int
    beams: int = 1


MODELS = ("bart-base", "t5-small")
WRITING = {
    f"{model}-generate{name}": Writing(model, batch, beams)
    for model in MODELS
    for name, batch, beams in (("", 1, 1), ("-8", 8, 1), ("-beams", 1, 4), ("-8-beams", 8, 4))
}
JOBS = (*MODELS, *WRITING)


@functools.lru_cache(maxsize=1)
def contenders(name: str) -> dict[str, nn.Module]:
    """The same model with the same fresh weights: zoo draws them and writes the other's folder."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    torch.manual_seed(0)
    ours = zoo.build(name)
    with tempfile.TemporaryDirectory() as folder:
        opened = transformers.AutoModelForSeq2SeqLM.from_pretrained(
            zoo.export(ours, Path(folder) / "transformers"), attn_implementation="sdpa"
        )
    opened.generation_config.eos_token_id = opened.generation_config.forced_eos_token_id = None
    return {"zoo": ours, "transformers": opened}


def inputs(vocabulary: int) -> dict[str, Tensor]:
    """A batch of sources without padding, and what the decoder reads."""
    draw = torch.Generator().manual_seed(0)
    source, target = (torch.randint(3, vocabulary, (BATCH, size), generator=draw) for size in (SOURCE, TARGET))
    return {"input_ids": source, "attention_mask": torch.ones_like(source), "decoder_input_ids": target}


def cost(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The cross-entropy of the next token."""
    options = {} if isinstance(model, Model) else {"use_cache": False}
    logits = model(**batch, **options).logits
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch["decoder_input_ids"][:, 1:].flatten())


def work(model: nn.Module, batch: dict[str, Tensor], mode: str, cast: bool) -> Callable[[], None]:
    """One forward pass or one training step."""
    context = torch.autocast("cpu", torch.bfloat16, enabled=cast)
    if mode == "forward":
        options = {} if isinstance(model, Model) else {"use_cache": False}

        def forward() -> None:
            with torch.inference_mode(), context:
                model(**batch, **options)

        return forward
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step() -> None:
        with context:
            loss = cost(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def measure(job: str, mode: str, cast: bool, rounds: int) -> dict[str, Any]:
    """The times of both, the pure products', and ours as a multiple of the peer's throughput."""
    models = contenders(job)
    batch = inputs(models["zoo"].config.decoder.embedding.vocabulary)  # type: ignore[union-attr]
    with torch.no_grad():
        answers = {key: model.eval()(**batch).logits for key, model in models.items()}
    with Products() as products, torch.autocast("cpu", torch.bfloat16, enabled=cast), kernel.plain():
        if mode == "forward":
            with torch.no_grad():
                models["zoo"](**batch)
        else:
            cost(models["zoo"].train(), batch).backward()
    models["zoo"].zero_grad(set_to_none=True)
    jobs: dict[str, Callable[[], Any]] = {
        key: work(model.train(mode == "step"), batch, mode, cast) for key, model in models.items()
    }
    jobs["products alone"] = products.replay
    timings = interleave(jobs, "zoo", rounds)
    return {
        "model": job,
        "mode": mode,
        "dtype": "bfloat16 autocast" if cast else "float32",
        "batch": f"{BATCH} x {SOURCE} to {TARGET} tokens",
        "difference of the answers": float((answers["zoo"] - answers["transformers"]).abs().max()),
        "milliseconds": {key: round(timing.median * 1e3, 1) for key, timing in timings.items()},
        "spread": {key: round(timing.spread, 3) for key, timing in timings.items()},
        "faster than the faster peer": round(timings["transformers"].ratio, 3),
    }


def writing(job: str, rounds: int) -> dict[str, Any]:
    """Milliseconds for each new token, the reading of the source counted in."""
    chosen = WRITING[job]
    models = contenders(chosen.model)
    vocabulary = models["zoo"].config.decoder.embedding.vocabulary  # type: ignore[union-attr]
    ids = torch.randint(3, vocabulary, (chosen.batch, SOURCE), generator=torch.Generator().manual_seed(0))
    told = {"max_new_tokens": NEW, "num_beams": chosen.beams, "pad_token_id": 1, "attention_mask": torch.ones_like(ids)}

    def write(model: Any) -> Callable[[], Tensor]:
        model.eval()
        return lambda: model.generate(input_ids=ids, **told)

    jobs: dict[str, Callable[[], Any]] = {key: write(model) for key, model in models.items()}
    answers = {key: run() for key, run in jobs.items()}
    assert torch.equal(answers["zoo"], answers["transformers"]), "the contenders write different tokens"
    timings = interleave(jobs, "zoo", rounds, warmup=1)
    return {
        "model": job,
        "mode": f"{chosen.batch} x {SOURCE} -> {NEW} tokens" + (f", {chosen.beams} beams" if chosen.beams > 1 else ""),
        "dtype": "float32",
        "milliseconds": {key: round(timing.median / NEW * 1e3, 2) for key, timing in timings.items()},
        "spread": {key: round(timing.spread, 3) for key, timing in timings.items()},
        "faster than the faster peer": round(timings["transformers"].ratio, 3),
    }
