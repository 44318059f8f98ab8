"""The JSON Schema of model and run files: valid, accepting what ships, rejecting typos where they stand."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

import zoo
from zoo import registry
from zoo.config.schema import json_schema
from zoo.config.source import read_yaml
from zoo.resources import folder

KINDS = [kind for kind in ("model", "run") if kind in registry.kinds()]
FOLDERS = {"model": "models", "run": "train"}


def files(kind: str) -> list[Path]:
    """The shipped files of a kind."""
    return sorted((folder("configs") / FOLDERS[kind]).glob("*.yaml"))


@pytest.fixture(scope="module")
def schemas() -> dict[str, Any]:
    """The schemas by kind."""
    return {kind: json_schema(kind) for kind in KINDS}


def errors(schema: Any, value: Any) -> list[str]:
    """The places at which a value breaks the schema, the deepest of all alternatives included."""
    import jsonschema

    def walk(error: Any) -> Any:
        yield ".".join(map(str, error.absolute_path)) + ": " + error.message
        for inner in error.context or ():
            yield from walk(inner)

    validator = jsonschema.Draft202012Validator(schema)
    return [line for error in validator.iter_errors(value) for line in walk(error)]


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_a_valid_schema_without_dangling_references(kind: str, schemas: dict[str, Any]) -> None:
    import jsonschema

    jsonschema.Draft202012Validator.check_schema(schemas[kind])
    text = json.dumps(schemas[kind])
    used = {piece.partition('"')[0] for piece in text.split('"#/$defs/')[1:]}
    assert used and used <= set(schemas[kind]["$defs"])
    assert "x-slot" not in text


@pytest.mark.parametrize(("kind", "path"), [pytest.param(k, p, id=f"{k}-{p.stem}") for k in KINDS for p in files(k)])
def test_it_accepts_every_shipped_file(kind: str, path: Path, schemas: dict[str, Any]) -> None:
    assert errors(schemas[kind], read_yaml(path)) == []


@pytest.mark.parametrize("name", zoo.list_models())
def test_it_accepts_whole_configs(name: str, schemas: dict[str, Any]) -> None:
    assert errors(schemas["model"], zoo.get_config(name).model_dump(mode="json")) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("head.clases", 3),
        ("stack.block.attention.haeds", 3),
        ("stack.block.norm.epsilon", 1e-5),
        ("embedding.position.sqare", True),
        ("stack.depth", "twelve"),
        ("stack.depth", 0),
        ("stack.block.order", "before"),
        ("head.dropout", 1.5),
        ("stack.block.norm", "layernorm"),
        ("embedding.image_size", [1, 2, 3]),
        ("stack.pattern", [{"nrm": "rms-norm"}]),
    ],
)
def test_it_rejects_what_the_config_rejects_with_its_place(path: str, value: Any, schemas: dict[str, Any]) -> None:
    with pytest.raises(zoo.errors.ZooError):
        zoo.get_config("vit-base", {path: value})
    fields = copy.deepcopy(zoo.get_config("vit-base").model_dump(mode="json"))
    *parents, last = path.split(".")
    place = fields
    for step in parents:
        place = place[step]
    place[last] = value
    found = errors(schemas["model"], fields)
    assert found
    assert any(line.startswith((f"{path}", f"{'.'.join(parents)}: ")) and (last in line) for line in found), found[:20]


@pytest.mark.parametrize("kind", KINDS)
def test_every_slot_is_a_union_of_the_registered_parts(kind: str, schemas: dict[str, Any]) -> None:
    for each in registry.kinds():
        names = schemas[kind]["$defs"][each]["anyOf"][0]["enum"]
        assert names == registry.list_components(each)


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_is_described(kind: str, schemas: dict[str, Any]) -> None:
    parts = {name: each for name, each in schemas[kind]["$defs"].items() if "." in name}
    bare = [
        f"{n}.{f}"
        for n, each in parts.items()
        for f, v in each["properties"].items()
        if f != "type" and not v.get("description")
    ]
    assert bare == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_committed_schema_is_the_generated_one(kind: str, schemas: dict[str, Any]) -> None:
    path = folder("configs") / "schema" / f"{kind}.json"
    assert json.loads(path.read_text()) == json.loads(json.dumps(schemas[kind])), "run: zoo schema -o configs/schema"


@pytest.mark.parametrize("path", [p for k in KINDS for p in files(k)], ids=lambda path: path.stem)
def test_every_shipped_file_names_its_schema(path: Path) -> None:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    assert first == f"# yaml-language-server: $schema=../schema/{'model' if path.parent.name == 'models' else 'run'}.json"
