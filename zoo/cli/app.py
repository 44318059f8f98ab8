"""Which commands there are."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import typer
import typer.completion

from zoo.cli.attend import attend
from zoo.cli.compare import classify, search
from zoo.cli.demo import demo
from zoo.cli.embed import embed
from zoo.cli.experts import experts
from zoo.cli.generate import generate
from zoo.cli.inspect import components, show
from zoo.cli.listing import list_models, schema
from zoo.cli.plan import plan
from zoo.cli.predict import predict
from zoo.cli.train import evaluate, train
from zoo.cli.weights import convert, load_report, verify

app = typer.Typer(
    name="zoo",
    help="Transformers from typed configs: build, train, load and verify them. Every command takes --debug.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("list")(list_models)
app.command("show")(show)
app.command("plan")(plan)
app.command("components")(components)
app.command("attend")(attend)
app.command("experts")(experts)
app.command("schema")(schema)
app.command("verify")(verify)
app.command("load-report")(load_report)
app.command("convert")(convert)
app.command("train")(train)
app.command("eval")(evaluate)
app.command("predict")(predict)
app.command("classify")(classify)
app.command("search")(search)
app.command("embed")(embed)
app.command("generate")(generate)
app.command("demo")(demo)


def only_names_but(words: Sequence[str]) -> None:
    """Leaves out the arguments of all commands but the one that is typed: to read them takes most of a completion."""
    typed = words[1] if len(words) > 1 else ""
    initialise = getattr(typer.completion, "completion_init", None)
    if initialise is not None and not typed.startswith("-"):
        initialise()  # what typer does for its own options, which would make it import pydantic
        app._add_completion = False
        if len(words) < 3:  # a command's name is typed, so that --help is not asked for either
            app.info.context_settings = {"help_option_names": []}
    for command in app.registered_commands:
        if command.name != typed:
            command.callback = _without_arguments(command.callback)


def _without_arguments(callback: Any) -> Any:
    def named() -> None: ...

    named.__doc__ = callback.__doc__
    return named


def usage_error(error: Exception) -> int | None:
    """Shows an error of the command line's own and gives its exit code; None for any other error."""
    if isinstance(error, typer.Exit):
        return int(error.exit_code)
    if hasattr(error, "show") and hasattr(error, "exit_code"):
        error.show()
        return int(error.exit_code)
    if isinstance(error, typer.Abort):
        print("zoo: interrupted", file=sys.stderr)
        return 130
    return None
