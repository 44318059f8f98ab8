"""`zoo classify` and `zoo search`: images and texts compared by a model of two towers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

Source = Annotated[str, typer.Argument(help="A dual encoder: a run's folder, a model's folder, a checkpoint or a Hub id.")]


def classify(
    source: Source,
    inputs: Annotated[list[str], typer.Argument(help="Image files, folders of them, or digits:17.")],
    labels: Annotated[str, typer.Option(help="Names of classes, between commas: 'a cat,a dog'.")],
    template: Annotated[
        list[str] | None,
        typer.Option(help="A sentence with {} for the label, as in 'a photo of a {}'; several are averaged."),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many answers for each image.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say which of some labels fits an image best, by a model that was never told what they are."""
    from zoo.cli.predict import _plain, _print
    from zoo.cli.progress import telling

    with telling(quiet=as_json) as tell:
        tell("loading")
        from zoo.training.zero_shot import TEMPLATES
        from zoo.training.zero_shot import classify as answer

        names = [label.strip() for label in labels.split(",") if label.strip()]
        found = list(answer(source, inputs, names, templates=template or TEMPLATES, top=top))
    if as_json:
        print(json.dumps([_plain(each) for each in found], indent=2))
    else:
        _print(found)


def search(
    source: Source,
    inputs: Annotated[list[str], typer.Argument(help="Image files and folders of them, and at the end what to look for.")],
    top: Annotated[int, typer.Option(min=1, help="How many images.")] = 9,
    output: Annotated[str | None, typer.Option("--output", "-o", help="Draw them into a picture, such as found.png.")] = None,
    backend: Annotated[str, typer.Option(help="What compares vectors: matrix, or faiss, which finds the same.")] = "matrix",
    index: Annotated[
        str | None, typer.Option(help="Where the vectors of the folder are kept; by default FOLDER.zoo-index.safetensors.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep/--no-keep", help="Keep the vectors of folders for the next search.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Find the images that fit a text best."""
    from zoo.cli.progress import telling
    from zoo.errors import InputError
    from zoo.inspect.picture import check_path

    if len(inputs) < 2:
        raise InputError("search: expected a folder of images and a text, as in: zoo search MODEL FOLDER 'a red car'")
    if output is not None:
        check_path(Path(output))
    with telling(quiet=as_json) as tell:
        tell("loading")
        from zoo.training.zero_shot import search as find

        chosen: Any = backend
        found = find(source, inputs[:-1], inputs[-1], top=top, backend=chosen, index=index, keep=keep, tell=tell)
    if output is not None:
        _draw(Path(output), found, inputs[-1])
    if as_json:
        print(json.dumps([hit._asdict() for hit in found], indent=2))
        return
    for hit in found:
        print(f"{hit.cosine:7.4f}  {hit.name}")
    if output is not None:
        print(f"{output}: {len(found)} images")


def _draw(path: Path, found: list[Any], title: str) -> None:
    """The images in a grid, the best first."""
    import math

    from zoo.extras import require
    from zoo.inspect.image import _opened
    from zoo.inspect.picture import _word, write

    library = require("matplotlib.figure", "train", "pictures")
    columns = math.ceil(math.sqrt(len(found)))
    rows = math.ceil(len(found) / columns)
    figure = library.Figure(figsize=(max(2.2 * columns, 3.4), 2.4 * rows + 0.4), layout="constrained", facecolor="white")
    figure.suptitle(title.replace("$", r"\$"), fontsize=11)
    for place, hit in enumerate(found, 1):
        axes = figure.add_subplot(rows, columns, place)
        axes.set_axis_off()
        axes.set_title(f"{hit.cosine:.3f}  {_word(Path(hit.name).name)}", fontsize=8)
        small = _opened(Path(hit.name), "RGB")
        small.thumbnail((440, 440))
        axes.imshow(small, interpolation="nearest" if max(small.size) < 100 else "antialiased")
    write(figure, path)
