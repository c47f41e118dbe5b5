"""Functions that the user wrote, by `package.module:function`.

They run with the user's rights, so they are loaded only where that was allowed.
"""

import contextlib
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from onnxprune.errors import UsageError


def import_function(target: str) -> Any:
    """What `package.module:function` names; the current folder is importable meanwhile.

    Raises:
        Exception: Whatever importing the module raises, or AttributeError.
    """
    module_name, _, name = target.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(module_name), name)
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(os.getcwd())


def load_function(target: str, where: str) -> Callable[..., Any]:
    """Import a function that a recipe names.

    Args:
        target: `package.module:function`.
        where: The recipe key or option that names it, for messages.

    Raises:
        UsageError: Its module cannot be imported, or it is not in there.
    """
    try:
        function = import_function(target)
    except Exception as error:
        raise UsageError(
            "the function cannot be loaded",
            where=f"{where} = 'python:{target}'",
            got=f"{type(error).__name__}: {error}",
            expected="python:package.module:function, importable from the current folder",
        ) from error
    if not callable(function):
        raise UsageError(
            "this is not a function",
            where=f"{where} = 'python:{target}'",
            got=type(function).__name__,
        )
    result: Callable[..., Any] = function
    return result
