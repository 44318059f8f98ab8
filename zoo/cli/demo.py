"""`zoo demo`: the whole way in a few minutes, with no network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def demo(
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes of the run, as in trainer.max_epochs=3.")] = None,
    folder: Annotated[str, typer.Option(help="Where everything is written; an earlier demo there is replaced.")] = "runs/demo",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Train a small ViT on handwritten digits, save, reload and verify it, and draw what it says."""
    from zoo.cli.progress import telling
    from zoo.cli.train import _figure
    from zoo.config.merge import parse_overrides

    def say(message: str) -> None:
        if not as_json:
            print(message, flush=True)

    with telling(quiet=as_json) as tell:
        tell("reading the run vit-tiny-digits")
        from zoo.training.run import resolve_run
        from zoo.training.session import run

        # one device is enough; with several, Lightning would start the whole demo once for each
        change = {"trainer.devices": 1, **parse_overrides(overrides or []), "folder": folder}
        config = resolve_run("vit-tiny-digits", change)
    say("1. training: a ViT-Ti with fewer layers on 8 x 8 pixel digits (configs/train/vit-tiny-digits.yaml)")
    result = run(config, overwrite=True, progress=not as_json)

    with telling(quiet=as_json) as tell:
        tell("loading what was saved")
        from zoo.api import load, verify
        from zoo.training.baselines import baselines
        from zoo.training.evaluate import evaluate

        model = load(result.folder / "model")
        measured = evaluate(model, config.data, config.task)
        compared = baselines(config.data)
    say(f"\n2. accuracy on {measured.examples} images that no training saw, measured on the saved model, read back")
    rows = {"this model": measured.metrics["accuracy"], **compared}
    for name, accuracy in rows.items():
        say(f"   {name:26}{_figure('accuracy', accuracy):>8}")

    say("\n3. the trained model against transformers and timm, layer by layer")
    with telling(quiet=as_json) as tell:
        report = verify(result.folder / "model", tell=tell)
    say(str(report))

    grid = _grid(config, measured, result.folder / "predictions.png")
    say("\n4. pictures and files")
    files = {"learning curve": result.folder / "curve.png", "predictions": grid, "model": result.folder / "model"}
    for name, path in files.items():
        say(f"   {name:26}{path}")
    say(f"\n   next: zoo eval {result.folder}, zoo verify {result.folder / 'model'}, zoo train vit-tiny-digits")
    if as_json:
        figures = {**result.metrics, "baselines": compared, "verified": bool(report.passed)}
        print(json.dumps({**figures, **{name.replace(" ", "_"): str(path) for name, path in files.items()}}, indent=2))
    raise typer.Exit(0 if report.passed else 1)


def _grid(config: Any, measured: Any, path: Path, number: int = 40) -> Path:
    """The images that the model got wrong, and the first others."""
    import torch

    from zoo.registry import make
    from zoo.training.pictures import prediction_grid

    images = make(config.data).split("test").tensors["pixel_values"]
    wrong = (measured.predictions.argmax(-1) != measured.targets).nonzero().flatten()
    right = (measured.predictions.argmax(-1) == measured.targets).nonzero().flatten()
    shown = torch.cat([wrong[: number // 2], right])[:number]
    title = f"{len(wrong)} of {len(images)} test images got a wrong answer (framed, corrected); % is the model's confidence"
    return prediction_grid(images[shown], measured.predictions[shown], measured.targets[shown], path, title)
