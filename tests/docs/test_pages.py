"""The pages say what there is: every part and field explained, every command real, every link to a file alive."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from zoo import registry
from zoo.config.docs import field_docs

ROOT = Path(__file__).resolve().parents[2]
PARTS = [(kind, name) for kind in registry.kinds() for name in registry.page(kind)]
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture(scope="module")
def generated() -> dict[str, str]:
    spec = importlib.util.spec_from_file_location("gen_parts", ROOT / "docs" / "gen_parts.py")
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pages: dict[str, str] = module.pages()
    return pages


@pytest.mark.parametrize(("kind", "name"), PARTS, ids=lambda value: str(value))
def test_each_part_is_explained(kind: str, name: str, generated: dict[str, str]) -> None:
    config = registry.part(kind, name).Config
    documented = field_docs(config)
    assert (registry.part(kind, name).__doc__ or "").strip(), f"{kind} {name} has no docstring"
    assert [field for field in config.model_fields if field != "type" and not documented.get(field)] == []
    page = generated[f"parts/{kind}.md"]
    assert f"\n## {name}\n" in page
    assert all(f"| `{field}`" in page for field in config.model_fields if field != "type")


def test_no_cell_of_a_table_is_empty(generated: dict[str, str]) -> None:
    rows = [line for page in generated.values() for line in page.splitlines() if line.startswith("|")]
    assert rows and not [row for row in rows if re.search(r"\|\s+\|", row)]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_commands_exist(path: Path) -> None:
    from zoo.cli.app import app

    known = {command.name for command in app.registered_commands}
    text = path.read_text(encoding="utf-8")
    named = set(re.findall(r"(?:^|`|\$ |/)zoo ([a-z-]+)(?=[ `\n])", text, re.MULTILINE)) - {"itself"}
    assert named <= known, f"{path.name} names {named - known}"


@pytest.mark.parametrize("path", TEXTS[:2], ids=lambda path: path.name)
def test_links_to_files_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(((?!https?:)[^)#]+)", path.read_text(encoding="utf-8"))
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_places_of_the_generated_table() -> None:
    for path in (ROOT / "README.md", ROOT / "docs" / "verified.md"):
        text = path.read_text(encoding="utf-8")
        assert text.count("<!-- verified-models:start -->") == text.count("<!-- verified-models:end -->") == 1
