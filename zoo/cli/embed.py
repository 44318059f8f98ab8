"""`zoo embed`: a vector for each sentence of a file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer


def embed(
    source: Annotated[str, typer.Argument(help="A run's folder, a model's folder, a checkpoint or a Hub id.")],
    file: Annotated[str, typer.Argument(help="A .txt with a sentence in each line, or a .csv, .jsonl or .parquet.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes of the model, as in head.pool=max.")] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="A .npy or .parquet; by default FILE's name, .npy.")
    ] = None,
    column: Annotated[str | None, typer.Option(help="The column of a table; by default the only one of texts.")] = None,
    length: Annotated[int | None, typer.Option(help="How many tokens are read; by default as many as the model takes.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="How many sentences are embedded at once.")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write a vector for each sentence of a file, in their order."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from zoo.cli.progress import telling
    from zoo.config.merge import parse_overrides

    with telling(quiet=as_json) as tell:
        tell("loading")
        from zoo.training.embed import check_output, open_embedder, sentences_of, write
        from zoo.training.embed import embed as compute

        goal = check_output(Path(output) if output is not None else Path(file).with_suffix(".npy"))
        sentences = sentences_of(file, column)
        embedder = open_embedder(source, parse_overrides(overrides or []), length)
    if embedder.replaced is not None:
        said = "it has no head" if embedder.replaced == "none" else f"its head {embedder.replaced!r} is replaced"
        pool = embedder.model.config.head.pool.type
        print(f"zoo: {source}: {said}: sentences are embedded by the pool {pool!r} of their tokens", file=sys.stderr)
    console = Console(stderr=True, quiet=as_json)
    columns = (
        TextColumn("embedding"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn("[dim]left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=len(sentences))
        vectors = compute(embedder, sentences, batch_size, lambda number: bar.advance(task, number))
    write(vectors, goal)
    if as_json:
        print(json.dumps({"file": str(goal), "sentences": len(vectors), "width": int(vectors.shape[1])}, indent=2))
    else:
        print(f"{goal}: {len(vectors)} vectors of width {vectors.shape[1]}")
