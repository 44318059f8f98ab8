"""`zoo predict`: what a trained model says."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from zoo.training.predict import Prediction


def predict(
    source: Annotated[str, typer.Argument(help="A run's folder, a model's folder, a checkpoint or a Hub id.")],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Image files, folders of them, or digits:17; texts, with [MASK] or to go on; by default the run's test part."
        ),
    ] = None,
    task: Annotated[str | None, typer.Option(help="Which one, of a model that has several.")] = None,
    data: Annotated[str | None, typer.Option(help="Classify these data instead.")] = None,
    split: Annotated[str, typer.Option(help="Which part of the data: train, validation or test.")] = "test",
    top: Annotated[
        int | None, typer.Option(min=1, help="How many answers for each input; by default 3 classes, 5 tokens, or 1 text.")
    ] = None,
    output: Annotated[str | None, typer.Option("--output", "-o", help="Write a .csv file instead of printing.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Classify images, texts or a part of the data, fill masks, say what comes next, translate, or describe images."""
    from zoo.cli.progress import telling
    from zoo.errors import UnknownNameError, did_you_mean

    splits = ("train", "validation", "test")
    if split not in splits:
        raise UnknownNameError(f"--split: {split!r} is no part{did_you_mean(split, splits) or f'; expected {splits}'}")
    with telling(quiet=as_json) as tell:
        tell("loading")
        from zoo.training.predict import predict as answer

        found = []
        for prediction in answer(source, inputs or (), task=task, data=data, split=split, top=top):  # type: ignore[arg-type]
            found.append(prediction)
            tell(f"answered {len(found)}")
    if output is not None:
        _write(Path(output), found)
        print(json.dumps({"file": output, "inputs": len(found)}) if as_json else f"{output}: {len(found)} inputs")
    elif as_json:
        print(json.dumps([_plain(each) for each in found], indent=2))
    else:
        _print(found)


def _print(found: list[Prediction]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    known = any(each.label is not None for each in found)
    table = Table("input", "answers", *(["right answer"] if known else []), box=SIMPLE_HEAD)
    for each in found:
        words = "  ".join(f"{name} {share * 100:.1f} %" for name, share in each.answers)
        wrong = each.label is not None and each.label != each.answers[0][0]
        cells = [each.name, words, *([each.label or ""] if known else [])]
        table.add_row(*map(Text, cells), style="bold red" if wrong else "")
    Console().print(table)


def _plain(each: Prediction) -> dict[str, Any]:
    answers = [{"class": name, "probability": round(share, 6)} for name, share in each.answers]
    return {"input": each.name, "answers": answers, **({} if each.label is None else {"label": each.label})}


def _write(path: Path, found: list[Prediction]) -> None:
    """One row for each input; written beside and put in place."""
    from zoo.errors import ConfigError

    beside = path.with_name(f".{path.name}.unfinished")
    try:
        with beside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            most = max((len(each.answers) for each in found), default=0)
            columns = [name for rank in range(1, most + 1) for name in (f"class_{rank}", f"probability_{rank}")]
            writer.writerow(["input", "label", *columns])
            for each in found:
                answers = [value for name, share in each.answers for value in (name, f"{share:.6f}")]
                writer.writerow([each.name, each.label or "", *answers])
        os.replace(beside, path)
    except OSError as error:
        raise ConfigError(f"--output: {path} cannot be written: {error.strerror or error}") from None
