"""UserError is a ValueError of one line, and suggests the nearest name for a misspelt one."""

from __future__ import annotations

import pytest

from deltaprop import UserError
from deltaprop.errors import unknown_name

KNOWN = ["relu", "leaky_relu", "sigmoid"]


def test_user_error_is_a_value_error():
    """Code that catches ValueError, as torch.nn's users do, catches it."""
    assert issubclass(UserError, ValueError)


@pytest.mark.parametrize(("name", "near"), [("Relu", "relu"), ("sigmiod", "sigmoid"), ("leakyrelu", "leaky_relu")])
def test_the_nearest_name(name, near):
    """A misspelt name gets the nearest known one, before the whole list."""
    message = str(unknown_name("activation", name, KNOWN))
    assert message == f"unknown activation {name!r}: did you mean {near!r}? (known: relu, leaky_relu, sigmoid)"


@pytest.mark.parametrize("name", ["", "qqq", None, 3])
def test_nothing_near(name):
    """A name that is not similar to a known one gets the list only; it need not be a string."""
    error = unknown_name("loss", name, iter(KNOWN))
    assert isinstance(error, UserError)
    assert str(error) == f"unknown loss {name!r} (known: relu, leaky_relu, sigmoid)"
