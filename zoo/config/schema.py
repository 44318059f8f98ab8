"""The JSON Schema of model and run files, every slot a union of the registered parts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from zoo import registry
from zoo.config.base import Config, slot_of
from zoo.config.docs import field_docs


def json_schema(kind: str = "model") -> dict[str, Any]:
    """The schema of files that describe one part of `kind` (`model`, or `run`), for editors.

    Nothing is required, since a file that extends another states only what differs.
    """
    definitions: dict[str, Any] = {}
    for each in registry.kinds():
        names = registry.list_components(each)
        for name in names:
            config: type[Config] = getattr(registry.part(each, name), "Config", None) or Config
            definitions[f"{each}.{name}"] = _part_schema(config, registry.part(each, name), definitions)
        choices = [{"enum": names}, *({"$ref": f"#/$defs/{each}.{name}"} for name in names)]
        definitions[each] = {"anyOf": choices}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"zoo {kind}",
        "$defs": definitions,
        "anyOf": [{"$ref": f"#/$defs/{kind}.{name}"} for name in registry.list_components(kind)],
    }


def _part_schema(config: type[Config], part: type, definitions: dict[str, Any]) -> dict[str, Any]:
    schema = config.model_json_schema(mode="validation")
    inner = {each.__name__: each for each in _inner_configs(config)}
    for name, nested in schema.pop("$defs", {}).items():
        for field, text in field_docs(inner[name]).items() if name in inner else ():
            nested["properties"][field]["description"] = text
        definitions.setdefault(name, _resolved(nested))
    schema["description"] = (part.__doc__ or "").strip().partition("\n")[0]
    schema = _resolved(schema)
    for name, text in field_docs(config).items():
        schema["properties"][name]["description"] = text
    if config.kind in ("model", "run"):
        schema["properties"]["extends"] = {"type": "string", "description": "The preset or file that this one changes."}
    return schema


def _inner_configs(config: type[Config]) -> Iterator[type[Config]]:
    """The configs that stand in fields without being parts, such as the optimiser of a run."""
    for field in config.model_fields.values():
        if slot_of(field) is not None:
            continue
        for each in (field.annotation, *get_args(field.annotation)):
            if isinstance(each, type) and issubclass(each, Config) and each is not Config:
                yield each
                yield from _inner_configs(each)


def _resolved(schema: Any) -> Any:
    """Slots as references to the union of their kind; no field required."""
    if isinstance(schema, list):
        return [_resolved(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "x-slot" in schema:
        union = {"$ref": f"#/$defs/{schema['x-slot']}"}
        rest = {key: value for key, value in schema.items() if key in ("description", "default", "title")}
        return {"anyOf": [union, {"type": "null"}, {"const": "none"}], **rest} if schema["x-optional"] else {**union, **rest}
    return {key: _resolved(value) for key, value in schema.items() if key != "required"}
