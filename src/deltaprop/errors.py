"""The exception for invalid input from the user, and how messages name settings."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


class UserError(ValueError):
    """Invalid input, in one line: what is wrong, where, and what would be right.

    A setting is named as Python has it, in backticks: `` `lr` ``, or with a value, `` `task='regression'` ``
    (:func:`setting` writes it). The command line makes flags of these, prints the line without a traceback and exits
    with code 2.

    Attributes:
        remedy: Settings, each with the values to add to it, with which the same call works; empty if none are known.
        is_shared: Whether every process of a run has raised it.
    """

    is_shared = False

    def __init__(self, message: str, remedy: Mapping[str, Sequence[str]] | None = None) -> None:
        super().__init__(message)
        self.remedy = dict(remedy or {})


def setting(name: str, *values: Any) -> str:
    """Return a setting as errors name it: alone, with a value, or with a tuple of values.

    Example:
        >>> setting("lr"), setting("task", "regression"), setting("drop", "a", "b")
        ('`lr`', "`task='regression'`", "`drop=('a', 'b')`")
    """
    plain = tuple(os.fspath(value) if isinstance(value, os.PathLike) else value for value in values)
    if not plain:
        return f"`{name}`"
    return f"`{name}={(plain[0] if len(plain) == 1 else plain)!r}`"


# A setting as `setting` writes it: `lr`, `task='regression'`, `drop=('a', 'b')`. It begins a word: the user's own text
# in a message follows a quotation mark.
SETTING = re.compile(r"""(?<![^\s(])`([a-z]\w*)(?:=((?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^`'"])*))?`""")


def as_keys(text: str) -> str:
    """Return a text with its settings as keys of a TOML file or of config.json.

    Example:
        >>> as_keys("`momentum` must be in [0, 1); try `task='regression'`")
        "momentum must be in [0, 1); try task = 'regression'"
    """
    return SETTING.sub(lambda found: found[1] if found[2] is None else f"{found[1]} = {found[2]}", text)


def listed(names: Iterable[str], most: int = 12) -> str:
    """Return the user's own names for a message; one with a backtick in quotes, for it is not a setting.

    Example:
        >>> listed(["age", "`lr`"])
        "age, '`lr`'"
    """
    names = [repr(name) if "`" in name else name for name in names]
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def counted(number: int, noun: str) -> str:
    """Return a number of things, such as ``"1 class"`` or ``"2 classes"``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}{'es' if noun.endswith('s') else 's'}"


def rounded(value: float) -> str:
    """Return a number to four digits, up to a trillion in full.

    Example:
        >>> rounded(0.84137), rounded(23540.7), rounded(6.02e23)
        ('0.8414', '23541', '6.02e+23')
    """
    return f"{value:.0f}" if 9999.5 <= abs(value) < 1e12 else f"{value:.4g}"


def unknown_name(kind: str, name: object, known: Iterable[str]) -> UserError:
    """Return the error for a name that is not in a table, with the nearest one that is.

    Args:
        kind: What the name should have named, such as ``"activation"``.
        name: What the user gave.
        known: The names that exist.

    Example:
        >>> print(unknown_name("activation", "sigmiod", ["relu", "sigmoid"]))
        unknown activation 'sigmiod': did you mean 'sigmoid'? (known: relu, sigmoid)
    """
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f": did you mean {near[0]!r}?" if near else ""
    return UserError(f"unknown {kind} {name!r}{hint} (known: {', '.join(known)})")


def format_error(error: BaseException) -> str:
    """Return an error of someone else's code in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}{'…' if len(text) > 160 else ''}"
