"""The base of every config, and the typed slot that holds a registered part."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Union, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

from zoo import registry
from zoo.errors import ZooError, did_you_mean, one_of

Problem = tuple[tuple[str | int, ...], str]
"""A place inside a config and what is wrong there."""


class Config(BaseModel):
    """A frozen, strict description of a part: unknown fields are errors, nothing is coerced silently."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    kind: ClassVar[str] = ""
    """The registry page that parts with such a config stand on."""

    follows: ClassVar[Mapping[str, str]] = {}
    """Fields that lose their meaning where another one is overridden: `{"labels": "classes"}`."""

    @classmethod
    def label(cls) -> str:
        """How messages call this config: `attention 'local'`."""
        field = cls.model_fields.get("type")
        return f"{cls.kind} {field.default!r}" if field is not None and cls.kind else cls.kind or cls.__name__

    @model_validator(mode="before")
    @classmethod
    def _check_fields(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        problems: list[Problem] = []
        for name, value in data.items():
            field = cls.model_fields.get(str(name))
            if field is None:
                problems.append(((str(name),), f"unknown field of {cls.label()}{_nearest_field(str(name), cls)}"))
            elif isinstance(value, bool) and not _takes_bool(field):
                problems.append(((str(name),), f"{str(value).lower()} is no value for this field of {cls.label()}"))
        raise_problems(cls.label(), problems)
        return data

    def plain(self) -> dict[str, Any]:
        """All fields, defaults included, as the plain values of JSON and YAML; `type` stands first."""
        fields: dict[str, Any] = _type_first(self.model_dump(mode="json"))
        return fields

    def to_dict(self) -> dict[str, Any]:
        """`plain`, by the name under which libraries such as peft ask a model's config for its fields."""
        return self.plain()

    def problems(self, **context: Any) -> Iterator[Problem]:
        """What is wrong between this config and its surroundings (the width, the image size, ...).

        A part overrides this; the model's config asks it at validation, so that a config that
        validates can be built.
        """
        yield from ()


class Slot:
    """Marks a field that holds the config of a registered part: `Annotated[Config, Slot("norm")]`.

    The value is `{type: NAME, ...}` or just `NAME`. `default` is the type meant where none is
    written; with `optional` the slot may be empty (`null` or `none`).
    """

    def __init__(self, kind: str, default: str | None = None, optional: bool = False) -> None:
        self.kind, self.default, self.optional = kind, default, optional

    def type_of(self, value: Any) -> str | None:
        """The name of the part that `value` asks for, without checking it."""
        if isinstance(value, str):
            return value
        if isinstance(value, Config):
            return str(getattr(value, "type", None))
        return value.get("type", self.default) if isinstance(value, Mapping) else None

    def validate(self, value: Any) -> Config | None:
        if value is None or (value == "none" and "none" not in registry.page(self.kind)):
            if self.optional:
                return None
            raise PydanticCustomError("slot", literal(f"a {self.kind} is needed here: {self._names()}"))
        name = self.type_of(value)
        if name is None:
            raise PydanticCustomError("slot", literal(f"no type given; expected a {self.kind}: {self._names()}"))
        try:
            cls = registry.part(self.kind, name).Config
        except ZooError as error:
            raise PydanticCustomError("slot", literal(str(error))) from None
        if isinstance(value, Config):
            if not isinstance(value, cls):
                raise PydanticCustomError("slot", literal(f"{type(value).__name__} is no config of a {self.kind}"))
            return value
        fields = {} if isinstance(value, str) else dict(value)
        checked: Config = cls.model_validate({**fields, "type": name})
        return checked

    def _names(self) -> str:
        return one_of(registry.list_components(self.kind))

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self.validate,
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda value, info: None if value is None else value.model_dump(mode=info.mode), info_arg=True
            ),
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: Any) -> dict[str, Any]:
        return {"x-slot": self.kind, "x-optional": self.optional}  # zoo.config.schema makes the union of it


def _type_first(value: Any) -> Any:
    if isinstance(value, list):
        return [_type_first(item) for item in value]
    if not isinstance(value, dict):
        return value
    names = [*(["type"] if "type" in value else []), *(name for name in value if name != "type")]
    return {name: _type_first(value[name]) for name in names}


def slot_of(field: FieldInfo) -> Slot | None:
    """The slot of a field, or None for an ordinary field."""
    return next((mark for mark in field.metadata if isinstance(mark, Slot)), None)


def within(place: str | int, problems: Iterable[Problem]) -> Iterator[Problem]:
    """The problems of the config that stands at `place`."""
    for path, message in problems:
        yield (place, *path), message


def raise_problems(title: str, problems: Iterable[Problem]) -> None:
    """Raises one pydantic error that lists all problems, or does nothing when there are none."""
    lines = [
        InitErrorDetails(type=PydanticCustomError("config", literal(message)), loc=path, input=None)
        for path, message in problems
    ]
    if lines:
        raise ValidationError.from_exception_data(title, lines)


def literal(message: str) -> Any:
    """A message as a template of pydantic's, which would fill in what stands in braces."""
    return message.replace("{", "(").replace("}", ")")


def _nearest_field(name: str, cls: type[Config]) -> str:
    return did_you_mean(name, cls.model_fields) or f"; its fields are {', '.join(cls.model_fields)}"


def _takes_bool(field: FieldInfo) -> bool:
    def walk(annotation: Any) -> bool:
        return annotation is bool or annotation is Any or any(walk(inner) for inner in get_args(annotation))

    return slot_of(field) is not None or walk(field.annotation)


def _pair(value: Any) -> Any:
    return (value, value) if isinstance(value, int) and not isinstance(value, bool) else value


LARGEST = 10_000_000
"""No size of a part is larger: beyond it lies a slip of the keyboard, not a model."""
PositiveInt = Annotated[int, Field(gt=0, le=LARGEST)]
Count = Annotated[int, Field(ge=0, le=LARGEST)]
Probability = Annotated[float, Field(ge=0, le=1)]
_Two = tuple[PositiveInt, PositiveInt]
Pair = Annotated[_Two, BeforeValidator(_pair, json_schema_input_type=Union[PositiveInt, _Two])]
"""A height and a width; one number means both."""
