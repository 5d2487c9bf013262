"""The house: imports run one way, and a formula's line carries its tag."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "deltaprop"

# From the ground up; a part may import what stands above it in this list, and `errors`, which is everyone's.
FLOORS = [
    ["errors", "_torch_compat"],
    ["core"],
    ["functional", "epoch_state"],
    ["initialization", "perceptron", "modules", "optim", "loss_spec"],
    ["layers"],
    ["explicit"],
    ["verify", "data"],
    ["testing", "training"],
    ["trained"],
    ["estimators", "export"],
    ["cli"],
]
HEIGHT = {part: height for height, parts in enumerate(FLOORS) for part in parts}


def part_of(module: str) -> str:
    """Return the part of the house that a dotted name within deltaprop is in."""
    return module.split(".")[1] if "." in module else ""


def imports(path: Path) -> set[str]:
    """Return the absolute names a file imports, at its top or within its functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            names |= {f"{module}.{alias.name}" for alias in node.names} if module == "deltaprop" else {module}
    return names


FILES = sorted(path for path in SRC.rglob("*.py") if path.parent != SRC or path.stem in HEIGHT)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SRC)))
def test_imports_run_one_way(path: Path):
    own = path.relative_to(SRC).parts[0].removesuffix(".py")
    for name in imports(path):
        if name.startswith("deltaprop."):
            other = part_of(name)
            if other in HEIGHT and other != own:
                assert HEIGHT[other] <= HEIGHT[own], f"{own} imports {other}"


def test_parts_on_one_floor_have_no_circle():
    """Within a floor: perceptron and modules may use initialization; verify and data know nothing of each other."""
    assert not any(part_of(name) == "data" for path in (SRC / "verify").glob("*.py") for name in imports(path))
    assert not any(part_of(name) == "verify" for path in (SRC / "data").glob("*.py") for name in imports(path))
    assert "deltaprop.modules" not in imports(SRC / "initialization.py") | imports(SRC / "perceptron.py")


def test_the_core_knows_torch_alone():
    allowed = {"torch", "deltaprop.core", "deltaprop._torch_compat", "__future__", "collections", "dataclasses"}
    allowed |= {"functools", "inspect", "math", "typing"}
    for path in (SRC / "core").glob("*.py"):
        for name in imports(path):
            assert any(name == root or name.startswith(f"{root}.") for root in allowed), f"{path.name}: {name}"


def test_private_entry_points_of_torch_stand_in_one_file_beside_the_core():
    for path in (SRC / "core").glob("*.py"):
        text = path.read_text()
        assert "torch._C" not in text
        assert "forward_ad._" not in text


def test_each_equation_stands_on_one_line_of_the_formulas():
    """BP3 in two places would be one place too many; the recursion calls these lines, and names them again."""
    formulas = [path for path in (SRC / "core").glob("*.py") if path.name != "recursion.py"]
    lines = [line for path in formulas for line in path.read_text().splitlines()]
    for tag in ("FWD", "BP1, BP2:", "BP2, left factor", "BP3", "BP4", "SGD:"):
        assert sum(line.rpartition("# ")[2].startswith(tag) and "# " in line for line in lines) == 1, tag
    tags = ("# FWD", "# BP", "# SGD")
    others = [path for path in SRC.rglob("*.py") if SRC / "core" not in path.parents]
    places = {path.name for path in others for line in path.read_text().splitlines() if any(t in line for t in tags)}
    assert places == {"trainer.py", "engines.py", "trace.py"}  # each a call, of a whole pass or loss
