"""`zoo generate`: what a model writes."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

if TYPE_CHECKING:
    from zoo.data.tokenizer import Tokenizer
    from zoo.training.way import Way

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "seed")


class Writer(NamedTuple):
    """A model that continues texts, or writes a text for each that it reads."""

    model: Any
    tokenizer: Tokenizer
    start: int | None
    """Stands before every text, as it did in training; None where the tokenizer says what does."""
    ends: list[int]
    """The tokens that end a text."""
    reads: bool = False
    """Whether an encoder reads the prompt."""
    given: bool = False
    """Whether the prompt is a source, behind which the model has learned to write."""
    asked: Way | None = None
    """Which images stand in front of texts, if any do."""

    @property
    def apart(self) -> bool:
        """Whether what is written is a text of its own, and no continuation of the prompt."""
        return self.reads or self.given


class Written(NamedTuple):
    """A text that was written."""

    prompt: str
    text: str
    """What follows the prompt."""
    ids: list[int]
    """Its tokens, with the one that ended it."""


def generate(
    source: Annotated[str, typer.Argument(help="A run's folder, a model's folder, a checkpoint or a Hub id.")],
    file: Annotated[
        str | None, typer.Argument(help="A .txt with a prompt in each line, or a .csv, .jsonl or .parquet; - reads lines.")
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="What to continue; may be given again.")] = None,
    task: Annotated[str | None, typer.Option(help="Which one, of a model that has several.")] = None,
    image: Annotated[
        list[str] | None, typer.Option(help="An image in front of the text: a file, a folder of them, or digits:17.")
    ] = None,
    column: Annotated[str | None, typer.Option(help="The column of a table; by default the only one of texts.")] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", min=1, help="How many tokens at most.")] = 64,
    do_sample: Annotated[
        bool, typer.Option("--do-sample", "-s", help="Draw tokens; any of the next five options says so too.")
    ] = False,
    temperature: Annotated[float | None, typer.Option(help="Below 1 likely tokens become likelier.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw from so many likely tokens; 0 for all, by default 50.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw from the fewest with this probability together.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Draw from those with this share of the likeliest one's.")] = None,
    seed: Annotated[int | None, typer.Option(help="Draw the same every time.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="Above 1 makes known tokens less likely.")] = None,
    no_repeat_ngram_size: Annotated[int | None, typer.Option(help="No run of so many tokens comes twice.")] = None,
    num_beams: Annotated[int | None, typer.Option(min=1, help="Follow so many continuations at once.")] = None,
    length_penalty: Annotated[float | None, typer.Option(help="With beams: above 0 longer texts are worth more.")] = None,
    num_return_sequences: Annotated[int | None, typer.Option(min=1, help="How many texts for each prompt.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End a text behind this; may be given again.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="How many prompts of a file are continued at once.")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Continue a text, or write its translation where the model has an encoder; it appears as it is written."""
    from zoo.cli.progress import telling

    options = {
        "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "seed": seed,
        "repetition_penalty": repetition_penalty, "no_repeat_ngram_size": no_repeat_ngram_size, "num_beams": num_beams,
        "length_penalty": length_penalty, "num_return_sequences": num_return_sequences, "stop_strings": stop or None,
    }  # fmt: skip
    options = {name: value for name, value in options.items() if value is not None}
    options |= {"max_new_tokens": max_new_tokens, "do_sample": do_sample or any(name in options for name in SAMPLING)}
    lines = _prompts(prompt or [], file, column) if not image else _beginnings(prompt or [], file)
    prompts = lines if prompt or image else [line for line in lines if line]
    with telling(quiet=as_json) as tell:
        tell("loading")
        writer = open_writer(source, task)
        seen = _seen(writer, image or [], source)
        prompts = prompts * len(seen) if seen else prompts
        rows = [_ids(writer, text) for text in prompts]
    lines = lines if writer.apart else prompts
    samples = num_return_sequences or 1
    alone = len(lines) * samples == 1 and not as_json and (num_beams or 1) == 1
    start = time.perf_counter()
    if alone:
        written = [_spoken(writer, prompts[0], rows[0], options, seen)]
        seconds = time.perf_counter() - start
    else:
        written = []
        with telling(quiet=as_json) as tell:
            for some in _batches(writer, prompts, rows, options, batch_size, seen):
                written.extend(some)
                tell(f"{len(written)} of {len(rows) * samples} texts")
        seconds = time.perf_counter() - start
        if not as_json:
            texts = _beside(lines, written, samples) if writer.apart else (each.prompt + each.text for each in written)
            if seen:
                names = (name for name, _ in seen for _ in range(samples))
                texts = (f"{name}: {text}" for name, text in zip(names, texts))
            print(("\n" if writer.apart or seen else "\n---\n").join(texts))
    tokens = sum(len(each.ids) for each in written)
    if as_json:
        plain: list[dict[str, Any]] = [{"prompt": each.prompt, "text": each.text, "tokens": len(each.ids)} for each in written]
        for number, each in enumerate(plain if seen else ()):
            each["image"] = seen[number // samples][0]
        figures = {"tokens": tokens, "seconds": round(seconds, 4), "tokens_per_second": round(tokens / seconds, 2)}
        print(json.dumps({"texts": plain, **figures}, indent=2))
    else:
        print(f"zoo: {tokens} tokens in {seconds:.1f} s, {tokens / seconds:.1f} tokens/s", file=sys.stderr)


def open_writer(source: str, task: str | None = None) -> Writer:
    """The model at `source`, its tokenizer, and what it knows of where texts begin and end.

    Args:
        task: which one, of a model that has several.

    Raises:
        ConfigError: the model has no tokenizer, it writes no texts in this task, or none of several tasks is named.
        UnknownNameError: there is no such task.
        WeightsError: it cannot be read.
    """
    from zoo.data.windows import boundaries
    from zoo.errors import ConfigError
    from zoo.training.texts import tokenizer_of
    from zoo.training.way import way

    asked = way(source, task)
    model = asked.model
    if asked.name is not None and getattr(model.config.head, "type", None) != "language-model":
        raise ConfigError(f"task {asked.name!r} writes no text, by a head of type {model.config.head.type!r}; use zoo predict")
    tokenizer = tokenizer_of(model, source, asked.data)
    if asked.describes or asked.task_type == "causal-language":
        first, last = boundaries(tokenizer)
        return Writer(model, tokenizer, first, [last], asked=asked if asked.describes else None)
    named = _named_ends(Path(getattr(model.load_report, "place", None) or source))
    ends = named or ([] if tokenizer.end is None else [tokenizer.end])
    reads = model.config.type == "encoder-decoder"
    return Writer(model, tokenizer, None, ends, reads, given=asked.task_type == "prefix-language")


def _named_ends(place: Path) -> list[int]:
    """The tokens that end a text, by the files that transformers saves beside a model."""
    folder = place if place.is_dir() else place.parent
    for name in ("generation_config.json", "config.json"):
        try:
            found = json.loads((folder / name).read_text(encoding="utf-8"))["eos_token_id"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        ends = found if isinstance(found, list) else [found]
        if ends and all(isinstance(each, int) and not isinstance(each, bool) for each in ends):
            return ends
    return []


def _prompts(given: list[str], file: str | None, column: str | None) -> list[str]:
    from zoo.errors import ConfigError, InputError

    if given and file is not None:
        raise ConfigError("--prompt: say either this or a file of prompts")
    if given:
        return given
    if file is None and sys.stdin.isatty():
        raise ConfigError("say what to continue: --prompt 'Once upon a time', or a file of prompts")
    if file is None or file == "-":
        found = sys.stdin.read().removesuffix("\n").split("\n")
    else:
        from zoo.training.embed import sentences_of

        found = sentences_of(file, column)
    if not any(found):
        raise InputError(f"{'standard input' if file in (None, '-') else file}: there is no prompt in it")
    return found


def _beginnings(given: list[str], file: str | None) -> list[str]:
    """How the text behind each image begins."""
    from zoo.errors import ConfigError

    if file is not None or len(given) > 1:
        raise ConfigError("--image: all texts begin alike, with one --prompt or with none; leave the others out")
    return given or [""]


def _seen(writer: Writer, images: list[str], source: str) -> list[tuple[str, Any]]:
    """The names and the pixels of what stands in front of texts.

    Raises:
        InputError, DataError: images where none are read, none where they are, or one that cannot be read.
    """
    from zoo.errors import InputError
    from zoo.training.predict import image_files, pictures_of

    if writer.asked is None and images:
        raise InputError("--image: this model writes behind texts alone; leave this out")
    if writer.asked is None:
        return []
    if not images:
        raise InputError(f"task {writer.asked.name!r} writes behind an image; say which: --image a.png or --image digits:17")
    return [(name, picture.pixels) for name, picture in pictures_of(writer.asked, image_files(images), source)]


def _ids(writer: Writer, text: str) -> list[int]:
    from zoo.errors import InputError
    from zoo.generation.text import prompt_ids
    from zoo.training.texts import longest

    if writer.apart and not text:
        raise InputError("the prompt is empty: there is nothing to read")
    if writer.apart:
        return writer.tokenizer.encode(text, longest(writer.model))
    return prompt_ids(writer.tokenizer, text, writer.start)


def _beside(lines: Sequence[str], written: Sequence[Written], samples: int) -> Iterator[str]:
    """What was written for each line; blank ones stay, so that both files can be laid side by side."""
    texts = (each.text for each in written)
    for line in lines:
        yield from islice(texts, samples) if line else [""]


def _inputs(writer: Writer, rows: list[list[int]], seen: Sequence[tuple[str, Any]]) -> tuple[dict[str, Any], int]:
    """The inputs of `generate`, and how many tokens of what it gives stand in front of what is written."""
    import torch

    from zoo.generation.text import padded
    from zoo.training.texts import batch_of

    device = writer.model.device
    if writer.reads:
        return batch_of(rows, writer.tokenizer.padding, device), 1
    inputs = padded(rows, writer.tokenizer.padding, device)
    first = inputs["input_ids"].shape[1]
    if writer.given and hasattr(writer.model, "causal"):  # of rows that are filled up on the left, all sources end there
        inputs["prefix_lengths"] = torch.full((len(rows),), first, device=device)
    if seen:
        inputs["pixel_values"] = torch.cat([pixels for _, pixels in seen]).to(device)
    return inputs, first


def _settings(writer: Writer, options: Mapping[str, Any]) -> dict[str, Any]:
    filling = writer.tokenizer.padding
    ends = {} if not writer.ends else {"eos_token_id": writer.ends}
    return {**options, **ends, **({} if filling is None else {"pad_token_id": filling}), "tokenizer": writer.tokenizer}


def _spoken(
    writer: Writer, prompt: str, ids: list[int], options: Mapping[str, Any], seen: Sequence[tuple[str, Any]]
) -> Written:
    """Continues one text, which is printed as it comes."""
    from zoo.generation.text import TextStream

    stream = TextStream(writer.tokenizer, () if writer.apart else ids)
    pieces: list[str] = []

    def say(tokens: Any) -> None:
        if not pieces and not writer.apart:  # the prompt appears as soon as it is certain that something follows
            print(prompt, end="")
        pieces.append(stream.add(int(tokens[0])))
        print(pieces[-1], end="", flush=True)

    try:
        writer.model.generate(**_inputs(writer, [ids], seen)[0], **_settings(writer, options), streamer=say)
        pieces.append(stream.end())
        print(pieces[-1], flush=True)
    except KeyboardInterrupt:
        print(flush=True)
        raise
    return Written(prompt, "".join(pieces), stream.ids[0 if writer.apart else len(ids) :])


def _batches(
    writer: Writer,
    prompts: Sequence[str],
    rows: list[list[int]],
    options: Mapping[str, Any],
    size: int,
    seen: Sequence[tuple[str, Any]],
) -> Iterator[list[Written]]:
    """Continues texts, so many at once."""
    from zoo.generation.text import TextStream

    samples = int(options.get("num_return_sequences", 1))
    for start in range(0, len(rows), size):
        some = rows[start : start + size]
        inputs, first = _inputs(writer, some, seen[start : start + size])
        settings = _settings(writer, options)
        if "seed" in options:  # each text has a seed of its own, whatever others are in its batch
            settings["seed"] = options["seed"] + start * samples
        found = writer.model.generate(**inputs, **settings)[:, first:].tolist()
        texts = []
        for number, ids in enumerate(found):
            prompt = start + number // samples
            kept = _until(ids, writer.ends, settings.get("pad_token_id"))
            stream = TextStream(writer.tokenizer, () if writer.apart else rows[prompt])
            text = "".join([*(stream.add(each) for each in kept), stream.end()])
            texts.append(Written(prompts[prompt], text, kept))
        yield texts


def _until(ids: list[int], ends: list[int], padding: int | None) -> list[int]:
    """The tokens up to the one that ended the text, or to the padding behind a stop string."""
    for place, token in enumerate(ids):
        if token in ends:
            return ids[: place + 1]
    while ids and ids[-1] == padding:
        ids = ids[:-1]
    return ids


__all__ = ["Written", "generate", "open_writer"]
