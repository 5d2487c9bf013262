"""All of these tests need a C++ compiler."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _compiler(compiler: None) -> None:
    pass
