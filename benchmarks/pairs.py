"""Forward pass and training step of CLIP, both towers, against Hugging Face and open_clip."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import zoo
from benchmarks.harness import Products, interleave
from zoo import kernel

JOBS = {"clip-vit-b32": 4}
"""How many pairs of an image and a text."""


class OpenCLIP(nn.Module):
    """open_clip's model, called as the others are."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        import open_clip

        self.model = open_clip.create_model(f"local-dir:{folder}")

    def forward(self, pixel_values: Tensor, input_ids: Tensor) -> Tensor:
        images, texts, scale = self.model(pixel_values, input_ids)[:3]
        scores: Tensor = scale * images @ texts.t()
        return scores


def contenders(job: str) -> dict[str, nn.Module]:
    """The same model with the same weights: zoo draws them and writes the folders of the others."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    ours = zoo.build(job)
    with tempfile.TemporaryDirectory() as folder:
        theirs = zoo.export(ours, Path(folder) / "transformers")
        opened = transformers.CLIPModel.from_pretrained(theirs, attn_implementation="sdpa")
        other = OpenCLIP(zoo.export(ours, Path(folder) / "open_clip", format="open_clip"))
    return {"zoo": ours, "transformers": opened, "open_clip": other}


def answer(model: nn.Module, pairs: Mapping[str, Tensor]) -> Tensor:
    """The scores of images (rows) and texts, however the model returns them."""
    output = model(**pairs)
    scores: Tensor = getattr(output, "logits_per_image", output)
    return scores


def work(model: nn.Module, pairs: Mapping[str, Tensor], mode: str, cast: bool) -> Callable[[], None]:
    """One forward pass or one training step."""
    context = torch.autocast("cpu", torch.bfloat16, enabled=cast)
    if mode == "forward":

        def forward() -> None:
            with torch.inference_mode(), context:
                answer(model, pairs)

        return forward
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step() -> None:
        with context:
            loss = cost(model, pairs)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def cost(model: nn.Module, pairs: Mapping[str, Tensor]) -> Tensor:
    """CLIP's loss of a batch of pairs."""
    scores = answer(model, pairs).float()
    own = torch.arange(len(scores))
    return (functional.cross_entropy(scores, own) + functional.cross_entropy(scores.t(), own)) / 2


def measure(job: str, mode: str, cast: bool, rounds: int) -> dict[str, Any]:
    """The times of all contenders, the pure products', and ours as a multiple of the faster peer's throughput."""
    models, number = contenders(job), JOBS[job]
    pairs = {"pixel_values": torch.randn(number, 3, 224, 224), "input_ids": torch.randint(1, 49000, (number, 77))}
    with torch.no_grad():
        answers = {key: answer(model.eval(), pairs) for key, model in models.items()}
    with Products() as products, torch.autocast("cpu", torch.bfloat16, enabled=cast), kernel.plain():
        if mode == "forward":
            with torch.no_grad():
                answer(models["zoo"], pairs)
        else:
            cost(models["zoo"].train(), pairs).backward()
    models["zoo"].zero_grad(set_to_none=True)
    jobs = {key: work(model.train(mode == "step"), pairs, mode, cast) for key, model in models.items()}
    jobs["products alone"] = products.replay
    timings = interleave(jobs, "zoo", rounds)
    return {
        "model": job,
        "mode": mode,
        "dtype": "bfloat16 autocast" if cast else "float32",
        "batch": number,
        "difference of the answers": max(float((each - answers["transformers"]).abs().max()) for each in answers.values()),
        "milliseconds": {key: round(timing.median * 1e3, 1) for key, timing in timings.items()},
        "spread": {key: round(timing.spread, 3) for key, timing in timings.items()},
        "faster than the faster peer": round(min(timings[key].ratio for key in models if key != "zoo"), 3),
    }
