"""`zoo attend`: a picture of who attends to whom, in an image or a text, or of which patches answer which word."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from zoo.inspect.attention import Attended
    from zoo.inspect.image import Picture, Preparation


def attend(
    model: Annotated[str, typer.Argument(help="A folder, a run, a checkpoint, a Hub id, or a preset (with fresh weights).")],
    source: Annotated[str, typer.Argument(metavar="INPUT", help="An image file, a test image of data (digits:17), or a text.")],
    output: Annotated[str, typer.Option("--output", "-o", help="The picture: a .png, .pdf or .svg file.")],
    task: Annotated[str | None, typer.Option(help="Which one, of a model that has several.")] = None,
    text: Annotated[str | None, typer.Argument(help="For a model that compares images with texts: the text.")] = None,
    layers: Annotated[str | None, typer.Option(help="Which, as in 0,5,-1; by default all.")] = None,
    heads: Annotated[str, typer.Option(help="Which, as in 0,1; all; or mean, the mean over all of them.")] = "mean",
    rollout: Annotated[bool, typer.Option("--rollout", help="Add attention traced through all layers.")] = False,
    token: Annotated[
        str | None, typer.Option(help="Whose attention: class, mean (of all tokens), or a token's number from 0.")
    ] = None,
    mean: Annotated[str | None, typer.Option(help="Subtracted from pixels between 0 and 1, as in 0.5 or 0.5,0.4,0.4.")] = None,
    std: Annotated[str | None, typer.Option(help="What they are then divided by.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Draw who attends to whom, in an image or a text; for an image with a text, which patches answer which word."""
    from zoo.cli.progress import telling

    with telling(quiet=as_json) as tell:
        tell("reading the model")
        from zoo.api import attend as look
        from zoo.inspect.image import Preparation, preparation
        from zoo.inspect.picture import check_path, over_image, over_tokens, token_maps
        from zoo.training.way import route_of, task_name

        check_path(Path(output))
        shown_layers = None if layers is None else _numbers("--layers", layers)
        shown_heads: Any = heads if heads == "mean" else None if heads == "all" else _numbers("--heads", heads)
        if text is not None:
            if (heads, rollout, token) != ("mean", False, None):
                raise _no_pair("--heads, --rollout and --token have no meaning for an image with a text; leave them out")
            print(_pair(model, source, text, (mean, std), shown_layers, Path(output), as_json))
            return
        opened, name, folder, fresh = _opened(model)
        chosen = task_name(opened, model, task)
        if chosen is not None:
            opened, name = route_of(opened, chosen), f"{name}, {chosen}"
            if opened.front:
                raise _no_pair(f"task {chosen!r} reads {' and '.join(opened.inputs)}, and a picture shows what is read alone")
        if opened.config.type == "dual-encoder":
            raise _no_pair(f"{model} compares images with texts, so give both: zoo attend {model} photo.jpg 'a red car' -o ...")
        if opened.config.type == "encoder-decoder":
            from zoo.cli.alignment import align

            if rollout or token is not None:
                raise _no_pair("--rollout and --token have no meaning for a model that writes a text; leave them out")
            title = name + (" (fresh weights)" if fresh else "")
            print(align(opened, model, title, source, Path(output), layers=shown_layers, heads=shown_heads, as_json=as_json))
            return
        embedding = getattr(opened.config, "embedding", None)
        number = None
        if getattr(embedding, "type", None) == "tokens":
            words, inputs = _text(opened, model, source, chosen)
            tell("looking")
            seen = look(opened, inputs, layers=shown_layers, heads=shown_heads, rollout=rollout)
            tell("drawing")
            title = name + (" (fresh weights: nothing is learned)" if fresh else "")
            path = over_tokens(token_maps(seen), words, output, title=title)
        else:
            prepared = Preparation() if folder is None else preparation(folder, chosen)
            picture = _picture(source, opened.config, prepared, mean, std)
            whose, number = _token(token, embedding)
            tell("looking")
            inputs = {"pixel_values": picture.pixels.to(opened.device)}
            if tuple(picture.pixels.shape[2:]) != tuple(getattr(embedding, "image_size", ())):
                inputs["interpolate_pos_encoding"] = True
            seen = look(opened, inputs, layers=shown_layers, heads=shown_heads, rollout=rollout)
            if number is not None:
                number = _in_range(number, seen)
                whose = f"the framed patch (token {number})" if number >= seen.prefix else whose
            tell("drawing")
            label = "" if picture.label is None else f" (a {picture.label})"
            answer = " (fresh weights: nothing is learned)" if fresh else _answer(seen.output, opened.config)
            what = f"{name}{answer} on {picture.title}{label}" if fresh else f"{name} on {picture.title}{label}{answer}"
            path = over_image(seen, picture.shown, output, token=number, title=f"{what}\nattention of {whose}")
    if fresh:
        print(f"zoo: {name}: its weights are fresh, so the picture shows nothing that was learned", file=sys.stderr)
    if as_json:
        drawn = {
            "picture": str(path),
            "layers": seen.layers,
            "heads": seen.heads or "mean",
            "rollout": rollout,
            "token": number,
        }
        print(json.dumps({**drawn, "grid": seen.grid, "fresh_weights": fresh}, indent=2))
    else:
        print(path)


