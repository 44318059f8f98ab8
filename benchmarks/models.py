"""Forward pass and training step of whole models against Hugging Face and timm."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import zoo
from benchmarks.harness import Products, interleave
from zoo import kernel

BATCH = {"vit-tiny": 8, "vit-base": 2, "swin-tiny": 2}
TIMM = {"vit-tiny": "vit_tiny_patch16_224", "vit-base": "vit_base_patch16_224", "swin-tiny": "swin_tiny_patch4_window7_224"}


SWIN = {
    "embedding": {"flexible": True, "edges": "pad"},
    "stack.block.attention": {"small": "still", "fill": "before-shift"},
    "stack.drop_path": 0.0,  # which timm's folder does not tell
}
"""What Hugging Face's Swin does with images of other sizes, so that ours can be written as one; at this size it is the same."""


def contenders(name: str) -> dict[str, nn.Module]:
    """The same model with the same weights: timm draws them, zoo reads timm's folder and writes Hugging Face's.

    Of Hugging Face's Swin both kinds of attention are here: its small windows do better without the fused one.
    """
    import timm
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    swin = name.startswith("swin")
    theirs = timm.create_model(TIMM[name], **({"drop_path_rate": 0.0} if swin else {}))  # equal work in training
    with tempfile.TemporaryDirectory() as folder:
        timm.models.save_for_hf(theirs, folder, safe_serialization=True)
        ours = zoo.load(folder, SWIN if swin else {"embedding.position.resample": "bicubic"}, dtype="float32")
        state = {key: value.clone() for key, value in ours.state_dict().items()}  # not a view of the folder
        ours.load_state_dict(state, assign=True)
        exported = zoo.export(ours, Path(folder) / "transformers")
        opened = transformers.AutoModelForImageClassification.from_pretrained
        others = {"transformers": opened(exported, attn_implementation="sdpa")}
        if swin:
            others["transformers, eager"] = opened(exported, attn_implementation="eager")
    return {"zoo": ours, **others, "timm": theirs}


def answer(model: nn.Module, pixels: Tensor) -> Tensor:
    """The logits, however the model returns them."""
    output = model(pixels)
    logits: Tensor = getattr(output, "logits", output)
    return logits


def job(model: nn.Module, pixels: Tensor, mode: str, cast: bool) -> Callable[[], None]:
    """One forward pass or one training step."""
    context = torch.autocast(pixels.device.type, torch.bfloat16, enabled=cast)
    if mode == "forward":

        def forward() -> None:
            with torch.inference_mode(), context:
                answer(model, pixels)

        return forward
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step() -> None:
        with context:
            loss = answer(model, pixels).float().pow(2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def measure(name: str, mode: str, cast: bool, rounds: int) -> dict[str, Any]:
    """The times of all contenders, the pure products', and ours as a multiple of the faster peer's throughput."""
    models = contenders(name)
    pixels = torch.randn(BATCH[name], 3, 224, 224)
    with torch.no_grad():
        answers = {key: answer(model.eval(), pixels) for key, model in models.items()}
    worst = max(float((value - answers["timm"]).abs().max()) for value in answers.values())
    with Products() as products, torch.autocast("cpu", torch.bfloat16, enabled=cast), kernel.plain():
        if mode == "forward":
            with torch.no_grad():
                answer(models["zoo"], pixels)
        else:
            answer(models["zoo"].train(), pixels).float().pow(2).mean().backward()
    models["zoo"].zero_grad(set_to_none=True)
    jobs = {key: job(model.train(mode == "step"), pixels, mode, cast) for key, model in models.items()}
    jobs["products alone"] = products.replay
    timings = interleave(jobs, "zoo", rounds)
    peers = {key: timings[key].ratio for key in models if key != "zoo"}
    return {
        "model": name,
        "mode": mode,
        "dtype": "bfloat16 autocast" if cast else "float32",
        "batch": BATCH[name],
        "difference of the answers": worst,
        "milliseconds": {key: round(timing.median * 1e3, 1) for key, timing in timings.items()},
        "spread": {key: round(timing.spread, 3) for key, timing in timings.items()},
        "faster than the faster peer": round(min(peers.values()), 3),
        "products, GFLOP/s": round(products.flops / timings["products alone"].median / 1e9),
    }
