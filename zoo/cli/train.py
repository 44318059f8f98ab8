"""`zoo train` and `zoo eval`: models from data."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from zoo.training.session import TrainingResult

REFERENCES = ("test_unigram", "test_zlib", "test_bz2", "test_lzma")
"""How the names of figures begin that are those of simple methods."""
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def train(
    run: Annotated[str, typer.Argument(help="A run's name (zoo list --runs) or a YAML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes, as in trainer.max_epochs=3.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Train once for each, as in 0,1,2, and compare with simple models.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in the folder when done.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the unfinished run in the folder.")] = False,
    as_json: Json = False,
) -> None:
    """Train a model as a run's config says."""
    from zoo.cli.progress import telling
    from zoo.config.merge import parse_overrides

    change = parse_overrides(overrides or [])
    options = {"overwrite": overwrite, "resume": resume, "progress": not as_json}
    numbers = _numbers(seeds) if seeds is not None else None
    with telling(quiet=as_json) as tell:
        tell("reading the run")
        configs = _configs(run, change, numbers)
    results = [_start(config, options) for config in configs]
    if numbers is None:
        _print_run(results[0], _compared_by(configs[0]), as_json)
        return
    with telling(quiet=as_json) as tell:
        tell("training simple models on the same examples")
        name = _compared_by(configs[0])
        compared = _references(results[0].metrics) or _baselines(configs[0].data)
    _print_seeds(numbers, results, name, compared, as_json)


def evaluate(
    source: Annotated[str, typer.Argument(help="A run's folder, a model's folder, a checkpoint or a Hub id.")],
    changes: Annotated[list[str] | None, typer.Argument(help="Changes of the run, as in data.batch_size=8.")] = None,
    data: Annotated[str | None, typer.Option(help="On which data; by default those of the run.")] = None,
    as_json: Json = False,
) -> None:
    """Measure a model on the part of the data that no training sees."""
    from zoo.cli.progress import telling
    from zoo.config.merge import parse_overrides

    change = parse_overrides(changes or [])
    with telling(quiet=as_json) as tell:
        tell("loading")
        from zoo.training.evaluate import evaluate as measure

        tell("evaluating")
        result = measure(source, data, changes=change)
    if as_json:
        print(json.dumps({**result.metrics, "examples": result.examples}, indent=2))
        return
    print(f"{source}: on {result.examples} examples that no training saw")
    width = max(12, *(len(name) + 2 for name in result.metrics))
    for name, value in result.metrics.items():
        print(f"  {name:{width}}{_figure(name, value)}")


def _configs(run: str, change: dict[str, Any], numbers: list[int] | None) -> list[Any]:
    from zoo.training.run import resolve_run

    config = resolve_run(run, change)
    if numbers is None:
        return [config]
    return [resolve_run(config, {"seed": number, "folder": f"{config.folder}-seed-{number}"}) for number in numbers]


def _start(config: Any, options: dict[str, Any]) -> TrainingResult:
    from zoo.training.session import run

    return run(config, **options)


def _compared_by(config: Any) -> str:
    """The figure by which models of this task are compared."""
    from zoo.registry import make

    name: str = make(config.task).best[0]
    return name


def _baselines(data: Any) -> dict[str, float]:
    from zoo.training.baselines import baselines

    return baselines(data)


def _references(metrics: dict[str, float]) -> dict[str, float]:
    """What a task says that the figures of a model are to be compared with."""
    return {name[5:].replace("_", " "): value for name, value in metrics.items() if name.startswith(REFERENCES)}


def _print_run(result: TrainingResult, name: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"folder": str(result.folder), **result.metrics}, indent=2))
        return
    metrics = result.metrics
    references = "".join(f"; {what} {_figure(what, value)}" for what, value in _references(metrics).items())
    print(
        f"{result.folder}: {name} {_figure(name, metrics[f'test_{name}'])} on the examples kept out{references}, after "
        f"{metrics['epochs']:.0f} epochs and {metrics['seconds']:.0f} s"
    )
    print("  model/ (zoo.load), last.ckpt, config.yaml, metrics.csv, curve.png, logs/ (tensorboard --logdir)")


def _print_seeds(
    numbers: list[int], results: list[TrainingResult], name: str, compared: dict[str, float], as_json: bool
) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    reached = [result.metrics[f"test_{name}"] for result in results]
    mean = sum(reached) / len(reached)
    if as_json:
        runs = [{"seed": number, "folder": str(result.folder), **result.metrics} for number, result in zip(numbers, results)]
        print(json.dumps({"runs": runs, f"mean_test_{name}": mean, "baselines": compared}, indent=2))
        return
    table = Table("", f"test {name}", "seconds", "folder", box=SIMPLE_HEAD)
    for column in table.columns[1:3]:
        column.justify = "right"
    table.columns[3].overflow = "fold"
    for number, value, result in zip(numbers, reached, results):
        table.add_row(f"seed {number}", _figure(name, value), f"{result.metrics['seconds']:.0f}", str(result.folder))
    total = sum(result.metrics["seconds"] for result in results)
    table.add_section()
    table.add_row("mean", _figure(name, mean), f"{total:.0f} in all", "", style="bold")
    table.add_section()
    for what, value in compared.items():
        table.add_row(what, _figure(name, value), "", "")
    Console().print(table)


def _figure(name: str, value: float) -> str:
    return f"{value * 100:.2f} %" if name.endswith(("accuracy", "exact_match")) else f"{value:.4f}"


def _numbers(seeds: str) -> list[int]:
    from zoo.errors import ConfigError

    words = [word.strip() for word in seeds.split(",")]
    if not all(word.isdecimal() for word in words) or len(set(words)) < len(words):
        raise ConfigError(f"--seeds: {seeds!r} are no different whole numbers; expected some such as 0,1,2")
    return [int(word) for word in words]
