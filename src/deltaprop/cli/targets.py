"""Code of the user, named by FILE.py, FILE.py:NAME or package.module:NAME and imported as Python itself would."""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from deltaprop._torch_compat import PYTHON_FUNCTION
from deltaprop.errors import UserError, format_error, listed

Examples = Callable[[], tuple[Any, ...]]
"""A function that returns the inputs to check a target on, or raises a UserError."""


def load_target(target: str, forms: str = "FILE.py:NAME or package.module:NAME") -> tuple[Any, Examples | None]:
    """Return the object that a target names, and a function that calls its ``example_inputs()``, if there is one.

    That is a static method of its own, or a function of its module. ``forms`` says what a target may be.

    Raises:
        UserError: If there is no such object, or its module cannot be imported; from the function, if the call fails.
    """
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name:
        raise UserError(f"a target is {forms}, got {target!r}")
    module = _load(place)
    if not hasattr(module, name):
        public = [word for word in vars(module) if not word.startswith("_")]
        near = difflib.get_close_matches(name, public, n=1)
        hint = f": did you mean {near[0]!r}?" if near else f"; it has {listed(public)}"
        raise UserError(f"{place} has no {name!r}{hint}")
    loaded = getattr(module, name)
    if isinstance(loaded, type) and issubclass(loaded, torch.nn.Module):
        raise UserError(f"{target} is a class of modules: name an instance, such as one created in the file")
    return loaded, _examples_of(loaded, module, target)


def is_file_of_functions(target: str) -> bool:
    """Return whether a target names a file, without a name in it."""
    return target.endswith(".py") and (":" not in target or Path(target).is_file())


def load_functions(file: str) -> tuple[list[tuple[Any, Examples]], list[str]]:
    """Return each Function that a file defines with its ``example_inputs()``, and the names of those without.

    Raises:
        UserError: If the file cannot be imported, or there is no Function with inputs in it.
    """
    module = _load(file)
    functions = [
        (name, value)
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, PYTHON_FUNCTION) and value.__module__ == module.__name__
    ]
    if not functions:
        raise UserError(f"{file} defines no torch.autograd.Function; name something else in it by {file}:NAME")
    found = [(value, _examples_of(value, module, f"{file}:{name}")) for name, value in functions]
    with_inputs = [(value, examples) for value, examples in found if examples is not None]
    without = [name for (name, _), (_, examples) in zip(functions, found, strict=True) if examples is None]
    if not with_inputs:
        raise UserError(
            f"{file}: inputs are needed: give {listed(without)} a static method example_inputs(), or the file a "
            "function of that name"
        )
    return with_inputs, without


def _load(place: str) -> ModuleType:
    if place.endswith(".py") and not Path(place).is_file():
        folder, name = Path(place).parent, Path(place).name
        if Path(place).is_dir():
            raise UserError(f"{place}: this is a folder; name a file in it")
        near = difflib.get_close_matches(name, [path.name for path in folder.glob("*.py") if path.is_file()], n=1)
        raise UserError(f"{place}: there is no such file{f': did you mean {folder / near[0]}?' if near else ''}")
    try:
        return _import(place)
    except (Exception, SystemExit) as error:
        raise UserError(f"{place} cannot be imported: {format_error(error)}") from error


def _examples_of(loaded: Any, module: ModuleType, target: str) -> Examples | None:
    own = getattr(loaded, "example_inputs", None)
    examples = own if own is not None else getattr(module, "example_inputs", None)
    return None if examples is None else functools.partial(_call_examples, target, examples)


def _import(place: str) -> ModuleType:
    if not place.endswith(".py"):
        if "" not in sys.path:
            sys.path.insert(0, "")  # the current folder, as `python -m` does
        return importlib.import_module(place)
    path = Path(place)
    name = path.stem if path.stem not in sys.modules else f"{path.stem} of {path.parent.resolve()}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]  # a .py file has a spec, and a loader
    sys.modules[name] = module  # dataclasses look up their module
    sys.path.insert(0, str(path.parent.resolve()))  # as `python FILE.py` does
    try:
        spec.loader.exec_module(module)  # type: ignore[union-attr]  # as above
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _call_examples(target: str, examples: Callable[[], Any]) -> tuple[Any, ...]:
    try:
        inputs = examples()
    except (Exception, SystemExit) as error:
        raise UserError(f"{target}: its example_inputs() fails: {format_error(error)}") from error
    return tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
