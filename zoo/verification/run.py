"""The verification: build the reference, redraw it, read it through our rules, compare."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from zoo.checkpoint.family import Family
from zoo.checkpoint.load import load_model
from zoo.checkpoint.locate import families, locate
from zoo.checkpoint.save import export_model, family_for
from zoo.config.merge import differing_fields
from zoo.config.resolve import merge_overrides, resolve, resolve_unchanged, validate
from zoo.errors import ConfigError, UnknownNameError, did_you_mean
from zoo.model.base import Model
from zoo.model.construct import on_meta
from zoo.verification.calls import Batches, both_called
from zoo.verification.cases import cases
from zoo.verification.compare import answered, error, layouts, own_errors, pairs, recording
from zoo.verification.reference import Library, libraries, redraw
from zoo.verification.report import TOLERANCE, Comparison, Layer, Report
from zoo.verification.shrink import shrink
from zoo.verification.stored import read_as_ours
from zoo.verification.suspects import suspects

SCALES = (0.25, 1.5)
"""Small weights show a wrong eps, large ones everything else."""
LARGE = 200_000_000
"""Parameters from which one example at a time is compared, and gradients, which double the memory, only if asked for."""


def verify(
    target: Any,
    overrides: Mapping[str, Any] | None = None,
    *,
    weights: str | Path | None = None,
    reference: str | None = None,
    tiny: bool = False,
    gradients: bool | None = None,
    training: bool = True,
    seed: int = 0,
    tell: Callable[[str], None] = lambda message: None,
) -> Report:
    """See `zoo.verify`.

    Args:
        tiny: verify the model with few layers and small sizes, which takes a second.
        gradients: compare them too (default: unless the model is large).
        training: compare train mode too, on the small version of the model.
        seed: of the redrawn weights and the inputs.
        tell: is told what is being done.

    Raises:
        UnknownNameError, ConfigError, WeightsError: the target cannot be read, or no reference has such a model.
        MissingExtraError: the extra `verify` is not installed.
    """
    chosen = _libraries(reference)
    stored = weights if weights is not None else _stored(target)
    base, ours = _configs(target, overrides, stored)
    if tiny:
        base, ours = shrink(base), shrink(ours)
    if reference is None:  # a library without a single model of this kind is not worth a word
        chosen = [each for each in chosen if any(f.library == each and f.assembly == base.type for f in families())]
    name = target if isinstance(target, (str, Path)) else "config"
    report = Report(str(name), on_meta(ours).num_parameters())
    changes = None if base == ours else ours.model_dump()
    large = report.parameters >= LARGE
    gradients = not large if gradients is None else gradients
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fields that only act in training and that a library lacks
        for library_name in chosen:
            try:
                family, values = family_for(base, library_name)
            except ConfigError as problem:
                report.unavailable[library_name] = str(problem)
                continue
            library = libraries()[library_name]()
            exchanged = [f"{path} is {new!r} instead of {old!r}" for path, old, new in differing_fields(base, ours)]
            comparison = Comparison(library.name, library.version, exchanged)
            with tempfile.TemporaryDirectory() as folder:
                for number, saved in enumerate(_references(library, family, values, base, stored, Path(folder), seed, tell)):
                    tell(f"comparing with {library_name}, weights {number + 1}")
                    batches = cases(base, library_name, seed, examples=1 if large else 2)
                    comparison.cases = comparison.cases or list(batches)
                    if number > 0:  # the other ways through the model need no second scale of weights
                        batches = {name: batch for name, batch in batches.items() if name == comparison.cases[0]}
                    pair = _opened(library, family, saved, changes, seed)
                    _compare(library, pair, batches, comparison)
                    if number == 0 and gradients:
                        tell(f"comparing gradients with {library_name}")
                        _gradients(library, pair, batches, comparison, Path(folder))
                    if number == 0 and changes is None:
                        _export(library, pair, batches, comparison, Path(folder))
                    _single(library, pair, batches, comparison)
            if training and changes is None and stored is None:
                from zoo.verification.fresh import fresh_differences
                from zoo.verification.training import training_errors

                tell(f"comparing train mode with {library_name}")
                comparison.training = training_errors(library, base, seed)
                comparison.fresh = fresh_differences(library, base, seed)
            report.comparisons.append(comparison)
    if not report.comparisons:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in report.unavailable.items())
        reasons = reasons or f"no library has models of type {base.type!r}"
        raise ConfigError(f"{name}: no reference to verify it against ({reasons})")
    return report


def _libraries(reference: str | None) -> list[str]:
    if reference is None:
        return list(libraries())
    if reference not in libraries():
        hint = did_you_mean(reference, libraries()) or f"; expected {' or '.join(libraries())}"
        raise UnknownNameError(f"reference: {reference!r} is no library we compare with{hint}")
    return [reference]


def _stored(target: Any) -> str | Path | None:
    """The target itself, where it has weights of its own."""
    path = Path(target) if isinstance(target, (str, Path)) else None
    if path is not None and (path.is_dir() or path.suffix == ".ckpt"):
        return path
    if path is None or path.suffix in (".yaml", ".yml"):
        return None
    from zoo.config.source import pretrained
    from zoo.presets import list_models

    if str(target) in list_models():
        return None  # a preset of this name needs no download; `weights` says that the pretrained ones are meant
    return str(target) if str(target) in pretrained() or "/" in str(target) else None


def _configs(target: Any, overrides: Mapping[str, Any] | None, stored: str | Path | None) -> tuple[Any, Any]:
    """The config of the reference, and ours."""
    if stored is not None:
        found = locate(stored)
        return validate(found.fields, found.place), validate(merge_overrides(found.fields, overrides), found.place)
    ours: Any = resolve(target, overrides)
    base: Any = resolve(target)
    if not _expressible(base):
        base = resolve_unchanged(target) or base
    place = "decoder.head" if hasattr(ours, "decoder") else "head"
    heads: list[Any] = [getattr(each, "decoder", each).head for each in (base, ours)]
    if base.type == ours.type and getattr(heads[0], "type", None) != getattr(heads[1], "type", None):
        # another head answers another question: the reference has it too, if it knows such a model
        other = validate(merge_overrides(base.model_dump(), {place: heads[1] and heads[1].model_dump()}))
        if _expressible(other) or getattr(heads[1], "type", None) == "multiple-choice":
            base = other  # what takes several texts for each example is compared with the like or not at all
    return base, ours


def _expressible(config: Any) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for family in families():
            if family.assembly != config.type:
                continue
            try:
                family.write_config(config)
                return True
            except ConfigError:
                continue
    return False


def _references(
    library: Library,
    family: Family,
    values: dict[str, Any],
    config: Any,
    stored: Any,
    folder: Path,
    seed: int,
    tell: Callable[[str], None],
) -> Iterator[Path]:
    """Folders that the library itself saved: one for each scale of weights, or one with the stored weights."""
    if stored is not None:
        tell(f"exporting to {library.name}")
        found = locate(stored)
        if found.family is not None and found.family.library == library.name and Path(found.place).is_dir():
            yield Path(found.place)
        else:
            model = load_model(stored, None, None, torch.float64).eval()
            yield export_model(model, folder / "stored", library.name)
        return
    for number, scale in enumerate(SCALES):
        tell(f"building the reference of {library.name}")
        fresh = library.build(values, config).double()
        redraw(fresh, scale, seed + number)
        library.save(fresh, folder / f"scale-{scale}")
        del fresh
        _check_same(family, values, folder / f"scale-{scale}")
        yield folder / f"scale-{scale}"


def _check_same(family: Family, values: Mapping[str, Any], folder: Path) -> None:
    """The reference that was saved is the one that was asked for: its config, read and written again, is the same."""
    found = locate(folder)
    again = family.write_config(validate(found.fields, found.place))
    for mine, back in ((values, again), (values.get("model_args", {}), again.get("model_args", {}))):
        for name, value in mine.items():
            same = back.get(name) == value or name == "model_args" or name.endswith("_rate")
            if not same:
                raise ConfigError(
                    f"{family.library} built another model than the one asked for: {name} is {back.get(name)!r}, not {value!r}"
                )


class Pair(NamedTuple):
    """The reference and ours with the same weights, in float64, and which modules correspond."""

    family: Family
    theirs: nn.Module
    ours: Model
    names: dict[str, str]
    exact: dict[tuple[str, int], dict[str, Tensor]]
    """What the reference's modules and outputs give in float64, for each call of each case."""


