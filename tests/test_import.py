"""What `import deltaprop` costs and promises: torch, and nothing that only a command or a picture needs."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import deltaprop as dp

# Needed by single commands alone, and slow to import.
HEAVY = ("sklearn", "matplotlib", "tensorboard", "tyro", "rich", "pandas", "scipy", "PIL", "safetensors", "hypothesis")


def modules_after(statement: str) -> set[str]:
    """Return the modules that a fresh interpreter holds after a statement."""
    program = f"import sys\n{statement}\nprint(*sys.modules, sep='\\n')"
    # The same search path, so that the same source is imported wherever the tests run.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True
    )
    return set(result.stdout.split())


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    """The modules after `import deltaprop`."""
    return modules_after("import deltaprop")


@pytest.mark.parametrize("name", HEAVY)
def test_nothing_heavy(name, loaded):
    """`import deltaprop` imports none of the packages that only a command needs."""
    assert importlib.util.find_spec(name) or name in ("pandas", "PIL", "scipy")  # else the test says nothing
    assert name not in {module.partition(".")[0] for module in loaded}


def test_little_more_than_torch(loaded):
    """Beyond `import torch` it loads its own modules, and no package from outside the standard library."""
    added = loaded - modules_after("import torch")
    foreign = {m for m in added if m.partition(".")[0] not in ({"deltaprop"} | sys.stdlib_module_names)}
    assert {m for m in foreign if not m.startswith("torch.")} == set()
    assert "deltaprop.ops.linear" in added


def test_public_names():
    """Every name of __all__ exists, once, and has a docstring."""
    for name in dp.__all__:
        assert getattr(dp, name).__doc__
    assert len(set(dp.__all__)) == len(dp.__all__)
    assert {"MLP", "Linear", "SGD", "Perceptron", "from_torch", "to_torch", "functional", "UserError"} <= set(
        dp.__all__
    )


def test_typed():
    """The package says that it is typed (PEP 561)."""
    assert (Path(dp.__file__).parent / "py.typed").is_file()