def _pair(
    model: str, source: str, text: str, numbers: tuple[str | None, str | None], layers: Any, output: Path, as_json: bool
) -> str:
    """Draws which patches of an image answer which word of a text, and gives what is to be printed."""
    from zoo.inspect.word_picture import over_words
    from zoo.inspect.words import answers
    from zoo.training.zero_shot import Comparer

    if not text.strip():
        raise _no_pair("TEXT: the text is empty")
    comparer = Comparer(model)
    picture = _picture(source, comparer.model.config.vision, comparer.prepared, *numbers)
    seen = answers(comparer.model, picture.pixels.to(comparer.model.device), text, comparer.texts, layers=layers)
    home = Path(model).resolve()
    name = (home.parent.name if home.name == "model" else home.name) if home.exists() else model
    label = "" if picture.label is None else f" (a {picture.label})"
    path = over_words(seen, picture.shown, output, title=f"{name} on {picture.title}{label}\nwhich patches answer which word")
    if not as_json:
        return str(path)
    lost, maps = seen.cosines.tolist(), seen.maps.tolist()
    words = [{"word": word, "lost": lost[place], "relevance": maps[place]} for place, word in enumerate(seen.words, 1)]
    return json.dumps({"picture": str(path), "cosine": lost[0], "relevance": maps[0], "words": words}, indent=2)


def _no_pair(message: str) -> Exception:
    from zoo.errors import InputError

    return InputError(f"attend: {message}")


def _opened(source: str) -> tuple[Any, str, Path | None, bool]:
    """A model in eval mode, what it is called, the folder that it lies in, if any, and whether its weights are fresh."""
    from zoo.api import build, load
    from zoo.errors import ZooError
    from zoo.presets import list_models

    path = Path(source)
    if source in list_models() or (path.suffix in (".yaml", ".yml") and path.is_file()):
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return build(source).eval(), source, None, True
    run = path.is_dir() and (path / "config.yaml").is_file()
    if run and not (path / "model").is_dir():
        raise ZooError(f"{path}: this run is not finished; look into {path / 'last.ckpt'}, or go on with --resume")
    model = load(path / "model" if run else source)
    place, home = Path(model.load_report.place), path.resolve()
    name = home.parent.name if home.name == "model" else home.name
    # beside a checkpoint of a run there may be the folder of its model
    return model, name if path.exists() else source, place if place.is_dir() else place.parent / "model", False


def _text(model: Any, source: str, text: str, task: str | None) -> tuple[list[str], dict[str, Any]]:
    """The tokens of a text, and the inputs of a model that reads texts."""
    from zoo.errors import InputError
    from zoo.training.evaluate import run_of
    from zoo.training.texts import batch_of, longest, tokenizer_of
    from zoo.training.way import of_task, type_of

    if not text.strip():
        raise InputError("INPUT: the text is empty")
    run = {} if task is None else run_of(Path(source))[1]
    data, goal = (None if task is None else of_task(run.get(name), task) for name in ("data", "task"))
    tokenizer = tokenizer_of(model, source, data)
    ids = tokenizer.encode(text, longest(model))
    inputs = batch_of([ids], tokenizer.padding, model.device)
    if task is not None and type_of(goal) == "prefix-language":  # a source, whose tokens see each other
        inputs["prefix_lengths"] = inputs["attention_mask"].sum(1)
    return [tokenizer.token(number) for number in ids], inputs


def _picture(source: str, config: Any, prepared: Preparation, mean: str | None, std: str | None) -> Picture:
    from zoo.inspect.image import example_of, read_image

    if re.fullmatch(r"[a-z0-9][a-z0-9.-]*:-?\d+", source) and not Path(source).exists():
        return example_of(source, config)
    if mean is not None:
        prepared = prepared._replace(mean=_decimals("--mean", mean))
    if std is not None:
        prepared = prepared._replace(std=_decimals("--std", std))
    return read_image(Path(source), config.embedding, prepared)


def _token(token: str | None, embedding: Any) -> tuple[str, int | None]:
    """What the chosen token is called, and its number; None for the mean over all."""
    from zoo.errors import InputError

    has_class = bool(getattr(embedding, "class_token", False))
    if token == "class" and not has_class:
        raise InputError("--token: this model has no class token; expected mean, or a token's number")
    if token == "class" or (token is None and has_class):
        return "the class token", 0
    if token in (None, "mean"):
        return "all tokens, on average", None
    if re.fullmatch(r"-?\d{1,9}", str(token)):
        return f"token {token}", int(str(token))
    raise InputError(f"--token: {token!r} is none; expected class, mean, or a token's number from 0")


def _in_range(number: int, seen: Attended) -> int:
    from zoo.errors import InputError

    # where tokens are merged from layer to layer, it is one of the first grid
    tokens = seen.maps[0].shape[2] if seen.grid is None else seen.prefix + seen.grid[0] * seen.grid[1]
    if not -tokens <= number < tokens:
        raise InputError(f"--token: {number} is none of 0 to {tokens - 1} (negative numbers count from the end)")
    return number % tokens


def _answer(output: Any, config: Any) -> str:
    """What a classifier says to the image."""
    logits = getattr(output, "logits", None)
    if logits is None or logits.ndim != 2 or not getattr(config.head, "classes", 0):
        return ""
    share, best = logits[0].float().softmax(-1).max(-1)
    labels = getattr(config.head, "labels", None)
    return f"; its answer: {labels[int(best)] if labels else int(best)} ({float(share) * 100:.0f} %)"


def _numbers(option: str, text: str) -> list[int]:
    from zoo.errors import InputError

    words = [word.strip() for word in text.split(",")]
    if not all(re.fullmatch(r"-?\d{1,9}", word) for word in words):
        raise InputError(f"{option}: {text!r} are no numbers; expected some such as 0,5,-1")
    return [int(word) for word in words]


def _decimals(option: str, text: str) -> tuple[float, ...]:
    from zoo.errors import InputError

    try:
        numbers = tuple(float(word) for word in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(abs(n) < 1e6 for n in numbers) or (option == "--std" and min(numbers) <= 0):
        above = " above 0" if option == "--std" else ""
        raise InputError(f"{option}: {text!r} are no numbers{above}; expected some such as 0.5 or 0.485,0.456,0.406")
    return numbers
