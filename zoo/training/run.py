"""What a run is: a config of model, data, task, optimiser and trainer; and how its name becomes one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator
from pydantic_core import CoreSchema, PydanticCustomError

from zoo import registry
from zoo.config import Config, Problem, Slot, within
from zoo.config.base import Count, PositiveInt, raise_problems
from zoo.config.merge import merge, unflatten
from zoo.config.messages import config_error
from zoo.config.resolve import MODEL
from zoo.config.source import read_source
from zoo.errors import ConfigError, ZooError
from zoo.presets import list_models, list_runs
from zoo.training.base import RunConfig
from zoo.training.optimizer import OptimizerConfig
from zoo.training.trainer import parallel_problems, trainer_problems

if TYPE_CHECKING:
    from zoo.training.session import TrainingResult


class ModelSlot(Slot):
    """The slot of a model, in which a name means a preset and a mapping may say `extends: PRESET`."""

    def validate(self, value: Any) -> Config | None:
        try:
            return super().validate(whole_model(value))
        except ZooError as error:
            raise PydanticCustomError("slot", str(error).replace("{", "(").replace("}", ")")) from None  # type: ignore[arg-type]

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: Any) -> dict[str, Any]:
        preset = {"type": "string", "description": "The name of a preset, or the path of a YAML file."}
        return {"anyOf": [super().__get_pydantic_json_schema__(schema, handler), preset]}


class TrainingRun:
    """Trains a model on data for a task and keeps everything in a folder; Lightning does the loop."""

    class Config(RunConfig):
        """Config of a `train` run."""

        type: Literal["train"] = "train"
        model: Annotated[Config, ModelSlot("model")]
        """What is trained: the name of a preset, or a mapping that `extends` one."""
        weights: str | None = None
        """Whose weights the training starts from, as `zoo.load` takes them (default: fresh ones)."""
        frozen: list[str] = Field(default_factory=list)
        """Parts and parameters that stay as they are, by patterns of their names: `embedding`, `stack.layers.[0-3]`, ..."""
        data: Annotated[Config, Slot("data")]
        """The examples."""
        task: Annotated[Config, Slot("task", default="classification")] = Field(default="classification", validate_default=True)
        """What is learned."""
        optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
        """How weights follow gradients."""
        averaging: Annotated[float, Field(ge=0, lt=1)] | None = None
        """How much of the past an exponential moving average of the weights keeps at each step, such as 0.99; the
        average is what is validated and saved (default: no average)."""
        activation_checkpointing: bool = False
        """Whether only each block's input is kept for the backward pass and the rest computed again: less memory, more
        time, the same gradients."""
        compile: bool = False
        """Whether the model is compiled (`torch.compile`) before training; the first step then takes long."""
        save_every: PositiveInt | None = None
        """After how many steps last.ckpt is written, beside the end of each epoch: what a killed run loses at most."""
        trainer: dict[str, Any] = Field(default_factory=dict)
        """Fields of `lightning.Trainer`, such as `max_epochs`, `accelerator`, `precision`, `gradient_clip_val`."""
        seed: Count = 0
        """Start of all random numbers; on a CPU the same seed gives the same weights, bit by bit."""
        folder: str | None = None
        """Where everything is written (default: `runs/` and the name of the run)."""

        @model_validator(mode="after")
        def _fits(self) -> Any:
            raise_problems("run", self.problems())
            return self

        def problems(self, **context: Any) -> Iterator[Problem]:
            # a task and data say of a model where it does not fit them, with paths that start at the run
            yield from self.task.problems(model=self.model, data=self.data)
            yield from self.data.problems(model=self.model)
            mistakes = list(within("trainer", trainer_problems(self.trainer)))
            yield from mistakes or parallel_problems(self)

    def __init__(self, config: Config) -> None:
        self.config = config

    def start(self, **options: Any) -> TrainingResult:
        """Trains; see `zoo.training.session.run` for the options."""
        from zoo.training.session import run

        return run(self.config, **options)


RUN = Slot("run", default="train")


def train(run: Any, overrides: Mapping[str, Any] | None = None, **options: Any) -> TrainingResult:
    """See `zoo.train`; options are those of `zoo.training.session.run`: overwrite, resume, progress."""
    result: TrainingResult = registry.make(resolve_run(run, overrides)).start(**options)
    return result


def resolve_run(source: Any, overrides: Mapping[str, Any] | None = None) -> Any:
    """The config of a run, its model whole.

    Args:
        source: the name of a run, a YAML file, a mapping of fields, or a config.
        overrides: fields to change, nested or with dotted names: `{"trainer.max_epochs": 3}`.

    Raises:
        UnknownNameError: no run has this name.
        ConfigError: the fields do not describe a run; the message names each place.
    """
    fields, name, place = _fields(source)
    change = _unflattened(overrides)
    model_change = change.pop("model", {})
    fields = merge(fields, change, RUN)
    if "model" in fields or model_change:
        fields["model"] = _changed_model(fields.get("model", {}), model_change, place)
    if fields.get("folder") is None and name:
        fields["folder"] = f"runs/{name}"
    try:
        return RUN.validate(fields)
    except ValidationError as error:
        raise config_error(error, place) from None
    except ValueError as error:
        raise ConfigError(f"{place}: {error}" if place else str(error)) from None


def whole_model(stated: Any) -> Any:
    """All fields of the model that a run states: a preset's name, or a mapping that `extends` one."""
    preset, change = _preset_and_change(stated)
    return merge(read_source(preset, "models", MODEL), change, MODEL) if preset is not None else change


def _changed_model(stated: Any, change: Any, place: str) -> Any:
    preset, more = _preset_and_change(change)
    try:
        if preset is not None:  # another preset, to which the run's own changes apply unless it is a name alone
            own = _preset_and_change(stated)[1] if isinstance(change, Mapping) else {}
            stated = {"extends": preset, **own} if isinstance(own, Mapping) else preset
        whole = whole_model(stated)
        return merge(whole, more, MODEL) if more else whole
    except ZooError as error:
        raise type(error)(f"{place}: model: {error}" if place else f"model: {error}") from None


def _preset_and_change(stated: Any) -> tuple[Any, Any]:
    """The preset that is meant, if one is, and what is changed in it."""
    if isinstance(stated, (str, Path)):
        return stated, {}
    if not isinstance(stated, Mapping):
        return None, stated
    change = dict(stated)
    preset, kind = change.pop("extends", None), change.get("type")
    if isinstance(kind, str) and kind not in registry.list_components("model") and (preset or kind in list_models()):
        # merging writes the name of a preset, which stood alone in a file that another extends, as its type
        preset = preset or change["type"]
        del change["type"]
    return preset, change


def _fields(source: Any) -> tuple[dict[str, Any], str, str]:
    """The fields, the run's name and what messages call it."""
    if isinstance(source, Config):
        return source.model_dump(), "", ""
    if isinstance(source, Mapping):
        return {str(name): value for name, value in source.items()}, "unnamed", ""
    if isinstance(source, (str, Path)):
        return read_source(source, "train", RUN), str(source) if source in list_runs() else Path(source).stem, str(source)
    raise ConfigError(f"expected the name of a run, a YAML file, a mapping or a config, got {source!r:.60}")


def _unflattened(overrides: Any) -> dict[str, Any]:
    if overrides is not None and not isinstance(overrides, Mapping):
        raise ConfigError(f"overrides: expected a mapping such as {{'trainer.max_epochs': 3}}, got {overrides!r}")
    return unflatten(overrides or {})
