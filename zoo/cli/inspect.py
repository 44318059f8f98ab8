"""`zoo show` and `components`: what is inside a model, and inside its parts."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from zoo.inspect.cost import Part
    from zoo.inspect.parts import Description

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@contextmanager
def _uncollected() -> Iterator[None]:
    """Puts garbage collection off: it would walk again and again through thousands of modules that are imported here."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@_uncollected()
def show(
    model: Annotated[str, typer.Argument(help="A preset's name, a YAML file or the folder of a model.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes, as in head.classes=10.")] = None,
    depth: Annotated[int, typer.Option(min=0, help="How many levels of parts inside parts are shown.")] = 3,
    batch: Annotated[int, typer.Option(min=1, help="For how many examples FLOPs and memory are counted.")] = 1,
    tokens: Annotated[int | None, typer.Option(min=1, help="How long texts are; 512 or the longest if not given.")] = None,
    against: Annotated[str | None, typer.Option(help="Another model: show what differs in config and cost.")] = None,
    as_config: Annotated[bool, typer.Option("--config", help="Print the whole config as YAML instead.")] = False,
    as_json: Json = False,
) -> None:
    """Show a model's parts with their parameters, FLOPs and memory, from its config alone."""
    from zoo.cli.progress import telling
    from zoo.config.merge import parse_overrides
    from zoo.errors import ZooError

    config = _config(model, parse_overrides(overrides or []))
    if against is not None and as_config:
        raise ZooError("--config prints one model, and --against compares two; choose one of them")
    if as_config and not as_json:
        import yaml

        print(yaml.safe_dump(config.plain(), sort_keys=False, default_flow_style=None, width=110).rstrip())
        return
    if against is not None:
        name = f"{model}, changed" if overrides else model
        _show_against(name, config, against, {"batch": batch, "tokens": tokens}, as_json)
        return
    with telling(quiet=as_json) as tell:
        tell("counting")
        from zoo.api import cost

        whole = cost(config, batch=batch, tokens=tokens)
    if as_json:
        print(json.dumps({"config": config.plain(), "batch": batch, **_figures(whole), "parts": _nested(whole)}, indent=2))
        return
    _print_parts(model, whole, depth, batch)


def components(
    kind: Annotated[str | None, typer.Argument(help="A kind of part, as in attention.")] = None,
    name: Annotated[str | None, typer.Argument(help="A part of that kind, as in full.")] = None,
    as_json: Json = False,
) -> None:
    """List the parts that configs are made of; of one kind, with fields, cost, papers and presets."""
    from zoo import registry
    from zoo.inspect.parts import describe

    if kind is not None:
        registry.page(kind)  # a wrong name is an error before any output
    parts = {each: registry.list_components(each) for each in ([kind] if kind is not None else registry.kinds())}
    if name is not None and kind is not None:
        parts = {kind: [name]}
    found = {each: [describe(each, one) for one in names] for each, names in parts.items()}
    if as_json:
        table = {each: {about.name: _described(about) for about in descriptions} for each, descriptions in found.items()}
        print(json.dumps(table, indent=2))
        return
    if kind is not None:
        _print_fields(found[kind])
        return
    for each, descriptions in found.items():
        print(each)
        for about in descriptions:
            print(f"  {about.name:18}{about.summary}")


def _config(source: str, overrides: dict[str, Any]) -> Any:
    """The config of what `zoo.build` takes, or of a model that lies in a folder."""
    from pathlib import Path

    from zoo.api import get_config
    from zoo.presets import list_models

    if source in list_models() or not Path(source).is_dir():
        return get_config(source, overrides)
    from zoo.checkpoint.locate import locate
    from zoo.config.resolve import merge_overrides, validate

    run = Path(source) / "model"
    found = locate(run if run.is_dir() else source)
    return validate(merge_overrides(found.fields, overrides), found.place)


def _figures(whole: Part) -> dict[str, dict[str, int]]:
    """Each figure of the whole model and of its parts."""
    names = ("parameters", "flops", "memory")
    parts = {"all": whole, **{part.name: part for part in whole.parts}}
    return {name: {each: getattr(part, name) for each, part in parts.items()} for name in names}


def _nested(part: Part) -> dict[str, Any]:
    return {**part._asdict(), "parts": [_nested(inside) for inside in part.parts]}


def _print_parts(title: str, whole: Part, depth: int, batch: int) -> None:
    table = _table("part", "type", "parameters", "share", "FLOPs", "share", "memory", "share")
    numbers = (whole.parameters, whole.flops, whole.memory)
    _add_row(table, title, whole, 1, numbers, style="bold")
    for line, part, times in _lines(whole.parts, depth):
        _add_row(table, line, part, times, numbers)
    console = _console()
    console.print(table)
    console.print(
        f"FLOPs of a forward pass (two for each multiplication and addition), and memory that training keeps for the "
        f"backward pass, in float32, for {batch} example{'' if batch == 1 else 's'}.\n"
        "Lines with `x` stand for equal layers: figures are those of one layer, shares those of all of them.",
        style="dim",
        highlight=False,
    )


def _lines(parts: tuple[Part, ...], depth: int, indent: str = "", times: int = 1) -> Iterator[tuple[str, Part, int]]:
    """The lines of the tree: its branches and the part's name, the part, and for how many equal ones it stands."""
    groups = _folded([part for part in parts if _costs(part)])
    for group in groups if depth > 0 else []:
        last, first = group is groups[-1], group[0]
        branch, below = ("└─ ", "   ") if last else ("├─ ", "│  ")
        yield f"{indent}{branch}{_label(group)}", first, times * len(group)
        yield from _lines(first.parts, depth - 1, indent + below, times * len(group))


