"""How one config is laid over another: deeply, and with a rule for a part whose type changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args, get_origin

from zoo import registry
from zoo.config.base import Config, Slot, slot_of
from zoo.errors import ConfigError, UnknownNameError


def merge(base: Any, change: Any, slot: Slot) -> Any:
    """`change` laid over `base`, both being what stands in `slot` (a mapping, a name, or nothing).

    Mappings merge field by field. Where `change` names another type of part, the fields that both
    types share (those of their nearest common config class) are kept and the rest is dropped. So is a field
    that follows from one that changes (`Config.follows`), unless the change states it too.
    A list is replaced as a whole, or changed at single places by a mapping with numbers as keys.
    """
    base, change = _fields(base, slot), _fields(change, slot)
    if not isinstance(base, Mapping) or not isinstance(change, Mapping):
        return change
    old, new = slot.type_of(base), change.get("type", slot.type_of(base))
    if old != new:
        shared = _shared(_config_class(slot.kind, old), _config_class(slot.kind, new))
        base = {name: value for name, value in base.items() if name in shared}
    merged = _merge_fields(base, change, _config_class(slot.kind, new))
    return {"type": new, **merged} if new is not None else merged


def unflatten(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`{"head.classes": 10}` as `{"head": {"classes": 10}}`; later entries win.

    Raises:
        ConfigError: a path that goes through a value set just before it.
    """
    nested: dict[str, Any] = {}
    for path, value in overrides.items():
        *parents, last = str(path).split(".")
        place = nested
        for step in parents:
            if isinstance(place.get(step), str):
                place[step] = {"type": place[step]}
            place = place.setdefault(step, {})
            if not isinstance(place, dict):
                raise ConfigError(f"{path}: {step!r} was set to {place!r} before, so nothing can be set inside it")
        if not last or not all(parents):
            raise ConfigError(f"{path!r} is no path of a field: expected names joined by dots, as in head.classes")
        value = _unflattened(value)
        _put(place, last, value)
    return nested


def _put(place: dict[str, Any], name: str, value: Any) -> None:
    old = place.get(name)
    if isinstance(value, dict) and isinstance(old, (dict, str)):
        place[name] = {"type": old} if isinstance(old, str) else old
        for inner, each in value.items():
            _put(place[name], inner, each)
    else:
        place[name] = value


def _unflattened(value: Any) -> Any:
    if isinstance(value, Mapping):
        return unflatten(value)
    return [_unflattened(item) for item in value] if isinstance(value, list) else value


def parse_overrides(words: Iterable[str]) -> dict[str, Any]:
    """Command-line overrides: `["head.classes=10", "head.pool=mean"]`, each value read as YAML."""
    from zoo.config.source import parse_yaml

    overrides: dict[str, Any] = {}
    for word in words:
        path, equals, value = word.partition("=")
        if not equals or not path.strip():
            raise ConfigError(f"{word!r} is no override: expected field=value, as in head.classes=10")
        overrides[path.strip()] = parse_yaml(value, path) if value.strip() else None
    return overrides


def _merge_fields(base: Mapping[str, Any], change: Mapping[str, Any], cls: type[Config] | None) -> dict[str, Any]:
    merged = dict(base)
    for name, value in change.items():
        field = cls.model_fields.get(name) if cls is not None else None
        inner = slot_of(field) if field is not None else None
        if inner is not None:
            # an absent base still matters: `attention.heads: 3` must not lose the slot's default type
            merged[name] = merge(merged.get(name), value, inner)
        elif (each := _slot_of_entries(field)) is not None and isinstance(value, Mapping):
            old = merged.get(name) or {}
            merged[name] = {**old, **{key: merge(old.get(key), entry, each) for key, entry in value.items()}}
        elif isinstance(value, Mapping) and isinstance(merged.get(name), Mapping):
            merged[name] = _merge_fields(merged[name], value, _plain_class(field))
        elif isinstance(value, Mapping) and _is_list(merged.get(name)) and value and all(_number(k) is not None for k in value):
            merged[name] = _merge_items(name, merged[name], value)
        else:
            merged[name] = value
    for name, cause in getattr(cls, "follows", {}).items():
        if cause in change and name not in change and change[cause] != base.get(cause):
            merged.pop(name, None)
    return merged


def _merge_items(name: str, items: Sequence[Any], change: Mapping[Any, Any]) -> list[Any]:
    merged = list(items)
    for key, value in change.items():
        number = _number(key)
        if number is None or number >= len(merged):
            raise ConfigError(f"{name}.{key}: the list has only {len(merged)} entries (0 to {len(merged) - 1})")
        old = merged[number]
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[number] = _merge_fields(old, value, None) if both else value
    return merged


def _number(key: Any) -> int | None:
    text = str(key)
    return int(text[-9:]) if text.isascii() and text.isdigit() and text == text[-9:] else None


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _fields(value: Any, slot: Slot) -> Any:
    if isinstance(value, Config):
        return value.model_dump()
    if value == "none":
        return None if slot.optional else value
    return {"type": value} if isinstance(value, str) else value


def _config_class(kind: str, name: str | None) -> type[Config] | None:
    try:
        return registry.part(kind, name).Config if name is not None else None
    except (UnknownNameError, AttributeError):
        return None  # validation will say so, with the place


def _plain_class(field: Any) -> type[Config] | None:
    annotation = getattr(field, "annotation", None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, Config) else None


def _slot_of_entries(field: Any) -> Slot | None:
    """The slot of each value of a field that is a mapping of names to parts."""
    annotation = getattr(field, "annotation", None)
    values = get_args(annotation)[1:] if get_origin(annotation) is dict else ()
    return next((mark for mark in get_args(values[0])[1:] if isinstance(mark, Slot)), None) if values else None


def _shared(old: type[Config] | None, new: type[Config] | None) -> set[str]:
    if old is None or new is None:
        return set()
    common = next(cls for cls in new.__mro__ if issubclass(old, cls))
    return set(getattr(common, "model_fields", {})) - {"type"}


def difference(base: Any, changed: Any, slot: Slot) -> dict[str, Any]:
    """The smallest mapping that, laid over `base` by `merge`, gives `changed`.

    A part of another type is written out whole.
    """
    if type(base) is not type(changed):
        return changed.model_dump()
    change: dict[str, Any] = {}
    for name, field in type(base).model_fields.items():
        old, new, inner = getattr(base, name), getattr(changed, name), slot_of(field)
        if old == new:
            continue
        both = inner is not None and isinstance(old, Config) and isinstance(new, Config)
        nested = difference(old, new, inner) if both and inner is not None else new
        change[name] = nested.model_dump() if isinstance(nested, Config) else nested
    return change


def differing_fields(base: Any, changed: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """Where two configs differ: (path, value there, value here), a part of another type as one difference."""
    if not (isinstance(base, Config) and isinstance(changed, Config)) or type(base) is not type(changed):
        shown = [getattr(value, "type", value) for value in (base, changed)]
        return [] if base == changed else [(path, *shown)]
    names = type(base).model_fields
    return [
        entry
        for name in names
        for entry in differing_fields(getattr(base, name), getattr(changed, name), f"{path}.{name}".lstrip("."))
    ]
