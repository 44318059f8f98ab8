"""The docstrings under the fields of a config, read from its source when somebody wants to see them."""

from __future__ import annotations

import ast
import inspect
import textwrap
from functools import cache
from itertools import pairwise

from zoo.config.base import Config


@cache
def field_docs(config: type[Config]) -> dict[str, str]:
    """What each field means: the string that follows it in the class, the nearest class in the hierarchy winning.

    pydantic can read them too, but does so for every class as it is made, which costs 2 ms each.
    """
    docs: dict[str, str] = {}
    for cls in reversed(config.__mro__):
        if issubclass(cls, Config) and cls is not Config:
            docs.update(_own_docs(cls))
    return {name: docs[name] for name in config.model_fields if name in docs}


def _own_docs(cls: type) -> dict[str, str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError, SyntaxError):
        return {}  # a class typed at a prompt has no source
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    docs = {}
    for statement, following in pairwise(body):
        if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            docs[statement.target.id] = " ".join(str(following.value.value).split())
    return docs
