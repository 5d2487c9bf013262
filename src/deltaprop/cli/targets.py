"""Code of the user, named by FILE.py:NAME or package.module:NAME and imported as Python itself would."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from deltaprop.errors import UserError
from deltaprop.gradcheck.context import format_error


def load_target(target: str) -> tuple[Any, Callable[[], tuple[Any, ...]] | None]:
    """Return the object that a target names, and a function that calls ``example_inputs()`` of its module, if any.

    Raises:
        UserError: If there is no such object, or its module cannot be imported; from the function, if the call fails.
    """
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name:
        raise UserError(f"a target is FILE.py:NAME or package.module:NAME, got {target!r}")
    if place.endswith(".py") and not Path(place).is_file():
        raise UserError(f"{place}: there is no such file")
    try:
        module = _import(place)
    except (Exception, SystemExit) as error:
        raise UserError(f"{place} cannot be imported: {format_error(error)}") from error
    if not hasattr(module, name):
        public = [word for word in vars(module) if not word.startswith("_")]
        raise UserError(f"{place} has no {name!r}; it has {', '.join(public[:12])}{' …' if len(public) > 12 else ''}")
    loaded = getattr(module, name)
    if isinstance(loaded, type) and issubclass(loaded, torch.nn.Module):
        raise UserError(f"{target} is a class of modules: name an instance, such as one created in the file")
    examples = getattr(module, "example_inputs", None)
    return loaded, None if examples is None else functools.partial(_call_examples, target, examples)


def _import(place: str) -> ModuleType:
    if not place.endswith(".py"):
        if "" not in sys.path:
            sys.path.insert(0, "")  # the current folder, as `python -m` does
        return importlib.import_module(place)
    path = Path(place)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]  # a .py file has a spec, and a loader
    sys.modules.setdefault(path.stem, module)  # dataclasses look up their module
    sys.path.insert(0, str(path.parent.resolve()))  # as `python FILE.py` does
    spec.loader.exec_module(module)  # type: ignore[union-attr]  # as above
    return module


def _call_examples(target: str, examples: Callable[[], Any]) -> tuple[Any, ...]:
    try:
        inputs = examples()
    except (Exception, SystemExit) as error:
        raise UserError(f"{target}: example_inputs() in the same file fails: {format_error(error)}") from error
    return tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
