"""`zoo verify`, `load-report` and `convert`: weights, and what they compute."""

from __future__ import annotations

import json
from typing import Annotated

import typer

Overrides = Annotated[list[str] | None, typer.Argument(help="Changes, as in stack.block.attention.heads=4.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def verify(
    target: Annotated[str, typer.Argument(help="A preset's name, a folder, a checkpoint, a YAML file or a Hub id.")],
    overrides: Overrides = None,
    weights: Annotated[str | None, typer.Option(help="Real weights to compare on, as `zoo.load` takes them.")] = None,
    reference: Annotated[str | None, typer.Option(help="transformers or timm; by default both.")] = None,
    tiny: Annotated[bool, typer.Option("--tiny", help="Few layers and small sizes: a second instead of minutes.")] = False,
    as_json: Json = False,
) -> None:
    """Compare a model with its reference implementations, layer by layer."""
    from zoo.api import verify as run
    from zoo.cli.progress import telling
    from zoo.config.merge import parse_overrides

    with telling(quiet=as_json) as tell:
        report = run(target, parse_overrides(overrides or []), weights=weights, reference=reference, tiny=tiny, tell=tell)
    print(json.dumps(report.as_json(), indent=2) if as_json else report)
    raise typer.Exit(0 if report.passed else 1)


def load_report(
    source: Annotated[str, typer.Argument(help="A folder, a checkpoint, a pretrained name or a Hub id.")],
    overrides: Overrides = None,
    every: Annotated[bool, typer.Option("--all", help="Name every tensor, not only those treated specially.")] = False,
    as_json: Json = False,
) -> None:
    """Load weights and say what became of each tensor."""
    from zoo.api import load
    from zoo.config.merge import parse_overrides

    report = load(source, parse_overrides(overrides or [])).load_report
    if as_json:
        print(json.dumps([entry._asdict() for entry in report.entries], indent=2))
        return
    print(report)
    for entry in report.entries if every else []:
        if entry.status in ("loaded", "renamed"):
            print(f"  {entry.status:14} {entry.name}  {entry.detail}".rstrip())


def convert(
    source: Annotated[str, typer.Argument(help="A folder, a checkpoint, a pretrained name or a Hub id.")],
    folder: Annotated[str, typer.Argument(help="Where the result goes.")],
    to: Annotated[str, typer.Option(help="zoo, transformers or timm.")] = "zoo",
    as_json: Json = False,
) -> None:
    """Convert weights between zoo, transformers and timm."""
    from pathlib import Path

    from zoo.api import export, load, save
    from zoo.errors import ZooError

    if Path(folder).resolve() == Path(source).resolve():
        raise ZooError(f"{folder}: source and result are the same folder; choose another for the result")
    model = load(source)
    written = save(model, folder) if to == "zoo" else export(model, folder, to)
    print(
        json.dumps({"folder": str(written), "format": to})
        if as_json
        else f"{written}: {to}, {model.num_parameters():,} parameters"
    )
