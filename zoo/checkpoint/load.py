"""Weights into a model: mapped from the file, assigned without a copy, every tensor accounted for."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoo.checkpoint import rules
from zoo.checkpoint.locate import Found, locate
from zoo.checkpoint.report import LoadReport
from zoo.config.merge import differing_fields
from zoo.config.resolve import merge_overrides, resolve, resolve_unchanged, validate
from zoo.errors import WeightsError
from zoo.model.base import Model
from zoo.model.construct import collection_paused, on_meta, read_device, read_dtype, set_parameters


def load_model(source: str | Path, overrides: Mapping[str, Any] | None, device: Any, dtype: Any) -> Model:
    """See `zoo.load`."""
    found = locate(source)
    own = validate(found.fields, found.place)
    if not overrides:
        return _fill(found, own, own, own, device, dtype)
    found = _with_head(found, own, validate(merge_overrides(found.fields, overrides), found.place))
    wanted = validate(merge_overrides(found.fields, overrides), found.place)
    return _fill(found, validate(found.fields, found.place), wanted, own, device, dtype)


def put_weights(model: Any, overrides: Mapping[str, Any] | None, source: str | Path, device: Any, dtype: Any) -> Model:
    """See `zoo.build` with weights."""
    wanted = resolve(model, overrides)
    found = locate(source)
    found = _with_head(found, validate(found.fields, found.place), wanted)
    return _fill(found, validate(found.fields, found.place), wanted, resolve_unchanged(model), device, dtype).train()


def start_from(source: str | Path, model: Any) -> Model:
    """The model of a config with the weights of another, to be trained further.

    Whatever the config says otherwise than that of the weights is meant, and resized or drawn afresh; the load
    report says so.

    Raises:
        WeightsError: the weights cannot be read, or are of another width, so that nothing would be built upon.
    """
    found, wanted = locate(source), resolve(model)
    found = _with_head(found, validate(found.fields, found.place), wanted)
    own = validate(found.fields, found.place)
    return _fill(found, own, wanted, own, None, None).train()


def _with_head(found: Found, own: Any, wanted: Any) -> Found:
    """The file read as a model with the wanted type of head, if it holds that one beside its own."""
    kind = getattr(_writing(wanted).head, "type", None)
    if found.family is None or kind == getattr(_writing(own).head, "type", None):
        return found
    fields = found.family.with_head(found.values, kind, found.stored)
    if fields is None:
        return found
    other = found._replace(fields=fields)
    return found if _matched(other, on_meta(validate(fields, found.place))).problems else other


def _writing(model: Any) -> Any:
    """What has the head of a model, or of its config: its decoder, if it has one, or itself."""
    return getattr(model, "decoder", model)


def _fill(found: Found, own: Any, wanted: Any, unchanged: Any, device: Any, dtype: Any) -> Model:
    """The model `wanted` with what was found; what differs from `unchanged` may differ from the file."""
    with collection_paused():
        return _filled(found, own, wanted, unchanged, read_device(device), read_dtype(dtype))


def _filled(found: Found, own: Any, wanted: Any, unchanged: Any, device: Any, dtype: Any) -> Model:
    report, model = LoadReport(found.place), on_meta(wanted)
    source = model if own == wanted else on_meta(own)
    if own != wanted:
        _check_activations(found, own, wanted, unchanged)
    tensors = _read(found, source, report)
    if source is model:
        fitted = tensors
    else:
        fitted = _fit(tensors, source, model, source if unchanged == own else on_meta(unchanged), report)
    kind = dtype or _common_type(found, fitted)
    fresh = {name: parameter for name, parameter in model.named_parameters() if name not in fitted}
    if fresh:
        set_parameters(model, {name: torch.empty(each.shape, dtype=each.dtype, device="cpu") for name, each in fresh.items()})
        model.initialize_weights()  # what is still on the meta device is passed over
    set_parameters(model, fitted)
    model.load_report = report
    as_wanted = all(each.device == device and each.dtype == kind for each in model.parameters())
    return model if as_wanted and not any(True for _ in model.buffers()) else model.to(device=device, dtype=kind)


def _check_activations(found: Found, own: Any, wanted: Any, unchanged: Any) -> None:
    """Refuses weights made for another activation, of which no tensor's shape tells, unless an override asks for it."""
    asked = {path for path, _, _ in differing_fields(unchanged, wanted)}
    for path, there, here in differing_fields(own, wanted):
        if path.endswith(".activation") and not any(path.startswith(each) for each in asked):
            message = f"{path} is {there!r} there, {here!r} here, and no override asked for the difference"
            raise WeightsError(f"{found.place}: these weights are not those of the model: {message}")


