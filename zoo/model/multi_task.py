"""One stack of blocks for many tasks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, create_model, model_validator
from torch import Tensor, nn

from zoo.cache import Cache
from zoo.config import Config, Problem, Slot, within
from zoo.config.base import raise_problems
from zoo.errors import InputError, did_you_mean, one_of, unknown
from zoo.model.base import Model, ModelConfig
from zoo.model.route import Route
from zoo.model.transformer import Transformer, head_context
from zoo.output import TransformerOutput
from zoo.registry import make, part

FROM = "What is read, by its name in `embeddings`, or several of them: the head answers for the last, others stand in front."


class RouteFields(Config):
    """What a task reads, and which head answers."""

    to: str
    """The head, by its name in `heads`."""
    causal: bool | None = None
    """Whether a token of what is read last sees only itself, those before it and what stands in front (default: if the head
    is a `language-model`)."""


if TYPE_CHECKING:
    RouteConfig = RouteFields
else:  # `from` is a word of Python, so that no class body can have a field of this name
    RouteConfig = create_model("RouteConfig", __base__=RouteFields, **{"from": (str | list[str], Field(description=FROM))})


class MultiTask(Model):
    """Several embeddings and heads around one stack of blocks; each task is a way through it, and only that way is run.

    Which tokens see which is the task's to say (`tasks.NAME.causal`), not the stack's: the same attention, with the same
    weights, must see a whole image to classify it, and no later token to write a text. So the attention of the stack is
    written without `causal`, and a causal task closes what lies behind by a mask that all layers of a call share. A mask can
    also say what no flag of the attention could: the patches in front of a text all see each other.

    Papers: Kaiser et al. 2017, https://arxiv.org/abs/1706.05137; Wang et al. 2021, https://arxiv.org/abs/2108.10904 (an
    image as the prefix of a text).
    """

    class Config(ModelConfig):
        """Config of a `multi-task` model."""

        type: Literal["multi-task"] = "multi-task"
        embeddings: Annotated[dict[str, Annotated[Config, Slot("embedding")]], Field(min_length=1)]
        """What can be read, by names of your own."""
        stack: Annotated[Config, Slot("stack", default="uniform")]
        """The blocks, which all tasks share; a feed-forward of type `mixture-of-experts` lets each token choose among some."""
        heads: Annotated[dict[str, Annotated[Config, Slot("head")]], Field(min_length=1)]
        """What can be answered, by names of your own."""
        tasks: Annotated[dict[str, RouteConfig], Field(min_length=1)]
        """The ways through the model, by names of your own: what is read (`from`), and which head answers (`to`)."""

        embedding: ClassVar[None] = None
        head: ClassVar[None] = None

        @model_validator(mode="after")
        def _fits(self) -> Any:
            raise_problems("multi-task", self.problems())
            return self

        def read_by(self, task: str) -> list[str]:
            """The names of the embeddings of a task; the head answers for the last."""
            names = getattr(self.tasks[task], "from")
            return [names] if isinstance(names, str) else list(names)

        def is_causal(self, task: str) -> bool:
            """Whether tokens of a task see no later ones."""
            route = self.tasks[task]
            if route.causal is not None:
                return route.causal
            return getattr(self.heads.get(route.to), "type", None) == "language-model"

        def route(self, task: str, embedding: str | None = None) -> Any:
            """The config of a task as that of a transformer, by which data and tasks of a training judge it.

            Args:
                embedding: which one it is to have, of several (default: the last, for which the head answers).
            """
            stack = with_causal(self.stack) if self.is_causal(task) else self.stack
            read, head = self.embeddings[embedding or self.read_by(task)[-1]], self.heads[self.tasks[task].to]
            return Transformer.Config.model_construct(init=self.init, embedding=read, stack=stack, head=head)

        def place(self, task: str, path: tuple[str | int, ...]) -> tuple[str | int, ...]:
            """Where a field of `route(task)` stands in this config."""
            own = {"embedding": ("embeddings", self.read_by(task)[-1]), "head": ("heads", self.tasks[task].to)}
            return (*own.get(str(path[0]), path[:1]), *path[1:]) if path else path

        def problems(self, **context: Any) -> Iterator[Problem]:
            named = list(self._names())
            yield from named
            if named:
                return
            told: set[Problem] = set()
            vocabularies: dict[str, tuple[str, int]] = {}
            for task, route in self.tasks.items():
                yield from within("tasks", within(task, self._reading(task)))
                for front in self.read_by(task)[:-1]:
                    own = self.embeddings[front].problems(width=getattr(self.stack, "width"))
                    new = [each for each in within("embeddings", within(front, own)) if each not in told]
                    told |= set(new)
                    yield from new
                for path, message in self.route(task).problems():
                    problem = self.place(task, path), message
                    if problem not in told:
                        yield problem
                    told.add(problem)
                vocabulary = getattr(self.embeddings[self.read_by(task)[-1]], "vocabulary", None)
                if vocabulary is not None and "vocabulary" in getattr(self.heads[route.to], "context", ()):
                    other, number = vocabularies.setdefault(route.to, (task, vocabulary))
                    if number != vocabulary:
                        what = f"head {route.to!r} scores the {number} tokens of task {other!r}, and this one has {vocabulary}"
                        yield ("tasks", task, "to"), what
            yield from within("stack", self._shared())

        def _names(self) -> Iterator[Problem]:
            """Names that nothing has, or that nothing asks for."""
            for kind in ("embeddings", "heads", "tasks"):
                for name in getattr(self, kind):
                    if not name.isidentifier() and not name.replace("-", "_").isidentifier():
                        yield (kind, name), f"{name!r} is no name: letters, digits, '-' and '_' make one"
            for task, route in self.tasks.items():
                read = self.read_by(task)
                if not read or len(set(read)) < len(read):
                    yield ("tasks", task, "from"), f"expected one embedding or several different ones, got {read}"
                for name in read:
                    if name not in self.embeddings:
                        hint = did_you_mean(name, self.embeddings) or f"; expected {one_of(self.embeddings)}"
                        yield ("tasks", task, "from"), f"there is no embedding {name!r}{hint}"
                if route.to not in self.heads:
                    hint = did_you_mean(route.to, self.heads) or f"; expected {one_of(self.heads)}"
                    yield ("tasks", task, "to"), f"there is no head {route.to!r}{hint}"
            asked = {"embeddings": {name for task in self.tasks for name in self.read_by(task)}}
            asked["heads"] = {route.to for route in self.tasks.values()}
            for kind, names in asked.items():
                for name in getattr(self, kind):
                    if name not in names:
                        yield (kind, name), "no task leads through this; name it in `tasks`, or leave it out"

        def _reading(self, task: str) -> Iterator[Problem]:
            """What speaks against the inputs of a task, and how it sees them."""
            read = [part("embedding", getattr(self.embeddings[name], "type")) for name in self.read_by(task)]
            inputs = [name for each in read for name in each.inputs]
            twice = next((name for name in inputs if inputs.count(name) > 1), None)
            if twice is not None:
                yield ("from",), f"two of these read {twice}, which a call can give once"
            head: Any = self.heads[self.tasks[task].to]
            if head.type == "language-model" and not self.is_causal(task):
                yield ("causal",), "a token that sees those behind it sees what it is to guess; leave this out"
            if len(read) > 1 and head.type == "feature-maps":
                yield ("from",), "the tokens of several embeddings form no grid; read the image alone"

        def _shared(self) -> Iterator[Problem]:
            """What speaks against the stack, which must leave to the tasks which tokens see which."""
            if getattr(self.stack, "type") != "uniform":
                yield ("type",), f"a stack of type 'uniform' is needed, and this is {getattr(self.stack, 'type')!r}"
                return
            stack: Any = self.stack
            causal = [task for task in self.tasks if self.is_causal(task)]
            for number, block in enumerate(stack.blocks()[: len(stack.pattern or [{}])]):
                path = ("block",) if stack.pattern is None else ("pattern", number)
                attention = getattr(block, "attention", None)
                if getattr(attention, "causal", False):
                    yield (*path, "attention", "causal"), "the tasks say who sees later tokens (`tasks.NAME.causal`); use false"
                elif causal and getattr(attention, "type", None) != "full":
                    yield (*path, "attention", "type"), f"task {causal[0]!r} is causal, which needs attention of type 'full'"
                if getattr(block, "cross_attention", None) is not None:
                    yield (*path, "cross_attention"), "there is no other sequence here; leave it out"
            if causal and stack.padding == "skip":
                yield ("padding",), f"task {causal[0]!r} is causal, for which padding cannot be left out; use padding: compute"

    embedding = None
    head = None

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        width: int = getattr(config.stack, "width")
        self.embeddings = nn.ModuleDict({name: make(each, width=width) for name, each in config.embeddings.items()})
        self.stack = make(config.stack)
        leading = {route.to: task for task, route in config.tasks.items()}
        self.heads = nn.ModuleDict(
            {name: make(each, **head_context(config.route(leading[name]), width)) for name, each in config.heads.items()}
        )
        # a plain mapping, so that parts have one name each: a route has no parameters of its own
        self._routes: dict[str, Route] = {task: self._route(task) for task in config.tasks}

    def _route(self, task: str) -> Route:
        config = self.config
        *front, last = (self.embeddings[name] for name in config.read_by(task))
        head, causal = self.heads[config.tasks[task].to], config.is_causal(task)
        return Route(config.route(task), front, last, self.stack, head, causal=causal, task=task)

    def forward(self, *inputs: Tensor, task: str | None = None, **named: Any) -> TransformerOutput:
        """Runs the path of one task, and nothing else.

        Args:
            inputs, named: what its embeddings read, and the arguments of `zoo.model.route.Route.forward`.
            task: the name of the task.

        Raises:
            UnknownNameError: there is no such task.
            InputError: an input that does not belong to the task or does not fit, or an argument that cannot be honoured.
        """
        return self._told(task, named)(*inputs, **named)  # type: ignore[no-any-return]

    def route(self, task: str | None) -> Route:
        """One task as a transformer of its own: the same parts, with the same weights.

        Raises:
            UnknownNameError: there is no such task.
            InputError: no task is named.
        """
        if task is None:
            raise InputError(f"task is missing: say which path to run, {one_of(self._routes)}")
        if task not in self._routes:
            raise unknown("task", task, self._routes)
        return self._routes[task]

    def generate(self, *inputs: Tensor, task: str | None = None, **named: Any) -> Any:  # type: ignore[override]
        """Writes texts by one task, as `zoo.model.route.Route.generate`."""
        return self._told(task, named).generate(*inputs, **named)

    def new_cache(self, capacity: int | None = None, *, task: str | None = None) -> Cache:
        """An empty cache for the `past_key_values` of one task."""
        return self.route(task).new_cache(capacity)

    def compile(self, *arguments: Any, **named: Any) -> None:
        """Compiles each path (`torch.nn.Module.compile`)."""
        for route in self._routes.values():
            route.compile(*arguments, **named)

    def _told(self, task: str | None, named: dict[str, Any]) -> Route:
        """The path of a task, if it is what reads the inputs of these names."""
        route = self.route(task)
        for name, value in named.items():
            if value is None or name in route.inputs:
                continue
            readers = [other for other, each in self._routes.items() if name in each.inputs]
            if readers:
                what = f"task {task!r} reads {' and '.join(route.inputs)}"
                raise InputError(f"{name}: {what}; {name} is for {one_of(readers).removeprefix('one of ')}")
        return route


def with_causal(stack: Any) -> Any:
    """A stack's config as if its attention were causal by itself."""
    block = stack.block
    if getattr(block, "attention", None) is None:
        return stack
    whole = block.model_copy(update={"attention": block.attention.model_copy(update={"causal": True})})
    pattern = getattr(stack, "pattern", None)
    changes = pattern and [
        {**change, "attention": {**change["attention"], "causal": True}} if "attention" in change else change
        for change in pattern
    ]
    return stack.model_copy(update={"block": whole, **({"pattern": changes} if pattern else {})})
