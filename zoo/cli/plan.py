"""`zoo plan`: whether a training fits, before there are devices to try it on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from zoo.planning.plan import Plan

NAMES = {
    "gather": "weights gathered",
    "reduce": "gradients scattered",
    "average": "gradients averaged",
    "sum": "activations summed",
    "exchange": "tokens to experts",
}


def plan(
    model: Annotated[str, typer.Argument(help="A preset's name or a YAML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes, as in stack.depth=4.")] = None,
    devices: Annotated[int, typer.Option(min=1, help="How many devices there are.")] = 1,
    memory: Annotated[str, typer.Option(help="What each of them has.")] = "80GB",
    strategy: Annotated[
        list[str] | None,
        typer.Option(help="single, ddp, fsdp, tensor, or as trainer.strategy has it; several times for several; else all."),
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="How many examples a step is for, on all devices.")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="How long texts are; 512 or the longest if not given.")] = None,
    precision: Annotated[str, typer.Option(help="32-true, bf16-mixed or bf16-true.")] = "32-true",
    checkpointing: Annotated[bool, typer.Option("--checkpointing", help="Keep each block's input only.")] = False,
    optimizer: Annotated[str, typer.Option(help="As optimizer.name of a run.")] = "adamw",
    accelerator: Annotated[str, typer.Option(help="gpu, or cpu, where engines keep more copies.")] = "gpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Plan a training: memory and communication of each device, and the largest micro-batch that fits."""
    from zoo.api import plan as run
    from zoo.cli.progress import telling
    from zoo.config.merge import parse_overrides

    with telling(quiet=as_json) as tell:
        tell("counting")
        options: dict[str, Any] = {"devices": devices, "memory": memory, "strategy": strategy, "batch": batch, "tokens": tokens}
        options |= {"precision": precision, "checkpointing": checkpointing, "optimizer": optimizer, "accelerator": accelerator}
        found = run(model, parse_overrides(overrides or []), **options)
    print(json.dumps(found.as_json(), indent=2)) if as_json else _print(model, found)
    raise typer.Exit(0 if found.fits else 1)


def _print(model: str, found: Plan) -> None:
    from zoo.cli.inspect import _console, _table
    from zoo.planning.plan import scaled

    counted = [each for each in found.estimates if each.memory is not None]
    console = _console()
    many = (
        f"{found.devices} devices of {scaled(found.memory)}" if found.devices > 1 else f"one device of {scaled(found.memory)}"
    )
    how = f"{found.precision}, {found.optimizer}{', activation checkpointing' if found.checkpointing else ''}"
    print(f"{model}: {found.parameters:,} parameters on {many} ({how})")
    if counted:
        table = _table("on each device", *(each.strategy.label for each in counted))
        for place, column in enumerate(table.columns):  # strategies have long names, which may take several lines
            column.no_wrap, column.overflow = place == 0, "fold"
        rows = [(name, [getattr(each.memory, name) for each in counted]) for name in counted[0].memory._fields]  # type: ignore[union-attr]
        for name, sizes in rows:
            table.add_row({"optimizer": "optimiser"}.get(name, name), *map(scaled, sizes))
        table.add_row("all, at its peak", *(scaled(each.memory.total) for each in counted if each.memory), style="bold")
        table.add_row("which is in the", *(each.when for each in counted))
        for name in NAMES:
            if any(name in each.communication for each in counted):
                sizes = [each.communication.get(name, 0) for each in counted]
                table.add_row(f"{NAMES[name]}, a step", *(scaled(size) if size else "-" for size in sizes))
        table.add_row("micro-batch", *(str(each.micro_batch) for each in counted))
        if found.batch is not None:
            table.add_row("micro-batches a step", *(str(each.accumulate) for each in counted))
        table.add_row("largest that fits", *(str(each.largest) if each.fits else "none" for each in counted), style="bold")
        console.print(table)
    if any("exchange" in each.communication for each in counted):
        print("tokens are taken to choose all experts equally often; a device whose experts are chosen more holds more")
    for each in found.estimates:
        if not each.fits:
            print(f"{each.strategy.label} does not fit: {each.reason}")


__all__ = ["plan"]