class _Match(NamedTuple):
    """The tensors of a file held against the rules for a model."""

    table: list[rules.Rule]
    names: Mapping[str, str]
    shapes: dict[str, tuple[int, ...]]
    ignored: list[tuple[str, str]]
    problems: list[str]


def _matched(found: Found, source: Model) -> _Match:
    """What of the file goes where in the model `source` of its own config, what is known and dropped, and what is wrong."""
    shapes = {name: tuple(parameter.shape) for name, parameter in source.named_parameters()}
    known: Mapping[str, str] = {}
    if found.family is None:
        table, names = [rules.rule(name, name) for name in shapes], {name: name for name in found.stored}
    else:
        table, known = found.family.table(source.config, shapes, found.stored), found.family.ignored
        names = found.family.plain_names(found.stored)
    used = {name for entry in table for name in entry.theirs}
    problems = [f"missing: {name}" for name in sorted(used - set(names))]
    ignored = []
    for name in sorted(set(names) - used):
        reason = next((why for pattern, why in known.items() if fnmatch.fnmatchcase(name, pattern)), None)
        if reason is None:
            problems.append(f"unexpected: {names[name]} {list(found.stored[names[name]].shape)}")
        else:
            ignored.append((names[name], reason))
    for entry in table:
        present = all(name in names for name in entry.theirs)
        problems += _misfits(entry, found, names, shapes) if present else []
    return _Match(table, names, shapes, ignored, problems)


def _read(found: Found, source: Model, report: LoadReport) -> dict[str, Tensor]:
    """The file's tensors under our names, complete and of the shapes that its own config asks for."""
    table, names, shapes, ignored, problems = _matched(found, source)
    if problems:
        raise WeightsError(_listed(f"{found.place}: the tensors do not fit the config beside them", problems))
    for name, reason in ignored:
        report.add("ignored", name, reason)
    tensors = rules.read(table, lambda name: found.stored[names[name]].fetch(names[name]), shapes)
    for entry in table:
        same = found.family is None
        for name in entry.ours:
            report.add("loaded" if same else "renamed", name, "" if same else f"from {names[entry.theirs[0]]}")
    return tensors


def _misfits(entry: rules.Rule, found: Found, names: Mapping[str, str], shapes: Mapping[str, Any]) -> list[str]:
    problems = []
    for name, expected in zip(entry.theirs, entry.operation.shapes([shapes[name] for name in entry.ours])):
        stored = found.stored[names[name]]
        if stored.shape != expected:
            problems.append(f"shape: {names[name]} is {list(stored.shape)}, expected {list(expected)}")
        elif stored.dtype is None or not stored.dtype.is_floating_point:
            problems.append(f"type: {names[name]} is {stored.dtype or 'of an unknown type'}, expected floats")
    return problems


