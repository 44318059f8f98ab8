"""Writes the pages of the parts while the site is built: one for each kind, from docstrings and config fields.

MkDocs calls `on_config` and `on_files` (see `hooks` in mkdocs.yml).
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BeforeValidator
from pydantic.fields import FieldInfo

from zoo import registry
from zoo.config import Config
from zoo.config.base import slot_of
from zoo.config.docs import field_docs
from zoo.resources import folder

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Puts a page for each kind of part into the navigation."""
    pages = [{"All parts": "parts/index.md"}, *({kind: f"parts/{kind}.md"} for kind in registry.kinds())]
    config.nav = [{"Parts": pages} if "Parts" in entry else entry for entry in config.nav or []]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages."""
    from mkdocs.structure.files import File

    for path, content in pages().items():
        files.append(File.generated(config, path, content=content))
    return files


def pages() -> dict[str, str]:
    """The generated pages: Markdown by path."""
    return {"parts/index.md": _index(), **{f"parts/{kind}.md": _page(kind) for kind in registry.kinds()}}


def _index() -> str:
    lines = [
        "# Parts",
        "",
        "Every part stands under its name on one line of `registry/`, and a config names it as the `type` of a slot. "
        "`zoo components` prints this list, `zoo components attention full` the fields of one part.",
        "",
        "| kind | what it is | parts |",
        "|---|---|---|",
    ]
    for kind in registry.kinds():
        parts = ", ".join(f"[`{name}`]({kind}.md#{_anchor(name)})" for name in registry.page(kind))
        lines.append(f"| [{kind}]({kind}.md) | {_purpose(kind)} | {parts} |")
    return "\n".join(lines) + "\n"


def _page(kind: str) -> str:
    lines = [f"# {kind}", "", f"{_purpose(kind)}. Registry page: `registry/{kind}.yaml`."]
    slots = ", ".join(f"[`{where}`]({other}.md#{_anchor(name)})" for other, name, where in _slots_for(kind))
    if slots:
        lines += ["", f"Goes into: {slots}."]
    for name in registry.page(kind):
        part = registry.part(kind, name)
        lines += ["", f"## {name}", "", *_description(part), "", f"Class: `{part.__module__}.{part.__qualname__}`", ""]
        lines += _table(part.Config, kind)
    return "\n".join(lines) + "\n"


def _purpose(kind: str) -> str:
    """What the page of the registry says of itself: its first comment."""
    first = (folder("registry") / f"{kind}.yaml").read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ").partition(" name: ")[0].rstrip(".")


def _slots_for(kind: str) -> Iterator[tuple[str, str, str]]:
    """The slots that parts of this kind go into: kind and name of the part that has it, and `name.field`."""
    for other in registry.kinds():
        for name in registry.page(other):
            for field, info in registry.part(other, name).Config.model_fields.items():
                slot = slot_of(info)
                if slot is not None and slot.kind == kind:
                    yield other, name, f"{name}.{field}"


def _description(part: type) -> list[str]:
    """The docstring: its summary, its remarks, then papers, shapes and cost as a list."""
    summary, _, rest = inspect.cleandoc(part.__doc__ or "").partition("\n")
    marked = re.compile(r"(?<=[.)])\s+(?=(?:Papers?|Shapes|Cost|Source): )")
    pieces = [piece.strip() for piece in marked.split(f"{summary} {' '.join(rest.split())}".strip())]
    text, facts = pieces[0], pieces[1:]
    while text.startswith(("Paper", "Shapes:")):  # a docstring that begins with one
        facts, text = [text, *facts], ""
    lines = [_linked(text)]
    if facts:
        lines += ["", *(f"- **{fact.partition(':')[0]}:**{_linked(fact.partition(':')[2])}" for fact in facts)]
    return lines


def _linked(text: str) -> str:
    return re.sub(r"https://[^\s,;)]*[^\s,;.)]", lambda match: f"<{match[0]}>", text)


def _table(config: type[Config], kind: str) -> list[str]:
    """The fields of a config; those that any part of the kind has are marked."""
    rows, nested, docs = [], [], field_docs(config)
    base = next((cls for cls in config.__mro__[1:] if cls.__dict__.get("kind") == kind), None)
    shared = set(base.model_fields if base is not None else ())
    for name, info in config.model_fields.items():
        if name == "type":
            continue
        mark = " \\*" if name in shared else ""
        rows.append(f"| `{name}`{mark} | {_type(info)} | {_default(info)} | {_cell(docs.get(name, ''))} |")
        if isinstance(info.annotation, type) and issubclass(info.annotation, Config) and slot_of(info) is None:
            nested.append((name, info.annotation))
    if not rows:
        return ["It has no fields."]
    lines = ["| field | value | default | meaning |", "|---|---|---|---|", *rows]
    if shared.intersection(config.model_fields):
        lines += ["", "\\* a field of every part of this kind: it is kept when an override changes the type."]
    for name, inner in nested:
        lines += ["", f"### Fields of {name}", "", *_table(inner, inner.kind)]
    return lines


def _type(info: FieldInfo) -> str:
    slot = slot_of(info)
    if slot is not None:
        return f"[{slot.kind}]({slot.kind}.md){' or `none`' if slot.optional else ''}"
    words = _words(Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation)
    return _cell(", ".join(words[:-1]) + " or " + words[-1] if len(words) > 1 else words[0])


def _words(annotation: Any) -> list[str]:
    """A type in words a writer of YAML uses, one for each alternative."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        limits = [text for mark in inner[1:] for text in _limits(mark)]
        words = _words(inner[0])
        if any(isinstance(mark, BeforeValidator) for mark in inner[1:]):
            words = [_words(get_args(inner[0])[0])[0], "a pair of them"]  # one number may stand for both
        return [f"{words[0]} {', '.join(limits)}", *words[1:]] if limits else words
    if origin in (Union, types.UnionType):
        return [word for each in inner for word in _words(each)]
    if origin is Literal:
        return [f"`{each}`" for each in inner]
    if origin in (list, tuple):
        return [f"{'list' if origin is list else 'pair'} of {_plural(_words(inner[0])[0])}" if inner else "list"]
    if origin is dict or annotation is dict:
        return ["mapping"]
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return ["mapping, see below"]
    names = {int: "whole number", float: "number", bool: "`true` or `false`", str: "word", type(None): "`null`"}
    return [names.get(annotation, getattr(annotation, "__name__", str(annotation)))]


def _plural(word: str) -> str:
    return re.sub(r"(number|word)\b", r"\1s", word)


def _limits(mark: Any) -> Iterator[str]:
    for each in getattr(mark, "metadata", None) or [mark]:
        for name, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤")):
            bound = getattr(each, name, None)
            if bound is not None and bound < 1e6:  # larger ones only keep typing slips out
                yield f"{sign} {bound:g}"


def _default(info: FieldInfo) -> str:
    if info.is_required():
        slot = slot_of(info)
        return f"needed; type `{slot.default}` unless it says another" if slot is not None and slot.default else "needed"
    default = info.default_factory() if info.default_factory is not None else info.default  # type: ignore[call-arg]
    if isinstance(default, Config):
        return "its defaults"
    plain = {None: "none" if slot_of(info) is not None else "null", True: "true", False: "false"}
    word = plain[default] if default is None or isinstance(default, bool) else default
    return f"`{list(word) if isinstance(word, tuple) else word}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _anchor(name: str) -> str:
    return re.sub(r"[^\w-]", "", name)


if __name__ == "__main__":
    for place, page in pages().items():
        print(f"=== {place}\n{page}")
