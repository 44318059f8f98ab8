"""`zoo list`, `show`, `components` and `schema`: what there is."""

from __future__ import annotations

import json
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

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


def show(
    model: Annotated[str, typer.Argument(help="A preset's name or a YAML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes, as in head.classes=10.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show a model's whole config, and its parameters part by part."""
    import yaml

    from zoo.api import build
    from zoo.config.merge import parse_overrides

    built = build(model, parse_overrides(overrides or []), device="meta")
    fields = built.config.plain()
    counts = {name: _count(part) for name, part in built.named_children()}
    if as_json:
        print(json.dumps({"config": fields, "parameters": {"all": built.num_parameters(), **counts}}, indent=2))
        return
    print(yaml.safe_dump(fields, sort_keys=False, default_flow_style=None, width=110).rstrip())
    print(f"\n{built.num_parameters():,} parameters")
    for name, count in counts.items():
        print(f"  {name:12}{count:>14,}  {count / max(built.num_parameters(), 1):6.1%}")


def components(
    kind: Annotated[str | None, typer.Argument(help="A kind of part, as in attention.")] = None,
    name: Annotated[str | None, typer.Argument(help="A part of that kind, as in full.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the parts that configs are made of, or show one with its fields."""
    from zoo import registry

    if kind is not None:
        registry.page(kind)  # a wrong name is an error before any output
    kinds = [kind] if kind is not None else list(registry.kinds())
    parts = {each: registry.list_components(each) for each in kinds if each is not None}
    if name is not None and kind is not None:
        parts = {kind: [name]}
    table = {each: {one: _described(each, one) for one in names} for each, names in parts.items()}
    if as_json:
        print(json.dumps(table, indent=2))
        return
    for each, described in table.items():
        print(each)
        for one, about in described.items():
            print(f"  {one:18}{about['summary']}")
            for field in about["fields"] if name is not None else []:
                print(f"    {field['name']:16}{field['type']:24} {field['default']:14} {field['description']}")


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


def _described(kind: str, name: str) -> dict[str, Any]:
    from zoo import registry
    from zoo.config.docs import field_docs

    part = registry.part(kind, name)
    fields, docs = [], field_docs(part.Config)
    for field, info in part.Config.model_fields.items():
        default = (
            "needed"
            if info.is_required()
            else str(info.default).lower()
            if info.default in (None, True, False)
            else str(info.default)
        )
        fields.append({"name": field, "type": _type(info), "default": default, "description": docs.get(field, "")})
    return {"summary": (part.__doc__ or "").strip().partition("\n")[0], "fields": [f for f in fields if f["name"] != "type"]}


def _type(info: Any) -> str:
    from zoo.config.base import slot_of

    slot = slot_of(info)
    if slot is not None:
        return f"{slot.kind}{' or none' if slot.optional else ''}"
    return _words(info.annotation)


def _words(annotation: Any) -> str:
    """A type as people say it: `whole number or none`."""
    names = {int: "whole number", float: "number", bool: "true or false", str: "word", type(None): "none", dict: "mapping"}
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _words(inner[0])
    if origin is Literal:
        return " or ".join(map(str, inner))
    if origin in (Union, UnionType):
        return " or ".join(_words(each) for each in inner)
    if origin in (list, tuple):
        return f"list of {_words(inner[0])}s" if origin is list else f"{len(inner)} {_words(inner[0])}s"
    return names.get(origin or annotation, getattr(annotation, "__name__", str(annotation)))


def _count(part: Any) -> int:
    return sum(parameter.numel() for parameter in part.parameters())
