"""`zoo list` and `zoo schema`: what there is."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from zoo.presets import list_models as model_names
from zoo.presets import list_runs, print_rows, summary


def list_models(
    pattern: Annotated[str, typer.Argument(help="A shell pattern, as in 'vit*'.")] = "*",
    runs: Annotated[bool, typer.Option("--runs", help="List training runs instead.")] = False,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="List names of pretrained weights instead.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the model presets."""
    if pretrained:
        from fnmatch import fnmatchcase

        from zoo.config.source import pretrained as weights

        rows = {name: hub for name, hub in weights().items() if fnmatchcase(name, pattern)}
    elif runs:
        rows = {name: summary(name, "train") for name in list_runs(pattern)}
    else:
        rows = {name: summary(name) for name in model_names(pattern)}
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    print_rows(rows)


def schema(
    folder: Annotated[str | None, typer.Option("--output", "-o", help="Write model.json and run.json there.")] = None,
    kind: Annotated[str, typer.Argument(help="model or run.")] = "model",
) -> None:
    """Print the JSON Schema of model or run files, for editors that complete and check YAML."""
    from pathlib import Path

    from zoo.config.schema import json_schema
    from zoo.errors import ZooError, unknown

    if folder is None:
        if kind not in ("model", "run"):
            raise unknown("kind of file", kind, ["model", "run"])
        print(json.dumps(json_schema(kind), indent=1))
        return
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for each in ("model", "run"):
            path = Path(folder) / f"{each}.json"
            path.write_text(json.dumps(json_schema(each), indent=1) + "\n", encoding="utf-8")
            print(path)
    except OSError as error:
        raise ZooError(f"{folder}: cannot be written: {error.strerror}") from None
