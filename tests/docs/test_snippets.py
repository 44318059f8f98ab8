"""The Python of README.md and docs/*.md runs: each page's blocks in order, in a folder and a namespace of its own, offline.

A block under `<!-- no-test -->` is only read by people. A YAML block under `<!-- file: NAME -->` is written
to that file before the Python behind it runs. All pages run in one process, which imports torch only once.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(?:^<!--\s*(?P<mark>[^>]*?)\s*-->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)

RUNNER = """
import contextlib, io, json, os, pathlib, sys, traceback

for name, code in json.loads(pathlib.Path("programs.json").read_text()).items():
    folder = pathlib.Path(name)
    folder.mkdir()
    home = os.getcwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(code, name, "exec"), {"__name__": "__main__"})
    except BaseException:
        print(f"{name}:", traceback.format_exc(), sep="\\n")
    finally:
        os.chdir(home)
print("done")
"""


def program(page: Path) -> str:
    """What a page's blocks do, as one program; a line of it is the same line of the page."""
    text, steps, line = page.read_text(encoding="utf-8"), [], 1
    for block in BLOCK.finditer(text):
        mark = block["mark"] or ""
        if mark.startswith("file:"):
            name = mark.partition(":")[2].strip()
            step = f"__import__('pathlib').Path({name!r}).write_text({block['text']!r}, encoding='utf-8')\n"
        elif block["language"] == "python" and mark != "no-test":
            step = block["text"]
        else:
            continue
        first = text.count("\n", 0, block.start("text")) + 1
        steps.append("\n" * (first - line) + step)
        line = first + step.count("\n")
    return "".join(steps)


def test_snippets_run(tmp_path: Path) -> None:
    for package in ("transformers", "timm", "lightning"):
        pytest.importorskip(package)
    programs = {page.name: code for page in PAGES if (code := program(page))}
    assert {"README.md", "start.md", "model.md", "configs.md", "weights.md", "verification.md", "training.md"} <= set(programs)
    (tmp_path / "programs.json").write_text(json.dumps(programs), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", RUNNER], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.stdout == "done\n", f"{done.stdout}\n{done.stderr[-3000:]}"
