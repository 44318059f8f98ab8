"""`zoo experts`: which experts the tokens of each task choose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from zoo.inspect.experts import Experts


def experts(
    source: Annotated[str, typer.Argument(help="A run's folder, a model's folder, a checkpoint or a Hub id.")],
    changes: Annotated[list[str] | None, typer.Argument(help="Changes of the run, as in data.only=[write].")] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="Draw them, too: the name of a .png, .pdf or .svg file.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="On which data; by default those of the run.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show which experts the tokens of each task choose, on the part of the data that no training sees."""
    from zoo.cli.progress import telling
    from zoo.config.merge import parse_overrides

    change = parse_overrides(changes or [])
    with telling(quiet=as_json) as tell:
        tell("loading")
        from zoo.errors import ConfigError
        from zoo.inspect.expert_picture import draw_experts
        from zoo.inspect.picture import check_path
        from zoo.training.evaluate import evaluate

        if output is not None:
            check_path(Path(output))
        tell("running the test part")
        found = evaluate(source, data, changes=change).experts
        if found is None:
            raise ConfigError(f"{source}: no layer of this model has experts (feedforward: mixture-of-experts)")
        if output is not None:
            tell("drawing")
            draw_experts(found, output, title=f"{_name(source)}: which experts each task wakes")
    if as_json:
        print(json.dumps({**found.plain(), **({} if output is None else {"picture": output})}, indent=2))
        return
    _print(found)
    if output is not None:
        print(output)


def _print(found: Experts) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from zoo.inspect.expert_picture import named

    for layer, shares, top_k in zip(found.layers, found.shares, found.top_k):
        title = f"{named(layer)}: % of the tokens that meet each expert ({top_k} of {shares.shape[1]})"
        table = Table(
            "", *map(str, range(shares.shape[1])), "tokens", box=SIMPLE_HEAD, title=title, title_justify="left", title_style=""
        )
        for column in table.columns[1:]:
            column.justify = "right"
        for task, row, tokens in zip(found.tasks, shares.tolist(), found.tokens):
            table.add_row(task, *(f"{share * 100:.0f}" for share in row), str(tokens))
        Console().print(table)


def _name(source: str) -> str:
    home = Path(source).resolve()
    return (home.parent.name if home.name == "model" else home.name) if home.exists() else source
