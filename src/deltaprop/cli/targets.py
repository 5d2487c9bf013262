"""What a user's word stands for: FILE.py:NAME or package.module:NAME, imported as Python itself would."""

from __future__ import annotations

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


def load(target: str) -> tuple[Any, Callable[[], Any] | None]:
    """Return what a target names, and the ``example_inputs`` beside it.

    Raises:
        UserError: If there is no such thing.
    """
    where, colon, name = target.rpartition(":")
    if not colon or not where or not name:
        raise UserError(f"a target is FILE.py:NAME or package.module:NAME, got {target!r}")
    try:
        module = _import_file(Path(where)) if where.endswith(".py") else _import_module(where)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{where} cannot be imported: {format_error(error)}") from error
    if not hasattr(module, name):
        public = [word for word in vars(module) if not word.startswith("_")]
        raise UserError(f"{where} has no {name!r}; it has {', '.join(public[:12])}{' …' if len(public) > 12 else ''}")
    fn = getattr(module, name)
    if isinstance(fn, type) and issubclass(fn, torch.nn.Module):
        raise UserError(f"{target} is a class of modules: name an instance, such as one that is made in the file")
    return fn, getattr(module, "example_inputs", None)


def _import_file(path: Path) -> ModuleType:
    """Return the module that a file of the user's makes.

    Raises:
        UserError: If there is no such file.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]  # a .py file has a spec, and a loader
    sys.modules.setdefault(path.stem, module)  # dataclasses look their module up
    sys.path.insert(0, str(path.parent.resolve()))  # as `python FILE.py` has it
    spec.loader.exec_module(module)  # type: ignore[union-attr]  # as above
    return module


def _import_module(name: str) -> ModuleType:
    """Return a module by its dotted name; where the user stands counts, as with ``python -m``."""
    if "" not in sys.path:
        sys.path.insert(0, "")
    return importlib.import_module(name)


def call_examples(target: str, examples: Callable[[], Any]) -> tuple[Any, ...]:
    """Return what ``example_inputs()`` beside a target returns, as a tuple.

    Raises:
        UserError: If it fails.
    """
    try:
        made = examples()
    except (Exception, SystemExit) as error:
        raise UserError(f"{target}: example_inputs() beside it fails: {format_error(error)}") from error
    return tuple(made) if isinstance(made, tuple | list) else (made,)
