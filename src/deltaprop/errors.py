"""The one exception that means: the user's input is at fault, and here is what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input, told in one line: what is wrong, where, and what would be right.

    The command line prints it without a traceback and exits with code 2.
    """


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
