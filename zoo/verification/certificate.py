"""The certificate of each preset: what its last full verification measured, and the table made of them.

`python -m zoo.verification.certificate [NAMES]` verifies presets at full size and writes
`configs/certificates/NAME.json`; `--tables` only renews the tables in README.md and docs/. Of a model that is too large for
`--memory=GIB` (default: 20), some layers of full width are verified, and the certificate says so.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.config import Config
from zoo.config.resolve import resolve, validate
from zoo.errors import ZooError
from zoo.model.construct import on_meta
from zoo.presets import list_models
from zoo.resources import folder
from zoo.verification.run import verify

START, END = "<!-- verified-models:start -->", "<!-- verified-models:end -->"
PEAK = 32
"""Bytes for each parameter: two models in float64, and what is saved and opened again beside them."""
PART, WORDS = 150_000_000, 4096
"""Of a model that does not fit, as many layers are verified as have so many parameters, and so many tokens."""


def outdated(certificate: Mapping[str, Any]) -> list[str]:
    """What the preset's config says otherwise than when it was verified; nothing where the certificate still holds.

    A field that did not exist then has to stand at its default, which for a new field means what was done before; the
    tests verify a small version of every preset each time.
    """
    return list(_changes(certificate["config"], resolve(certificate["preset"]), ""))


def _changes(then: Mapping[str, Any], now: Config, path: str) -> Iterator[str]:
    fields, plain = type(now).model_fields, now.plain()
    yield from (f"{path}{name}: no such field any more" for name in then if name not in fields)
    for name, field in fields.items():
        value = getattr(now, name)
        if name not in then:
            if value != field.get_default(call_default_factory=True):
                yield f"{path}{name}: {plain[name]!r} in a field that did not exist"
        elif isinstance(value, Config) and isinstance(then[name], dict):
            yield from _changes(then[name], value, f"{path}{name}.")
        elif plain[name] != then[name]:
            yield f"{path}{name}: {plain[name]!r} instead of {then[name]!r}"


def part(config: Any, memory: float = 20.0) -> tuple[Any, str | None]:
    """What is verified of a model in so many GiB, and what that is in words; None for all of it.

    Uniform stacks are cut, of a model or of its towers; one of stages is measured whole. Where not even one layer fits, it is
    measured at a half of its width, or a quarter, ...
    """
    towers = [name for name in type(config).model_fields if hasattr(getattr(config, name), "stack")]
    kinds = {each.stack.type for each in ([getattr(config, name) for name in towers] or [config])}
    if on_meta(config).num_parameters() * PEAK <= memory * 2**30 or kinds != {"uniform"}:
        return config, None
    fields, notes = config.model_dump(), list[str]()
    if getattr(config, "share_embeddings", False) and config.decoder.embedding.vocabulary > WORDS:
        notes = [f"{WORDS:,} of {config.decoder.embedding.vocabulary:,} tokens"]
        for name in towers:  # which are to agree
            fields[name]["embedding"]["vocabulary"] = WORDS
    for name in towers or [""]:
        whole, cut = (getattr(config, name), fields[name]) if name else (config, fields)
        notes += [f"{name} {note}".strip() for note in _cut(fields, cut, whole, PART // max(len(towers), 1))]
    width = config.stack.width if config.stack is not None else 0
    while width and on_meta(validate(fields)).num_parameters() * PEAK > memory * 2**30:
        if not _narrow(fields["stack"]):
            break
    if width and fields["stack"]["width"] < width:
        notes.append(f"{fields['stack']['width']:,} of {width:,} channels")
    return validate(fields), ", ".join(notes)


def _narrow(stack: dict[str, Any]) -> bool:
    """Halves a stack's width, with heads as large as before; whether it can."""
    attention, feedforward = stack["block"]["attention"], stack["block"]["feedforward"]
    inside = [part for part in (feedforward, feedforward.get("expert"), feedforward.get("shared")) if part is not None]
    heads, kv_heads = attention["heads"], attention["kv_heads"] or attention["heads"]
    if heads % 2 or (kv_heads < heads and heads // 2 % kv_heads) or stack["pattern"]:
        return False
    attention["heads"], stack["width"] = heads // 2, stack["width"] // 2
    attention["kv_heads"] = attention["kv_heads"] and min(kv_heads, heads // 2)
    for part in inside:
        if part.get("hidden") is not None:
            part["hidden"] //= 2
    return True


def _cut(fields: dict[str, Any], cut: dict[str, Any], whole: Any, most: int) -> list[str]:
    """Takes layers from the stack of a model, `cut`, which is all of `fields` or a tower of it, and says what is left."""
    depth, notes, counts = whole.stack.depth, [], []
    words = cut["embedding"].get("vocabulary", 0)
    if words > WORDS:
        cut["embedding"]["vocabulary"] = WORDS
        notes = [f"{WORDS:,} of {words:,} tokens"]
    for layers in (1, 2):
        cut["stack"]["depth"] = layers
        counts.append(on_meta(validate(fields)).num_parameters())
    apart = counts[1] - counts[0]
    rest = counts[0] if cut is fields else apart  # of a tower the other one does not count
    least = max(len(whole.stack.pattern or []), 1)
    cut["stack"]["depth"] = layers = min(depth, max(least, 1 + (most - rest) // apart))
    return [f"{layers} of {depth} layers", *notes]


def comparable(config: Any) -> tuple[Any, str | None]:
    """The config with sines in the order that references have, and what that is in words; None where it has it already.

    Sines and cosines side by side, as in the paper, are another order of the same channels.
    """
    sides = ("encoder", "decoder")
    places: list[Any] = [getattr(getattr(getattr(config, side, None), "embedding", None), "position", None) for side in sides]
    if any(getattr(place, "type", None) != "sinusoidal" or place.order == "halves" for place in places):
        return config, None
    fields = config.model_dump()
    for side in sides:
        fields[side]["embedding"]["position"]["order"] = "halves"
    return validate(fields), "all sines before all cosines"


def certify(name: str, memory: float = 20.0) -> dict[str, Any]:
    """Verifies a preset at full size, or what fits into so many GiB of it, and returns its certificate.

    Raises:
        ZooError: it is not equal to its references.
    """
    config = resolve(name)
    near, order = comparable(config)
    measured, note = part(near, memory)
    note = ", ".join(each for each in (order, note) if each) or None
    small = verify(name if order is None else near, tiny=True)
    large = verify(name if note is None else measured, training=False)
    if not (small.passed and large.passed):
        raise ZooError(f"{name} is not verified:\n{large}\n{small}")
    references = []
    for each, little in zip(large.comparisons, small.comparisons):
        gradients = max((each.gradients or little.gradients).values())
        references.append(
            {
                "library": each.library,
                "version": each.version,
                "float64": each.worst("float64"),
                "float32": each.worst("float32"),
                "float32_of_the_reference": each.worst("noise"),
                "gradients": gradients,
                "gradients_at_full_size": bool(each.gradients),
                "train_mode": max(little.training.values(), default=None),
                "export": each.export if each.export is not None else little.export,
            }
        )
    return {
        "preset": name,
        "config": config.plain(),
        "parameters": on_meta(config).num_parameters(),
        "verified": note,
        "references": references,
        "unavailable": large.unavailable,
    }


def certificates() -> dict[str, dict[str, Any]]:
    """The certificates at hand, by preset."""
    return {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((folder("configs") / "certificates").glob("*.json"))
    }


def table() -> str:
    """The table of verified models, in Markdown."""
    rows = [
        "| preset | parameters | equal to | float64 | gradients | float32 (the reference's own) |",
        "| --- | ---: | --- | ---: | ---: | ---: |",
    ]
    known = certificates()
    for name in list_models():
        if name not in known:
            continue
        for number, each in enumerate(known[name]["references"]):
            first = f"| `{name}` | {known[name]['parameters']:,} |" if number == 0 else "| | |"
            single = f"{each['float32']:.0e} ({each['float32_of_the_reference']:.0e})"
            note = f" ({known[name]['verified']})" if known[name].get("verified") else ""
            numbers = f"{each['float64']:.0e} | {each['gradients']:.0e} | {single}"
            rows.append(f"{first} {each['library']} {each['version']}{note} | {numbers} |")
    return "\n".join(rows)


def renew_tables(root: Path) -> list[Path]:
    """Puts the table between the markers of README.md and of the documentation's pages; returns the pages changed."""
    changed = []
    for page in [page for page in (root / "README.md", *sorted((root / "docs").glob("**/*.md"))) if page.is_file()]:
        text = page.read_text(encoding="utf-8")
        renewed = with_table(text)
        if renewed != text:
            page.write_text(renewed, encoding="utf-8")
            changed.append(page)
    return changed


def with_table(text: str) -> str:
    """The text of a page with the current table between its markers."""
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    return f"{before}{START}\n{table()}\n{END}{after}" if start and end else text


def main(arguments: Sequence[str]) -> None:
    """Writes certificates and tables."""
    root = folder("configs").parent
    target = folder("configs") / "certificates"
    target.mkdir(exist_ok=True)
    names = [word for word in arguments if not word.startswith("--")]
    memory = next((float(word.partition("=")[2]) for word in arguments if word.startswith("--memory=")), 20.0)
    for name in [] if "--tables" in arguments else names or list_models():
        certificate = certify(name, memory)
        (target / f"{name}.json").write_text(json.dumps(certificate, indent=2) + "\n", encoding="utf-8")
        print(
            name,
            [f"{each['library']} {each['float64']:.1e} {each['float32']:.1e}" for each in certificate["references"]],
            flush=True,
        )
    print("renewed", [str(page.relative_to(root)) for page in renew_tables(root)])


if __name__ == "__main__":
    main(sys.argv[1:])