def _opened(library: Library, family: Family, saved: Path, changes: Any, seed: int) -> Pair:
    theirs = library.open(saved)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # an exchanged part's weights may be fresh ones
        ours = load_model(saved, changes, None, torch.float64).eval()
    depth = len(getattr(ours.stack, "layers", ()))
    return Pair(family, theirs, ours, pairs(family.tapped(ours.config), theirs, ours, depth), {})


@torch.no_grad()
def _compare(library: Library, pair: Pair, batches: Batches, result: Comparison) -> None:
    """Everything in float64: each module within its model, and alone on the reference's own inputs."""
    _, theirs, ours, names, exact = pair
    layers = {layer.name: layer for layer in result.layers}
    itself = {name: name for name in names} | {"layout": _stack_of(ours)}
    for call in both_called(library, theirs, ours, batches):
        with recording(theirs, names) as seen, recording(ours, itself) as own:
            answers, mine = library.call(theirs, call.theirs), answered(ours(**call.ours))
        exact[call.name] = {**{name: each.output for name, each in seen.items()}, **answers}
        layout, each = own["layout"].inputs[1], layouts(own)
        alone = own_errors(ours, seen, layout, call.inputs, call.kept, each, answers.get("encoder_last_hidden_state"))
        for name in names:
            if name not in seen and "encoder_outputs" in call.theirs:
                continue  # an encoder whose outputs are given is not called again
            layer = layers.setdefault(name, Layer(name))
            layer.own = max(layer.own, alone[name])
            if name not in own:  # ours does without it
                layer.float64 = float("inf")
            elif not name.startswith("head") or own[name].output.shape == seen[name].output.shape:
                layer.float64 = max(layer.float64, error(own[name].output, seen[name].output))
        for name, answer in answers.items():
            layer = layers.setdefault(name, Layer(name))
            layer.float64 = max(layer.float64, error(mine[name], answer))
        wrong = next((name for name in names if not alone.get(name, 0.0) <= TOLERANCE), None)
        # what is wrong over a cache alone is no field's fault
        if wrong is not None and not result.suspects and not result.exchanged and call.kept is None:
            result.suspects = suspects(ours, wrong, seen[wrong], each.get(wrong, layout), call.inputs)
    result.layers = list(layers.values())


