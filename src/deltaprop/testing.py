"""For users' test suites: check a backward pass in one line."""

from __future__ import annotations

from typing import Any

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
        AssertionError: With the report's summary, if there is an error, or a warning that is not allowed.

    Example:
        >>> import torch
        >>> _ = assert_gradients(torch.tanh, (torch.randn(4, 3),), fast=True)
    """
    __tracebackhide__ = True  # pytest shows the line of the test
    report = check_gradients(fn, inputs, **options)
    allowed = allow_warnings if warnings is None else warnings
    if not report.ok or (report.warnings and not allowed):
        raise AssertionError(report.summary())
    return report