def _folded(parts: list[Part]) -> list[list[Part]]:
    """Consecutive numbered parts that are equal but for their names."""
    groups: list[list[Part]] = []
    for part in parts:
        if groups and _step(part).isdigit() and _shape(groups[-1][0]) == _shape(part):
            groups[-1].append(part)
        else:
            groups.append([part])
    return groups


def _shape(part: Part) -> Any:
    return part.type, part.parameters, part.flops, part.memory, [(_step(p), _shape(p)) for p in part.parts]


def _label(group: list[Part]) -> str:
    if not _step(group[0]).isdigit():
        return _step(group[0])
    what = group[0].name.split(".")[-2]
    if len(group) == 1:
        return f"{what}.{_step(group[0])}"
    return f"{what} {_step(group[0])}-{_step(group[-1])}, {len(group)} x"


def _step(part: Part) -> str:
    return part.name.rpartition(".")[2]


def _costs(part: Part) -> bool:
    """Whether a part is worth a line: dropout that drops nothing is not, a part of the registry always is."""
    return bool(part.parameters or part.flops or part.memory) or part.type[:1].islower()


def _add_row(table: Table, line: str, part: Part, times: int, whole: tuple[int, ...], style: str | None = None) -> None:
    texts = (f"{part.parameters:,}", _scaled(part.flops), _scaled(part.memory, "B"))
    shares = (times * number / max(total, 1) for number, total in zip((part.parameters, part.flops, part.memory), whole))
    cells = [cell for text, share in zip(texts, shares) for cell in (text, f"{share:.1%}".replace("%", " %"))]
    table.add_row(line, part.type, *cells, style=style)


def _scaled(number: float, unit: str = "") -> str:
    """A number with three or four digits and a prefix: `35.1 G`, `118 MB`."""
    for prefix in ("", "k", "M", "G", "T"):
        if abs(number) < 999.5 or prefix == "T":
            digits = 0 if prefix == "" or abs(number) >= 99.95 else 1 if abs(number) >= 9.995 else 2
            return f"{number:.{digits}f} {prefix}{unit}".rstrip()
        number /= 1000
    raise AssertionError("a prefix was found")


def _show_against(name: str, config: Any, other: str, size: dict[str, Any], as_json: bool) -> None:
    from zoo.cli.progress import telling

    with telling(quiet=as_json) as tell:
        tell("counting")
        from zoo.inspect.against import compare

        found = compare(config, _config(other, {}), **size)
    if as_json:
        fields = [{"path": path, "model": _plain(ours), "against": _plain(theirs)} for path, ours, theirs in found.fields]
        figures = {f.name: {"model": f.ours, "against": f.theirs, "ratio": f.ratio} for f in found.figures}
        print(json.dumps({**size, "config": fields, "cost": figures}, indent=2))
        return
    console = _console()
    differing = _table("config", name, other, numbers=False)
    for path, ours, theirs in found.fields:
        differing.add_row(path, _word(ours), _word(theirs))
    console.print(differing if found.fields else "The configs are the same.")
    costs = _table(f"cost ({size['batch']} example{'' if size['batch'] == 1 else 's'})", name, other, "ratio")
    for figure in found.figures:
        texts = [_scaled(n, "B") if figure.name == "memory" else f"{n:,}" if figure.name == "parameters" else _scaled(n)
                 for n in (figure.ours, figure.theirs)]  # fmt: skip
        costs.add_row({"flops": "FLOPs"}.get(figure.name, figure.name), *texts, f"{figure.ratio:.2f} x")
    console.print(costs)


def _plain(value: Any) -> Any:
    """A field's value as JSON has it."""
    from zoo.config import Config

    if isinstance(value, Config):
        return value.plain()
    return list(value) if isinstance(value, tuple) else value


def _word(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else "none" if value is None else str(_plain(value))
    return text if len(text) < 60 else f"{text[:57]}..."


def _described(about: Description) -> dict[str, Any]:
    facts = about._asdict()
    fields = [field._asdict() for field in about.fields]
    return {name: value for name, value in facts.items() if name not in ("kind", "name")} | {"fields": fields}


def _print_fields(descriptions: list[Description]) -> None:
    from rich.padding import Padding
    from rich.text import Text

    console, shared = _console(), False
    for number, about in enumerate(descriptions):
        console.print(Text.assemble("\n" if number else "", (f"{about.kind} ", "dim"), (about.name, "bold")))
        used = f"{', '.join(about.presets)}" if about.presets else "no preset"
        console.print(Padding(Text(f"{about.summary} {about.about}".strip()), (0, 0, 0, 2)))
        facts = _table(numbers=False, headless=True)
        for word, text in (("paper", about.papers), ("shapes", about.shapes), ("cost", about.cost), ("used by", used)):
            if text:
                facts.add_row(f"  {word}", text)
        facts.add_row("  class", about.place)
        console.print(facts)
        if not about.fields:
            console.print("  It has no fields.")
            continue
        table = _table("  field", "value", "default", "meaning", numbers=False)
        for field in about.fields:
            mark, shared = ("*" if field.shared else ""), shared or field.shared
            table.add_row(f"  {field.name}{mark}", field.type, field.default, field.description)
        console.print(table)
    if shared:
        what = f"of every {descriptions[0].kind}: it is kept when an override changes the type"
        console.print(f"\n* a field {what}.", style="dim", highlight=False)


def _table(*columns: str, numbers: bool = True, headless: bool = False) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(*columns, box=None if headless else SIMPLE_HEAD, show_header=not headless, pad_edge=False, padding=(0, 1))
    for place, column in enumerate(table.columns):
        column.overflow = "fold"
        if numbers and place > 0 and column.header != "type":
            column.justify, column.no_wrap = "right", True
    return table


def _console() -> Console:
    """Where there is no terminal to be filled, lines may be as long as they need to be."""
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 120)
