"""The pages that explain keep their form: each idea has a picture that is there, and at most five lines of code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = sorted(DOCS.glob("explained*.md"))
SECTIONS = [
    pytest.param(section, id=f"{page.stem}: {section.partition(chr(10))[0]}")
    for page in PAGES
    for section in page.read_text(encoding="utf-8").split("\n## ")[1:]
    if not section.startswith("Read on\n")
]
PICTURE = re.compile(r"^!\[(?P<text>[^\]]*)\]\((?P<path>[^)\s]+)\)$", re.MULTILINE)


def width(path: Path) -> int:
    """Of a PNG file, in pixels."""
    header = path.read_bytes()[:24]
    assert header.startswith(b"\x89PNG"), path.name
    return int.from_bytes(header[16:20], "big")


def test_there_are_pages() -> None:
    assert PAGES and len(SECTIONS) >= 6


@pytest.mark.parametrize("section", SECTIONS)
def test_each_idea_has_a_picture_and_five_lines(section: str) -> None:
    pictures = list(PICTURE.finditer(section))
    assert pictures, "no picture"
    for picture in pictures:
        path = DOCS / picture["path"]
        assert path.is_file() and path.stat().st_size < 200_000, picture["path"]
        assert width(path) == 720, f"{path.name}: twice the 360 points at which style.css shows it"
        assert len(picture["text"].split()) >= 5, f"{path.name} needs a text for those who cannot see it"
    (code,) = re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert 1 <= len([line for line in code.splitlines() if line.strip() and not line.startswith("#")]) <= 5


def test_pictures_are_those_of_the_pages() -> None:
    shown = {picture["path"] for page in PAGES for picture in PICTURE.finditer(page.read_text(encoding="utf-8"))}
    drawn = {f"pictures/{path.name}" for path in (DOCS / "pictures").glob("explained-*.png")}
    assert shown == drawn
