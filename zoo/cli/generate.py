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
    """Whether an encoder reads the prompt, so that what is written is a text of its own."""


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
        "num_return_sequences": num_return_sequences, "stop_strings": stop or None,
    }  # fmt: skip
    options = {name: value for name, value in options.items() if value is not None}
    options |= {"max_new_tokens": max_new_tokens, "do_sample": do_sample or any(name in options for name in SAMPLING)}
    lines = _prompts(prompt or [], file, column)
    prompts = lines if prompt else [line for line in lines if line]
    with telling(quiet=as_json) as tell:
        tell("loading")
        writer = open_writer(source)
        rows = [_ids(writer, text) for text in prompts]
    lines = lines if writer.reads else prompts
    samples = num_return_sequences or 1
    alone = len(lines) * samples == 1 and not as_json and (num_beams or 1) == 1
    start = time.perf_counter()
    if alone:
        written = [_spoken(writer, prompts[0], rows[0], options)]
        seconds = time.perf_counter() - start
    else:
        written = []
        with telling(quiet=as_json) as tell:
            for some in _batches(writer, prompts, rows, options, batch_size):
                written.extend(some)
                tell(f"{len(written)} of {len(rows) * samples} texts")
        seconds = time.perf_counter() - start
        if not as_json:
            texts = _beside(lines, written, samples) if writer.reads else (each.prompt + each.text for each in written)
            print(("\n" if writer.reads else "\n---\n").join(texts))
    tokens = sum(len(each.ids) for each in written)
    if as_json:
        plain = [{"prompt": each.prompt, "text": each.text, "tokens": len(each.ids)} for each in written]
        figures = {"tokens": tokens, "seconds": round(seconds, 4), "tokens_per_second": round(tokens / seconds, 2)}
        print(json.dumps({"texts": plain, **figures}, indent=2))
    else:
        print(f"zoo: {tokens} tokens in {seconds:.1f} s, {tokens / seconds:.1f} tokens/s", file=sys.stderr)


def open_writer(source: str) -> Writer:
    """The model at `source`, its tokenizer, and what it knows of where texts begin and end.

    Raises:
        ConfigError: the model has no tokenizer.
        WeightsError: it cannot be read.
    """
    from zoo.data.windows import boundaries
    from zoo.training.evaluate import opened
    from zoo.training.texts import tokenizer_of

    model, data, task = opened(Path(source), None, None, needs_data=False)
    tokenizer = tokenizer_of(model, source, data)
    kind, reads = task.get("type") if isinstance(task, Mapping) else task, model.config.type == "encoder-decoder"
    if kind == "causal-language":
        first, last = boundaries(tokenizer)
        return Writer(model, tokenizer, first, [last])
    named = _named_ends(Path(getattr(model.load_report, "place", None) or source))
    return Writer(model, tokenizer, None, named or ([] if tokenizer.end is None else [tokenizer.end]), reads)


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


def _ids(writer: Writer, text: str) -> list[int]:
    from zoo.errors import InputError
    from zoo.generation.text import prompt_ids
    from zoo.training.texts import longest

    if writer.reads and not text:
        raise InputError("the prompt is empty: there is nothing to read")
    if writer.reads:
        return writer.tokenizer.encode(text, longest(writer.model))
    return prompt_ids(writer.tokenizer, text, writer.start)


def _beside(lines: Sequence[str], written: Sequence[Written], samples: int) -> Iterator[str]:
    """What was written for each line; blank ones stay, so that both files can be laid side by side."""
    texts = (each.text for each in written)
    for line in lines:
        yield from islice(texts, samples) if line else [""]


def _inputs(writer: Writer, rows: list[list[int]]) -> tuple[dict[str, Any], int]:
    """The inputs of `generate`, and how many tokens of what it gives stand in front of what is written."""
    from zoo.generation.text import padded
    from zoo.training.texts import batch_of

    if writer.reads:
        return batch_of(rows, writer.tokenizer.padding, writer.model.device), 1
    inputs = padded(rows, writer.tokenizer.padding, writer.model.device)
    return inputs, inputs["input_ids"].shape[1]


def _settings(writer: Writer, options: Mapping[str, Any]) -> dict[str, Any]:
    filling = writer.tokenizer.padding
    ends = {} if not writer.ends else {"eos_token_id": writer.ends}
    return {**options, **ends, **({} if filling is None else {"pad_token_id": filling}), "tokenizer": writer.tokenizer}


def _spoken(writer: Writer, prompt: str, ids: list[int], options: Mapping[str, Any]) -> Written:
    """Continues one text, which is printed as it comes."""
    from zoo.generation.text import TextStream

    stream = TextStream(writer.tokenizer, () if writer.reads else ids)
    pieces: list[str] = []

    def say(tokens: Any) -> None:
        if not pieces and not writer.reads:  # the prompt appears as soon as it is certain that something follows
            print(prompt, end="")
        pieces.append(stream.add(int(tokens[0])))
        print(pieces[-1], end="", flush=True)

    try:
        writer.model.generate(**_inputs(writer, [ids])[0], **_settings(writer, options), streamer=say)
        pieces.append(stream.end())
        print(pieces[-1], flush=True)
    except KeyboardInterrupt:
        print(flush=True)
        raise
    return Written(prompt, "".join(pieces), stream.ids[0 if writer.reads else len(ids) :])


def _batches(
    writer: Writer, prompts: Sequence[str], rows: list[list[int]], options: Mapping[str, Any], size: int
) -> Iterator[list[Written]]:
    """Continues texts, so many at once."""
    from zoo.generation.text import TextStream

    samples = int(options.get("num_return_sequences", 1))
    for start in range(0, len(rows), size):
        some = rows[start : start + size]
        inputs, first = _inputs(writer, some)
        settings = _settings(writer, options)
        if "seed" in options:  # each text has a seed of its own, whatever others are in its batch
            settings["seed"] = options["seed"] + start * samples
        found = writer.model.generate(**inputs, **settings)[:, first:].tolist()
        texts = []
        for number, ids in enumerate(found):
            prompt = start + number // samples
            kept = _until(ids, writer.ends, settings.get("pad_token_id"))
            stream = TextStream(writer.tokenizer, () if writer.reads else rows[prompt])
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
