"""Where configs come from: preset names, YAML files, and what they `extend`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import ConfigError, ZooError
from zoo.presets import find
from zoo.resources import folder

if TYPE_CHECKING:
    from zoo.config.base import Slot

_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


def pretrained() -> dict[str, str]:
    """The names of pretrained weights and their Hub ids."""
    return dict(read_yaml(folder("configs") / "pretrained.yaml"))


def read_yaml(path: Path) -> Any:
    """The content of a YAML file, by the rules of YAML 1.2.

    `1e-5` is a number and `no` a word (PyYAML alone reads them as a word and as false), and a key
    that stands twice is an error.

    Raises:
        ConfigError: the file is missing, unreadable or no YAML; the message names file and line.
    """
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def parse_yaml(text: str, place: str = "") -> Any:
    """As `read_yaml`, for a text; `place` stands in front of an error's message."""
    import yaml

    try:
        _check_size(text)
        return yaml.load(text, Loader=_loader())
    except ValueError as error:  # of a number such as 0x_, or one of thousands of digits
        raise ConfigError(f"{place}: no valid YAML: {error}" if place else f"no valid YAML: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{place}:{mark.line + 1}" if mark and place else place
        what = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{where}: no valid YAML: {what}" if where else f"no valid YAML: {what}") from None


def _check_size(text: str, depth: int = 100, limit: int = 100_000) -> None:
    """Refuses, before anything is built, what is nested too deeply, what aliases blow up, and tags."""
    import yaml

    open_nodes: list[int] = [0]  # the sizes, with aliases written out, of the collections around this place
    sizes: dict[str, int] = {}
    names: list[str | None] = []
    event: Any
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        problem = None
        if isinstance(event, yaml.AliasEvent):
            problem = None if event.anchor in sizes else f"the alias *{event.anchor} stands for nothing before it"
            open_nodes[-1] += sizes.get(str(event.anchor), 0)
        elif isinstance(event, yaml.CollectionEndEvent):
            size, name = open_nodes.pop() + 1, names.pop()
            open_nodes[-1] += size
            sizes.update({name: size} if name is not None else {})
        elif isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent)):
            if event.tag is not None:
                problem = f"tags such as {event.tag} have no place in a config"
            if isinstance(event, yaml.CollectionStartEvent):
                open_nodes.append(0)
                names.append(event.anchor)
            else:
                open_nodes[-1] += 1
                sizes.update({event.anchor: 1} if event.anchor is not None else {})
        if len(open_nodes) > depth:
            problem = f"nested more than {depth} deep"
        elif open_nodes[-1] > limit:
            problem = f"more than {limit} values, aliases written out"
        if problem is not None:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)


def read_source(name: str | Path, category: str, slot: Slot) -> dict[str, Any]:
    """The merged fields of a preset or a YAML file, whatever it extends included; not yet validated."""
    return _read(name, category, slot, seen=())[0]


def parent_of(name: str | Path, category: str, slot: Slot) -> dict[str, Any] | None:
    """The merged fields of what a YAML file extends; None if it extends nothing."""
    return _read(name, category, slot, seen=())[1]


def _read(name: str | Path, category: str, slot: Slot, seen: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    from zoo.config.merge import merge

    try:
        path = find(name, category)
    except ZooError as error:
        raise (type(error)(f"{seen[-1]}: extends: {error}") if seen else error) from None
    here = str(path.resolve())
    if here in seen:
        raise ConfigError(f"{path}: extends itself: {' -> '.join(Path(step).name for step in (*seen, here))}")
    fields = read_yaml(path)
    if not isinstance(fields, Mapping):
        raise ConfigError(f"{path}: a config is a mapping of fields, not {type(fields).__name__}")
    fields = {str(key): value for key, value in fields.items()}
    parent_name = fields.pop("extends", None)
    if parent_name is None:
        return fields, None
    if not isinstance(parent_name, str):
        raise ConfigError(f"{path}: extends: expected the name of a preset or a file, got {parent_name!r}")
    beside = path.parent / parent_name
    parent, _ = _read(beside if beside.is_file() else parent_name, category, slot, (*seen, here))
    return merge(parent, fields, slot), parent


def _loader() -> Any:
    import yaml

    base = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Loader(base):  # type: ignore[misc, valid-type]
        """YAML 1.2's idea of a number and of a truth value, and no key twice."""

        yaml_implicit_resolvers = {
            first: [
                (tag, pattern)
                for tag, pattern in resolvers
                if tag.rpartition(":")[2] not in ("float", "bool", "timestamp", "merge", "value")
            ]
            for first, resolvers in base.yaml_implicit_resolvers.items()
        }

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            for place, key in enumerate(keys):
                if not isinstance(key, (str, int)):
                    raise yaml.constructor.ConstructorError(None, None, f"{key!r} cannot name a field", node.start_mark)
                if key in keys[:place]:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"{key!r} stands twice", node.value[place][0].start_mark
                    )
            mapping: dict[Any, Any] = super().construct_mapping(node, deep)
            return mapping

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"^({_FLOAT.pattern})$"), list("-+0123456789."))
    Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
    return Loader
