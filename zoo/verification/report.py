"""The answer of a verification: a table, a verdict, the first layer that diverges, and why it may."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

TOLERANCE = 1e-10
"""Largest difference in float64, as a share of the largest value: the references' own noise is about 1e-14."""
FACTOR = 3.0
"""How many times farther than the reference's own float32 ours may be from float64."""
FLOOR = 1e-5
"""Share of the largest value under which float32 differences are noise: a reference in float32 differs from
itself (eager or fused attention, another number of threads) by 1e-6 to 5e-6. Mistakes show in float64."""


@dataclass
class Layer:
    """One module of ours and how far its values are from the reference's, as shares of the largest value."""

    name: str
    own: float = 0.0
    """In float64, when fed with what the reference's module was fed with."""
    float64: float = 0.0
    """In float64, within the whole model."""
    float32: float = 0.0
    """In float32, within the whole model, from the reference in float64."""
    noise: float = 0.0
    """The reference's own float32 from its float64."""

    @property
    def diverges(self) -> bool:
        """Whether the module itself computes something else."""
        return not self.own <= TOLERANCE

    @property
    def passed(self) -> bool:
        """Whether all differences are noise."""
        small = self.float32 <= max(FACTOR * self.noise, FLOOR)
        return self.own <= TOLERANCE and self.float64 <= TOLERANCE and small


@dataclass
class Comparison:
    """Ours against one reference."""

    library: str
    version: str
    exchanged: list[str] = field(default_factory=list)
    """What ours was asked to have otherwise than the reference."""
    layers: list[Layer] = field(default_factory=list)
    gradients: dict[str, float] = field(default_factory=dict)
    """For each parameter, the difference of its gradient in float64."""
    export: float | None = None
    """The difference after exporting ours and opening it there."""
    training: dict[str, float] = field(default_factory=dict)
    """For each dropout site, the difference in train mode when it drops everything."""
    fresh: list[str] | None = None
    """The tensors that the library itself draws otherwise when fresh: another recipe, no mistake."""
    suspects: list[str] = field(default_factory=list)
    cases: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        rest = [*self.gradients.values(), *self.training.values(), self.export if self.export is not None else 0.0]
        return all(layer.passed for layer in self.layers) and all(error <= TOLERANCE for error in rest)

    @property
    def first_divergence(self) -> str | None:
        """The first module, in the order of computation, that computes something else."""
        own = next((layer.name for layer in self.layers if layer.diverges), None)
        if own is not None or self.passed:
            return own
        late = next((layer.name for layer in self.layers if not layer.passed), None)
        wrong = [name for name, error in self.gradients.items() if not error <= TOLERANCE]
        return late or (f"gradient of {wrong[0]}" if wrong else "export" if self.export else "training")

    def worst(self, dtype: str) -> float:
        """The largest difference of any layer in "float64" or "float32"."""
        return max((getattr(layer, dtype) for layer in self.layers), default=0.0)


@dataclass
class Report:
    """What `zoo.verify` found; print it."""

    target: str
    parameters: int
    comparisons: list[Comparison] = field(default_factory=list)
    unavailable: dict[str, str] = field(default_factory=dict)
    """Libraries without such a model, and why."""

    @property
    def passed(self) -> bool:
        """Whether every comparison found nothing but noise."""
        return bool(self.comparisons) and all(comparison.passed for comparison in self.comparisons)

    @property
    def first_divergence(self) -> str | None:
        """The first module of ours that computes something else than a reference; None if none does."""
        return next((each.first_divergence for each in self.comparisons if each.first_divergence), None)

    @property
    def layers(self) -> list[Layer]:
        """The layers of all comparisons."""
        return [layer for comparison in self.comparisons for layer in comparison.layers]

    def as_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            "target": self.target,
            "passed": self.passed,
            "parameters": self.parameters,
            "first_divergence": self.first_divergence,
            "unavailable": self.unavailable,
            "comparisons": [
                {
                    "library": each.library,
                    "version": each.version,
                    "passed": each.passed,
                    "first_divergence": each.first_divergence,
                    "exchanged": each.exchanged,
                    "suspects": each.suspects,
                    "cases": each.cases,
                    "float64": each.worst("float64"),
                    "float32": each.worst("float32"),
                    "gradients": max(each.gradients.values(), default=None),
                    "export": each.export,
                    "training": each.training,
                    "drawn_otherwise": each.fresh,
                    "layers": [vars(layer) | {"passed": layer.passed} for layer in each.layers],
                }
                for each in self.comparisons
            ],
        }

    def __str__(self) -> str:
        lines = [f"{self.target}: {self.parameters:,} parameters"]
        for library, reason in self.unavailable.items():
            lines.append(f"not compared with {library}: {reason}")
        for each in self.comparisons:
            lines += ["", *_table(each)]
        asked = any(each.exchanged for each in self.comparisons)
        if (len(self.comparisons) != 1 or self.unavailable) and (self.passed or not asked):
            lines += ["", "everything agrees" if self.passed else "NOT VERIFIED"]
        return "\n".join(lines)


def _table(each: Comparison) -> list[str]:
    lines = [
        f"against {each.library} {each.version}: {', '.join(each.cases)}",
        f"{'':34}{'fed alike':>11}{'float64':>11}{'float32':>11}{'its noise':>11}",
    ]
    noisy = all(layer.passed for layer in each.layers)
    shown = [layer for layer in each.layers if not (noisy and re.search(r"layers\.\d+\.", layer.name))]
    for layer in shown:
        word = "differs" if each.exchanged else "bug"
        mark = (
            "" if layer.passed else f"  <- {word}" if layer.diverges else "  <- follows" if each.exchanged else "  <- not noise"
        )
        numbers = "".join(f"{value:11.1e}" for value in (layer.own, layer.float64, layer.float32, layer.noise))
        lines.append(f"{layer.name:34}{numbers}{mark}")
    if each.gradients:
        lines.append(f"{'gradients of all parameters':34}{'':11}{max(each.gradients.values()):11.1e}")
    if each.training:
        lines.append(f"{'train mode, each dropout at 1':34}{'':11}{max(each.training.values()):11.1e}")
        lines += [f"  {site}: {error:.1e}  <- bug" for site, error in each.training.items() if not error <= TOLERANCE]
    if each.fresh is not None:
        lines.append(f"{'fresh weights':34}{_recipe(each.fresh):>22}")
    if each.export is not None:
        lines.append(f"{'exported and opened there':34}{'':11}{each.export:11.1e}")
    if each.passed:
        return [*lines, "verdict: noise"]
    own = [layer.name for layer in each.layers if layer.diverges]
    verdict = "differs, as asked" if each.exchanged else "BUG"
    lines.append(f"verdict: {verdict}; first divergence: {each.first_divergence}")
    if own:
        inner = [name for name in own if not any(other.startswith(name + ".") for other in own)]
        lines.append(f"modules that compute something else: {', '.join(inner[:8])}{' ...' if len(inner) > 8 else ''}")
    if each.exchanged:
        equal = sum(not layer.diverges for layer in each.layers)
        lines.append(f"modules that, fed alike, equal the reference: {equal} of {len(each.layers)}")
    lines += [f"asked for: {change}" for change in each.exchanged]
    return lines + [f"suspect: {suspect}" for suspect in each.suspects]


def _recipe(differing: list[str]) -> str:
    """In words, whether the reference draws its fresh weights as ours are drawn."""
    return "drawn alike" if not differing else f"{len(differing)} drawn otherwise"