def _fit(tensors: dict[str, Tensor], source: Model, model: Model, allowed: Model, report: LoadReport) -> dict[str, Tensor]:
    """The tensors that `model` takes over; differences that are not also ones from `allowed` are errors."""
    theirs, ours = dict(source.named_parameters()), dict(model.named_parameters())
    before = {name for name, _ in allowed.named_parameters()}
    heads, place = [type(_writing(each).head) for each in (source, allowed, model)], _head_place(model)
    other_head, head_asked = heads[0] is not heads[2], heads[1] is not heads[2]  # equal names would mean other things
    fitted, problems = {}, []
    for name, parameter in ours.items():
        foreign = other_head and name.startswith(place)
        asked = name not in before or _changed(name, allowed, model) or (foreign and head_asked)
        if name in theirs and not foreign and not _changed(name, source, model):
            fitted[name] = tensors[name]
            continue
        adapted = _adapt(name, tensors[name], source, model) if name in theirs and not foreign else None
        if not asked:
            what = f"{list(theirs[name].shape)} there, {list(parameter.shape)} here" if name in theirs else "not there"
            problems.append(f"{name}: {what}")
        elif adapted is not None:
            fitted[name] = adapted[0]
            report.add("resized", name, adapted[1])
        elif (twin := _twin(name, model)) in theirs and theirs[twin].shape == parameter.shape:
            fitted[name] = tensors[twin].clone()
            report.add("re-initialised", name, f"new here, as {twin}")
        elif name in theirs and not name.startswith(place) and not _other_part(name, source, model):
            problems.append(f"{name}: {list(theirs[name].shape)} cannot become {list(parameter.shape)}")
        else:
            why = f"{list(theirs[name].shape)} became {list(parameter.shape)}" if name in theirs else "new here"
            report.add("re-initialised", name, why)
    for name in theirs:
        if name not in ours or (other_head and name.startswith(place)):
            if name not in ours and name not in before:
                problems.append(f"{name}: there, but not in this model")
            report.add("ignored", name, "no part of this model")
    if problems:
        differing = differing_fields(source.config, model.config)
        configs = [
            f"{path} is {there!r} there, {here!r} here" for path, there, here in differing if not path.startswith("init")
        ]
        what = f"{report.place}: these weights are not those of the model, and no override asked for the difference"
        raise WeightsError(_listed(what, configs[:8] + problems))
    replaced = {entry.name for entry in report.of("resized") + report.of("re-initialised") + report.of("ignored")}
    report.entries = [e for e in report.entries if e.status not in ("loaded", "renamed") or e.name not in replaced]
    return fitted


def _head_place(model: Model) -> str:
    """How the names of the head's tensors begin."""
    return "head." if _writing(model) is model else "decoder.head."


def _changed(name: str, source: Model, model: Model) -> bool:
    """Whether a tensor has another shape, or another meaning (a position table of another grid)."""
    owner = name.rpartition(".")[0]
    grids = [getattr(root.get_submodule(owner), "grid", None) for root in (source, model)]
    return source.get_parameter(name).shape != model.get_parameter(name).shape or grids[0] != grids[1]


def _other_part(name: str, source: Model, model: Model) -> bool:
    """Whether the part that owns a tensor was exchanged for one of another type."""
    owner = name.rpartition(".")[0]
    while owner:
        if type(source.get_submodule(owner)) is not type(model.get_submodule(owner)):
            return True
        owner = owner.rpartition(".")[0]
    return False


def _twin(name: str, model: Model) -> str:
    """The tensor as which a new one starts: the layer that owns it stands in the `twins` of its part."""
    layer, _, attribute = name.rpartition(".")
    owner, _, own = layer.rpartition(".")
    twin = getattr(model.get_submodule(owner), "twins", {}).get(own)
    return f"{owner}.{twin}.{attribute}" if twin else ""


def _adapt(name: str, tensor: Tensor, source: Model, model: Model) -> tuple[Tensor, str] | None:
    """What the part that owns the tensor makes of one of another shape; None if it cannot."""
    owner, _, attribute = name.rpartition(".")
    ours = model.get_submodule(owner)
    adapted = getattr(ours, "adapted", None)
    result: tuple[Tensor, str] | None = adapted and adapted(attribute, tensor, source.get_submodule(owner))
    return result


def _common_type(found: Found, fitted: Mapping[str, Tensor]) -> torch.dtype:
    kinds = {tensor.dtype for tensor in fitted.values()}
    if len(kinds) > 1:
        names = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
        raise WeightsError(f"{found.place}: its tensors have several types ({names}); choose one, as in dtype='float32'")
    return kinds.pop() if kinds else torch.get_default_dtype()


def _listed(what: str, problems: list[str], limit: int = 40) -> str:
    more = [f"  ... and {len(problems) - limit} more"] if len(problems) > limit else []
    return "\n".join([f"{what}:", *(f"  {problem}" for problem in problems[:limit]), *more])
