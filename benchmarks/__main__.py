"""`python -m benchmarks`: speed against the peers. Let nothing else run meanwhile."""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import torch

from benchmarks import experts, generation, local_attention, models, pairs, startup, texts, translation
from benchmarks.harness import disturbance


def main() -> None:
    """Measures what is asked for and prints one line for each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", default="", help="model names or 'startup', joined by commas")
    parser.add_argument("--mode", default="forward,step")
    parser.add_argument("--dtype", default="float32,autocast")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, help="append the results to this file, one object a line")
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(chosen.threads)
    print(f"others take {disturbance():.2f} of a core; torch {torch.__version__}, {chosen.threads} threads", flush=True)
    names = (
        chosen.only.split(",")
        if chosen.only
        else [
            *models.BATCH,
            *texts.JOBS,
            *pairs.JOBS,
            *translation.JOBS,
            *generation.JOBS,
            *local_attention.JOBS,
            *experts.JOBS,
            "startup",
        ]
    )
    for name in names:
        rows = measured(name, chosen.mode.split(","), chosen.dtype.split(","), chosen.rounds)
        for row in rows:
            title = row.get("job") or f"{row['model']} {row['mode']} {row['dtype']}"
            times = ", ".join(f"{key} {value}" for key, value in row["milliseconds"].items())
            print(f"{title:40} x{row['faster than the faster peer']:<6} {times} ms", flush=True)
            if chosen.json:
                with chosen.json.open("a") as file:
                    file.write(json.dumps(row) + "\n")


def measured(name: str, modes: list[str], dtypes: list[str], rounds: int) -> list[dict[str, Any]]:
    """The rows of one name."""
    if name == "startup":
        return startup.measure(rounds)
    if name in generation.JOBS:
        return [generation.measure(name, rounds)]
    if name in translation.WRITING:
        return [translation.writing(name, rounds)]
    if name in experts.JOBS:
        return [experts.measure(name, mode, rounds) for mode in modes]
    if name in local_attention.JOBS:
        return [local_attention.measure(name, mode, rounds) for mode in modes]
    module: Any = next((each for each in (texts, pairs, translation) if name in each.JOBS), models)
    return [module.measure(name, mode, dtype == "autocast", rounds) for mode in modes for dtype in dtypes]


if __name__ == "__main__":
    main()
