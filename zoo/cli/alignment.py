"""What `zoo attend` draws of a model with an encoder and a decoder: where it looks while it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def align(model: Any, source: str, name: str, text: str, output: Path, *, layers: Any, heads: Any, as_json: bool) -> str:
    """Lets the model write a text for `text`, draws where it looked in it, and gives what is to be printed.

    Args:
        source: where the model was opened; `name` is what the picture calls it.
        layers, heads: see `zoo.inspect.alignment`.

    Raises:
        ConfigError: the model has no tokenizer.
        InputError: the text is empty, or there is no such layer or head.
    """
    from zoo.errors import InputError
    from zoo.inspect.alignment import alignment, letter_maps, letters
    from zoo.inspect.picture import over_tokens
    from zoo.training.evaluate import run_of
    from zoo.training.texts import batch_of, longest, tokenizer_of

    if not text.strip():
        raise InputError("INPUT: the text is empty")
    data = run_of(Path(source))[1].get("data")
    tokenizer = tokenizer_of(model, source, data)
    ids = tokenizer.encode(text, longest(model))
    inputs = batch_of([ids], tokenizer.padding, model.device)
    ends = {} if tokenizer.end is None else {"eos_token_id": tokenizer.end, "pad_token_id": tokenizer.end}
    written = model.generate(**inputs, max_new_tokens=LONGEST, **ends)[:, 1:]
    said = written[0].tolist()
    seen = alignment(model, inputs, written, layers=layers, heads=heads)
    read, wrote = letters(tokenizer, ids), letters(tokenizer, said)
    answer = tokenizer.decode(said)
    path = over_tokens(
        letter_maps(seen, [places for _, places in wrote], [places for _, places in read]),
        [letter for letter, _ in wrote],
        output,
        keys=[letter for letter, _ in read],
        title=f"{name}: {text} → {answer}",
        named=("written", "read"),
    )
    if not as_json:
        return str(path)
    drawn = {"picture": str(path), "layers": seen.layers, "heads": seen.heads or "mean", "written": answer}
    return json.dumps(drawn, indent=2)


LONGEST = 256
"""So many tokens are written at most."""

__all__ = ["align"]
