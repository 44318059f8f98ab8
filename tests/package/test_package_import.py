"""Importing zoo and listing models cost next to nothing, and do nothing else."""

from __future__ import annotations

import json
import re
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import zoo

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def test_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+([.-]?\w+)?", zoo.__version__)


@pytest.mark.parametrize("name", [name for name in zoo.__all__ if name != "__version__"])
def test_every_public_name_is_there_and_documented(name: str) -> None:
    assert callable(getattr(zoo, name)) and getattr(zoo, name).__doc__
    assert name in dir(zoo)


def test_an_unknown_attribute_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'zoo' has no attribute 'biuld'"):
        _ = zoo.biuld


HEAVY = ("torch", "pydantic", "transformers", "timm", "lightning", "safetensors", "huggingface_hub", "numpy", "typer", "yaml")


@pytest.mark.parametrize(
    "code",
    [
        "import zoo",
        "import zoo; zoo.list_models('vit*')",
        "from zoo.cli import main\ntry:\n main(['list'])\nexcept SystemExit: pass",
    ],
)
def test_nothing_heavy_is_imported(run: Run, code: str) -> None:
    done = run("-c", f"import sys\n{code}\nprint([name for name in {HEAVY} if name in sys.modules])")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "module",
    [
        "zoo.config",
        "zoo.config.merge",
        "zoo.config.resolve",
        "zoo.config.source",
        "zoo.registry",
        "zoo.presets",
        "zoo.errors",
        "zoo.api",
        "zoo.cli",
    ],
)
def test_no_torch_is_imported_by(module: str, run: Run) -> None:
    done = run("-c", f"import sys, {module}; print('torch' in sys.modules)")
    assert done.returncode == 0 and done.stdout.strip() == "False", done.stderr


def best(run: Run, *arguments: str, **environment: str) -> float:
    """The shortest of five times of a command, less that of Python itself: of a processor, whoever else is there."""

    def used() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    def once(*words: str) -> float:
        before = used()
        done = run(*words, **environment)
        assert done.returncode == 0, done.stderr
        return used() - before

    return min(once(*arguments) for _ in range(5)) - min(once("-c", "pass") for _ in range(3))


def test_importing_takes_less_than_150_milliseconds(run: Run) -> None:
    assert best(run, "-c", "import zoo; zoo.list_models()") < 0.15


def test_listing_takes_less_than_150_milliseconds(run: Run) -> None:
    assert best(run, "-m", "zoo", "list") < 0.15


def test_completion_takes_less_than_150_milliseconds(run: Run) -> None:
    settings = {"_ZOO_COMPLETE": "complete_bash", "COMP_WORDS": "zoo li", "COMP_CWORD": "1"}
    assert best(run, "-m", "zoo", **settings) < 0.15
    assert "list" in run("-m", "zoo", **settings).stdout.split()


def test_importing_changes_nothing(run: Run, tmp_path: Path) -> None:
    code = """
import json, os, random, sys, threading, warnings, logging, signal, locale
def state():
    return [sorted(os.environ.items()), random.getstate()[1][:5], threading.active_count(), len(warnings.filters),
            logging.root.level, len(logging.root.handlers), str(signal.getsignal(signal.SIGINT)),
            os.getcwd(), sys.getrecursionlimit()]
before = json.dumps(state())
import zoo
zoo.list_models()
print(before == json.dumps(state()), os.listdir("."))
"""
    done = subprocess.run(
        [__import__("sys").executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(Path(zoo.__file__).parents[1])},
        check=False,
    )
    assert done.stdout.strip() == "True []" and done.stderr == "", done


def test_importing_everything_leaves_torch_as_it_was(run: Run) -> None:
    code = """
import torch
def state():
    return (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(), torch.initial_seed(),
            torch.get_rng_state().sum().item(), str(torch.get_default_device()), torch.are_deterministic_algorithms_enabled())
torch.manual_seed(3)
before = state()
import zoo, zoo.api, zoo.model.transformer, zoo.checkpoint.load, zoo.checkpoint.save
model = zoo.build("vit-tiny", device="meta")
print(state() == before)
"""
    assert run("-c", code).stdout.strip() == "True"


def test_presets_are_listed_in_natural_order() -> None:
    names = zoo.list_models()
    assert len(names) == len(set(names)) >= 18
    assert zoo.list_models("vit-tiny*") == ["vit-tiny", "vit-tiny-384"]
    assert zoo.list_models("nothing*") == []


def test_every_preset_has_a_summary() -> None:
    from zoo.presets import summary

    for name in zoo.list_models():
        text = summary(name)
        assert 5 < len(text) < 160 and "$schema" not in text and "http" not in text, (name, text)


def test_pretrained_names_start_with_a_preset() -> None:
    from zoo.config.source import pretrained

    for name, hub in pretrained().items():
        known = zoo.list_models()
        assert (name in known or name.rpartition(".")[0] in known) and hub.count("/") == 1


def test_the_public_face_is_what_the_type_checker_sees(repository: Path) -> None:
    text = (repository / "zoo" / "__init__.py").read_text()
    declared = set(re.findall(r"^    from [\w.]+ import (\w+) as \1$", text, re.MULTILINE))
    assert declared == set(zoo.__all__) - {"__version__"}
    assert json.dumps(sorted(declared))