def _stack_of(model: Model) -> str:
    """The name of the stack whose layout stands for modules that are told none."""
    if model.stack is not None:
        return "stack"
    return "decoder.stack" if hasattr(model, "decoder") else "text.stack"


@torch.no_grad()
def _single(library: Library, pair: Pair, batches: Batches, result: Comparison) -> None:
    """The same in float32, ours and theirs both held against theirs in float64; this ends the pair's use."""
    names, exact, layers = pair.names, pair.exact, {layer.name: layer for layer in result.layers}
    theirs, ours = pair.theirs.float(), pair.ours.float()
    first = next(iter(batches))
    for call in both_called(library, theirs, ours, batches, torch.float32):
        with recording(theirs, names) as seen:
            answers = library.call(theirs, call.theirs)
        for _ in range(2 if call.name[0] == first else 0):  # fast kernels are taken up once a shape has been seen
            ours(**call.inputs)
        mine = answered(ours(**call.ours))
        for name, answer in answers.items():
            layers[name].float32 = max(layers[name].float32, error(mine[name], exact[call.name][name]))
            layers[name].noise = max(layers[name].noise, error(answer, exact[call.name][name]))
        if call.kept is not None:
            continue  # a second call would add to the cache again
        with recording(ours, {name: name for name in names}) as own:
            ours(**call.inputs)
        for name in own:
            if own[name].output.shape == exact[call.name][name].shape:
                layers[name].float32 = max(layers[name].float32, error(own[name].output, exact[call.name][name]))
                layers[name].noise = max(layers[name].noise, error(seen[name].output, exact[call.name][name]))


def _gradients(library: Library, pair: Pair, batches: Batches, result: Comparison, folder: Path) -> None:
    """Gradients of both, the reference's carried over by its own way of saving and our way of reading."""
    theirs, ours, inputs = pair.theirs, pair.ours, next(iter(batches.values()))
    answers, mine = library.call(theirs, inputs), answered(ours(**inputs))
    generator = torch.Generator().manual_seed(1)
    losses = [torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)]
    for name, answer in answers.items():
        direction = torch.randn(answer.shape, generator=generator, dtype=torch.float64)
        if mine[name] is not None and mine[name].shape == answer.shape:
            losses[0] = losses[0] + (answer * direction).sum()
            losses[1] = losses[1] + (mine[name] * direction).sum()
    losses[0].backward()
    losses[1].backward()
    values = [parameter.data for parameter in theirs.parameters()]
    for parameter in theirs.parameters():
        if parameter.requires_grad:  # what is not learned stays as it is
            parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        parameter.grad = None
    library.save(theirs, folder / "gradients")
    for parameter, value in zip(theirs.parameters(), values):
        parameter.data = value
    expected = read_as_ours(pair.family, ours, folder / "gradients")
    largest = max((float(tensor.abs().max()) for tensor in expected.values()), default=1.0)
    for name, tensor in expected.items():
        gradient = ours.get_parameter(name).grad
        gradient = torch.zeros_like(tensor) if gradient is None else gradient
        # a gradient that is zero but for rounding (of a key's bias, say) has no scale of its own
        small = float(tensor.abs().max()) < 1e-9 * largest
        result.gradients[name] = float((gradient - tensor).abs().max()) / largest if small else error(gradient, tensor)
    ours.zero_grad(set_to_none=True)


@torch.no_grad()
def _export(library: Library, pair: Pair, batches: Batches, result: Comparison, folder: Path) -> None:
    """What the reference makes of the folder that we write for it."""
    opened = library.open(export_model(pair.ours, folder / "exported", library.name))
    worst = 0.0
    for call in both_called(library, opened, pair.ours, batches):
        for name, answer in library.call(opened, call.theirs).items():
            worst = max(worst, error(answer, pair.exact[call.name][name]))
    result.export = worst
