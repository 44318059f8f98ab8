"""The command line: `zoo COMMAND`; one file for each group of commands."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Sequence

from zoo.errors import ZooError


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command and exits: 0 on success, 1 on failure with one clear line, 2 on wrong usage, 130 on Ctrl-C."""
    if not _is_first():
        _follow()
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        if words == ["list"]:  # people call this all the time: no parser of arguments is needed for it
            from zoo.presets import list_models, print_rows, summary

            print_rows({name: summary(name) for name in list_models()})
            sys.stdout.flush()
            sys.exit(0)
        from zoo.cli.app import app, only_names_but, usage_error

        if "_ZOO_COMPLETE" in os.environ:  # bash says what is typed in the first of these, other shells in the second
            only_names_but((os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS") or "").split())

        warnings.formatwarning = lambda message, *_: f"zoo: {message}\n"  # one line, as errors are
        code = app(args=words, prog_name="zoo", standalone_mode=False) or 0
        if code == 130:  # typer's way to say Ctrl-C
            raise KeyboardInterrupt
        sys.exit(code)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone: say no more
        sys.exit(141)
    except ZooError as error:
        if debug:
            raise
        _fail(str(error), 1)
    except Exception as error:
        code = usage_error(error)
        if code is not None:
            sys.exit(code)
        if debug:
            raise
        _fail(f"{type(error).__name__}: {error} (this should not happen; --debug shows where)", 1)


def _is_first() -> bool:
    """Whether this is the process that speaks, of those of one training that Lightning, torchrun or SLURM started."""
    known = [os.environ[name] for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if name in os.environ]
    machine = "0" if "RANK" in os.environ else os.environ.get("NODE_RANK", "0")
    return (known or ["0"])[0] == machine == "0"


def _follow() -> None:
    """Keeps a process quiet that another one of the same training speaks for; Ctrl-C is for that one."""
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _fail(message: str, code: int) -> None:
    print(f"zoo: {message}", file=sys.stderr)
    sys.exit(code)
