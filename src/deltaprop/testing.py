"""For users' test suites: check a backward pass in one line."""

from __future__ import annotations

from typing import Any

from deltaprop.errors import UserError
from deltaprop.gradcheck.check import check_gradients
from deltaprop.gradcheck.report import GradientReport

__all__ = ["assert_gradients"]


def assert_gradients(
    fn: Any, inputs: Any, *, allow_warnings: bool = True, warnings: bool | None = None, **options: Any
) -> GradientReport:
    """Assert that :func:`~deltaprop.check_gradients` finds nothing wrong.

    Args:
        fn: A Function class, a module, or any callable.
        inputs: Its positional arguments.
        allow_warnings: Whether warnings are allowed.
        warnings: The name of ``allow_warnings`` in version 0.1.
        **options: For ``check_gradients``: ``reference``, ``dtype``, ``skip``, ``atol``, ``rtol``, ``fast``, ``deep``,
            ``seed``.

    Returns:
        The report.

    Raises:
        AssertionError: With what failed, if there is an error, or a warning that is not allowed.

    Example:
        >>> import torch
        >>> _ = assert_gradients(torch.tanh, (torch.randn(4, 3),), fast=True)
    """
    __tracebackhide__ = True  # pytest shows the line of the test
    try:
        report = check_gradients(fn, inputs, **options)
    except UserError as error:
        raise UserError(str(error)) from None
    allowed = allow_warnings if warnings is None else warnings
    if not report.ok or (report.warnings and not allowed):
        lines = [line for line in report.summary().splitlines() if not line.startswith("  skipped")]
        lines[0] = lines[0].replace(": ok; ", ": warnings are not allowed; ", 1)
        raise AssertionError("\n".join(lines))
    return report
