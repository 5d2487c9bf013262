"""One formula, in one place, and it is the one that runs.

Each formula of ``core/`` is broken in turn, in a copy of the package, and each driver takes a step of gradient descent.
A driver that computed the same thing from a second place would not notice.

- *raise*: the formula's first statement is ``raise RuntimeError("sabotage")``: the step fails with it, by every driver
  and in every case that runs the formula.
- *change*: what the formula returns is doubled (:func:`changed`), or, where it adds to a tensor in place, what it adds:
  the weights after the step differ by more than 1e-3 of their norm, by every driver, in a case that runs it. The value
  of a loss is only reported: there it is the C returned that differs, and not the weights.

Formulas are found by structure (:func:`formulas_in`), so a new class or function is under test at once. Which cases run
a formula is recorded by a profiler; a formula that no case runs fails by its name.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import gc
import importlib.util
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PACKAGE = Path(importlib.util.find_spec("deltaprop").origin).parent

# --- what a formula is ---

# Every other file of core/ has formulas.
FILES_WITHOUT = {
    "__init__.py": "the tables",
    "function.py": "makes callables of definitions",
    "casting.py": "dtypes",
    "recursion.py": "the explicit driver's loop over the formulas; the tape has PyTorch's",
}

# Every other function of these files is a formula, but one that only raises (an abstract base) or only passes on what
# it was given.
NAMES_WITHOUT = {
    "setup_context": "says what the tape saves",
    "backward": "the tape's call of the formulas; of its own it has the gradients of targets, asked for by no training",
    "_saved": "reads what the tape saved",
    "jvp": "tangents: no training asks for them",
    "push": "tangents",
    "derivative_by_target": "gradients of targets",
    "_excess": "gradients of the entries' weights",
    "options": "reads a signature",
    "_defaults": "reads a signature",
    "_of_one_shape": "shapes",
}

# The explicit driver has no use for these.
BY_AUTOGRAD_ALONE = {
    "linear.Linear.forward": "calls linear_forward, which the explicit driver calls itself",
    "linear._grad_broadcast_bias": "calls linear_grad_bias but for shapes of b that no layer has",
}

WITHOUT_CHANGE = {"losses.class_axis": "an axis: doubled, it is none"}

# Of linear.py and sgd.py, which may add to a tensor in place and return nothing of use: the first of these that is a
# parameter is changed on entry.
ON_ENTRY = {
    "delta": "delta = 2 * delta",
    "gradient": "gradient = 2 * gradient",
    "options": "options = options._replace(lr=2 * options.lr)",
}


@dataclass(frozen=True)
class Formula:
    """A function of core/.

    Attributes:
        file: Its file in core/.
        path: Its qualified name there.
    """

    file: str
    path: str

    @property
    def name(self) -> str:
        """As in ``losses.MSE.derivative``."""
        return f"{self.file.removesuffix('.py')}.{self.path}"

    @property
    def drivers(self) -> tuple[str, ...]:
        """The drivers that have to run it."""
        return ("autograd",) if self.name in BY_AUTOGRAD_ALONE else tuple(DRIVERS)

    @property
    def only_reports(self) -> bool:
        """Whether C follows from it, and no gradient."""
        name = self.path.rpartition(".")[2]
        return self.file == "losses.py" and (name in ("value", "label_value") or self.path == "ElementwiseLoss.forward")

    def sabotaged(self, source: str, kind: str) -> str:
        """Return the source of its file with it broken."""
        tree = ast.parse(source)
        (function,) = [node for path, node in _functions(tree) if path == self.path]
        entry = next((ON_ENTRY[a.arg] for a in function.args.args if a.arg in ON_ENTRY), None)
        if kind == "raise":
            function.body[:0] = ast.parse('raise RuntimeError("sabotage")').body
        elif self.file in ("linear.py", "sgd.py") and entry:
            function.body[:0] = ast.parse(entry).body
        else:
            for node in ast.walk(function):
                if isinstance(node, ast.Return) and node.value is not None:
                    node.value = ast.Call(ast.Name("changed", ast.Load()), [node.value], [])
        function.decorator_list = []  # these stand above its first line, and stay
        lines = source.splitlines()
        broken = textwrap.indent(ast.unparse(ast.fix_missing_locations(function)), " " * function.col_offset)
        lines[function.lineno - 1 : function.end_lineno] = [broken]
        return "\n".join([*lines, "", inspect.getsource(changed)])


def changed(value: Any) -> Any:
    """Return floats doubled, or 1 where all are 0; masks inverted, labels in reverse; all else as it is."""
    import torch

    if isinstance(value, tuple):
        each = map(changed, value)
        return type(value)(*each) if hasattr(value, "_fields") else tuple(each)
    if not isinstance(value, torch.Tensor):
        return 2 * value if type(value) in (int, float) else value
    if value.dtype == torch.bool:
        return ~value
    if not value.is_floating_point():
        return value.flip(0)
    return 2 * value if value.any() else value + 1


def _functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Yield the functions of a module and the methods of its classes, with their qualified names."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from ((f"{node.name}.{m.name}", m) for m in node.body if isinstance(m, ast.FunctionDef))


def _computes(function: ast.FunctionDef) -> bool:
    """Return whether a function does more than to raise, or to return some of what it was given."""
    start = 1 if ast.get_docstring(function) is not None else 0
    first, *more = function.body[start:]
    if more or not isinstance(first, ast.Raise | ast.Return):
        return True
    passes_on = (ast.Return, ast.Name, ast.Tuple, ast.Subscript, ast.Constant, ast.expr_context)
    return isinstance(first, ast.Return) and not all(isinstance(node, passes_on) for node in ast.walk(first))


def formulas_in(folder: Path) -> list[Formula]:
    """Return the formulas in the files of a folder."""
    return [
        Formula(file.name, path)
        for file in sorted(folder.glob("*.py"))
        if file.name not in FILES_WITHOUT
        for path, node in _functions(ast.parse(file.read_text(encoding="utf-8")))
        if node.name not in NAMES_WITHOUT and _computes(node)
    ]


FORMULAS = formulas_in(PACKAGE / "core")

# --- in the child: a step of each case by each driver ---


@dataclass(frozen=True)
class Case:
    """A net of 5-4-3 neurons, a loss and an optimizer, and a batch of 8 rows."""

    activation: str = "tanh"
    loss: str = "mse_loss"
    options: dict[str, Any] | None = None
    targets: str = "numbers"
    sgd: dict[str, Any] | None = None


def cases() -> dict[str, Case]:
    """Return a case for each row of the tables, and for each part of a formula that only an option runs."""
    import torch

    from deltaprop.core import ACTIVATIONS, LOSSES

    weight = torch.tensor([0.5, 1.5, 3.0], dtype=torch.float64)
    labels, soft = {"loss": "cross_entropy", "targets": "labels"}, {"loss": "cross_entropy", "targets": "probabilities"}
    binary = "binary_cross_entropy_with_logits"
    everything = {"weight": weight, "ignore_index": 1, "label_smoothing": 0.2}
    return {
        **{f"hidden {name}": Case(name) for name in ACTIVATIONS},
        **{
            name: Case(loss=name, targets="labels" if loss.takes_labels else "numbers") for name, loss in LOSSES.items()
        },
        "mse, sum": Case(options={"reduction": "sum"}),
        "huber, delta": Case(loss="huber_loss", options={"delta": 0.3}),
        "binary, weight": Case(loss=binary, options={"weight": weight}),
        "binary, pos_weight": Case(loss=binary, options={"pos_weight": weight}),
        "labels, weight": Case(options={"weight": weight}, **labels),
        "labels, weight, sum": Case(options={"weight": weight, "reduction": "sum"}, **labels),
        "labels, smoothing": Case(options={"label_smoothing": 0.2}, **labels),
        "labels, everything": Case(options=everything, **labels),
        "labels, everything, sum": Case(options={**everything, "reduction": "sum"}, **labels),
        "probabilities": Case(**soft),
        "probabilities, weight and smoothing": Case(options={"weight": weight, "label_smoothing": 0.2}, **soft),
        "momentum": Case(sgd={"momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1}),
        "Nesterov": Case(sgd={"momentum": 0.9, "nesterov": True}),
    }


Outcome = dict[str, Any]
"""Of a case by a driver: ``weights`` after the step and ``loss``, or the ``error``; and the formulas that ``ran``."""


def _by_autograd(model: Any, loss: Any, optimizer: Any, x: Any, y: Any) -> Any:
    c = loss(model(x), y)
    c.backward()
    optimizer.step()
    return c


def _by_step(model: Any, loss: Any, optimizer: Any, x: Any, y: Any) -> Any:
    import deltaprop as dp

    return dp.ExplicitTrainer(model, loss, optimizer).step(x, y)


def _by_epoch(model: Any, loss: Any, optimizer: Any, x: Any, y: Any) -> Any:
    import deltaprop as dp

    return dp.ExplicitTrainer(model, loss, optimizer).epoch(x, y, batch_size=len(x))


DRIVERS = {"autograd": _by_autograd, "explicit step": _by_step, "explicit epoch": _by_epoch}


def outcome(case: Case, driver: str) -> Outcome:
    """Take one step."""
    import torch

    import deltaprop as dp
    import deltaprop.functional as F

    torch.manual_seed(0)
    model = dp.MLP([5, 4, 3], case.activation, dtype=torch.float64)
    x, numbers = torch.randn(8, 5, dtype=torch.float64), torch.rand(8, 3, dtype=torch.float64)
    y = {"numbers": numbers, "probabilities": numbers.softmax(1), "labels": torch.arange(8) % 3}[case.targets]
    loss = functools.partial(getattr(F, case.loss), **(case.options or {}))
    optimizer = dp.SGD(model.parameters(), lr=0.5, **(case.sgd or {}))
    try:
        c = DRIVERS[driver](model, loss, optimizer, x, y)
    except Exception as error:
        return {"error": str(error)}
    return {"loss": c.item(), "weights": torch.nn.utils.parameters_to_vector(model.parameters()).tolist()}


@contextlib.contextmanager
def recorded(folder: Path, ran: set[str]) -> Iterator[None]:
    """Note the functions of a folder that are called, as :attr:`Formula.name` has them."""
    folder_name = str(folder)

    def note(frame: Any, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(folder_name):
            ran.add(f"{Path(code.co_filename).stem}.{code.co_qualname}")

    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)


def answer(package: Path, names: list[str] | None) -> dict[str, dict[str, Outcome]]:
    """Return what comes of these cases by each driver; of all of them, and what ran, where there are no names."""
    import deltaprop

    assert Path(deltaprop.__file__).is_relative_to(package)
    table = cases()
    found: dict[str, dict[str, Outcome]] = {}
    for name in table if names is None else names:
        found[name] = {}
        for driver in DRIVERS:
            ran: set[str] = set()
            with recorded(package / "core", ran) if names is None else contextlib.nullcontext():
                found[name][driver] = {**outcome(table[name], driver), "ran": sorted(ran)}
    return found


def serve(folder: str) -> None:
    """Answer questions, a line each, in children that find torch imported and import the package as it is then."""
    import torch

    torch.set_num_threads(1)
    sys.path.insert(0, folder)
    sys.dont_write_bytecode = False  # of what is not edited
    importlib.import_module("deltaprop")
    for name in [name for name in sys.modules if name.partition(".")[0] == "deltaprop"]:
        del sys.modules[name]
    sys.dont_write_bytecode = True
    gc.freeze()  # else a collection in a child would copy the pages of all that torch has made
    print("ready", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            signal.alarm(60)
            try:
                print(json.dumps(answer(Path(folder) / "deltaprop", json.loads(line))), flush=True)
                os._exit(0)
            except BaseException:
                print(json.dumps(traceback.format_exc()), flush=True)
                os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            print(json.dumps(f"the child ended with status {status}"), flush=True)


# --- in the test: an edited copy, and what is wrong with it ---

Edits = dict[str, Callable[[str], str]]
"""From a file of the package to what is done to its source."""

Table = dict[str, dict[str, Outcome]]
"""Case by case and driver by driver."""


class Copy:
    """A copy of the package, and a process that has imported torch once and forks for every question."""

    def __init__(self, folder: Path) -> None:
        self.package = folder / "deltaprop"
        shutil.copytree(PACKAGE, self.package, ignore=shutil.ignore_patterns("__pycache__"))
        command = [sys.executable, "-m", "tests.test_sabotage", str(folder)]
        root = Path(__file__).parents[1]
        self._server = subprocess.Popen(
            command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
        )
        assert self._server.stdout.readline() == "ready\n"

    def close(self) -> None:
        """End the process."""
        self._server.kill()
        self._server.communicate()

    def ask(self, names: list[str] | None, *edits: Edits) -> Table:
        """Return what comes of cases with the copy edited so; of all, with what ran, if there are no names."""
        edited = {file for edit in edits for file in edit}
        before = {file: (self.package / file).read_text(encoding="utf-8") for file in edited}
        times = {file: (self.package / file).stat() for file in edited}
        try:
            for edit in edits:
                for file, change in edit.items():
                    path = self.package / file
                    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
            self._server.stdin.write(json.dumps(names) + "\n")
            self._server.stdin.flush()
            found = json.loads(self._server.stdout.readline())
        finally:
            for file, source in before.items():
                (self.package / file).write_text(source, encoding="utf-8")
                os.utime(self.package / file, ns=(times[file].st_atime_ns, times[file].st_mtime_ns))
        if isinstance(found, str):
            raise AssertionError(found)
        return found


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Copy]:
    """Return a copy of the package."""
    copied = Copy(tmp_path_factory.mktemp("sabotage"))
    yield copied
    copied.close()


@pytest.fixture(scope="module")
def sound(copy: Copy) -> Table:
    """Return what comes of every case with nothing edited."""
    return copy.ask(None)


def complaints(copy: Copy, formula: Formula, kind: str, sound: Table, *edits: Edits) -> list[str]:
    """Return by which drivers, and in which cases, a broken formula goes unnoticed; nothing if it never does.

    Args:
        copy: Of the package.
        formula: To be broken.
        kind: ``"raise"`` or ``"change"``.
        sound: What comes of every case while the formula is whole.
        edits: To the package besides, done before.
    """
    runs = {driver: {name for name in sound if formula.name in sound[name][driver]["ran"]} for driver in DRIVERS}
    names = [name for name in sound if all(name in runs[driver] for driver in formula.drivers)]
    if not names:
        counts = ", ".join(f"{driver} runs it in {len(runs[driver])}" for driver in formula.drivers)
        return [f"no case needs {formula.name}: {counts}"]
    sabotage = {f"core/{formula.file}": functools.partial(formula.sabotaged, kind=kind)}
    found: list[str] = []
    for chosen in [names] if kind == "raise" else [names[:1], names[1:]]:
        broken = copy.ask(chosen, *edits, sabotage)
        survived = {
            name: [d for d in formula.drivers if not _shows(formula, kind, sound[name][d], broken[name][d])]
            for name in chosen
        }
        if kind == "change" and not all(survived.values()):
            return []  # one case is enough: a change may cancel in others, as that of weights in a weighted mean
        found += [f"{formula.name}, {kind}: survived by {d} in {name!r}" for name in chosen for d in survived[name]]
    return found


def _shows(formula: Formula, kind: str, sound: Outcome, broken: Outcome) -> bool:
    if kind == "raise":
        return broken.get("error") == "sabotage"
    assert "error" not in broken, broken
    if formula.only_reports:
        return abs(broken["loss"] - sound["loss"]) > 1e-3 * abs(sound["loss"]) and _distance(sound, broken) == 0
    return _distance(sound, broken) > 1e-3


def _distance(one: Outcome, other: Outcome) -> float:
    """Return how far weights are from others, in terms of their norm."""
    pairs = list(zip(one["weights"], other["weights"], strict=True))
    return (sum((p - q) ** 2 for p, q in pairs) / sum(p**2 for p, _ in pairs)) ** 0.5


# --- the promise ---


SABOTAGES = [
    pytest.param(formula, kind, id=f"{formula.name}, {kind}")
    for formula in FORMULAS
    for kind in ("raise", "change")
    if kind == "raise" or formula.name not in WITHOUT_CHANGE
]


@pytest.mark.parametrize(("formula", "kind"), SABOTAGES)
def test_every_broken_formula_is_detected(formula: Formula, kind: str, copy: Copy, sound: Table):
    """A step by any driver fails, or ends elsewhere, if a formula does."""
    assert not complaints(copy, formula, kind, sound)


def test_every_exclusion_refers_to_existing_code():
    """What is left out, and why, is there to be left out."""
    files = {file.name: file for file in (PACKAGE / "core").glob("*.py")}
    assert set(FILES_WITHOUT) <= set(files)
    trees = [ast.parse(file.read_text(encoding="utf-8")) for name, file in files.items() if name not in FILES_WITHOUT]
    assert set(NAMES_WITHOUT) <= {node.name for tree in trees for _, node in _functions(tree)}
    assert {*BY_AUTOGRAD_ALONE, *WITHOUT_CHANGE} <= {formula.name for formula in FORMULAS}


# --- the harness itself ---


def _followed_by(more: str) -> Callable[[str], str]:
    return lambda source: f"{source}\n\n{more}\n"


def _formula(name: str) -> Formula:
    return next(formula for formula in FORMULAS if formula.name == name)


def test_without_edits_all_drivers_agree(sound: Table):
    """With nothing edited no step fails, and all drivers end at the same weights."""
    for name, by_driver in sound.items():
        assert not [driver for driver in DRIVERS if "error" in by_driver[driver]], by_driver
        assert all(_distance(by_driver["autograd"], by_driver[driver]) < 1e-12 for driver in DRIVERS), name


SIGMOID_BY_PYTORCH: Edits = {
    "core/activations.py": _followed_by(
        "Sigmoid.delta = staticmethod(lambda grad_a, a, out=None: torch.ops.aten.sigmoid_backward(grad_a, a))"
    )
}


@pytest.mark.parametrize("kind", ["raise", "change"])
def test_a_derivative_computed_by_pytorch_is_detected(kind: str, copy: Copy, sound: Table):
    """With sigmoid's δ by a kernel of PyTorch's, no driver needs the formula; the harness reports that."""
    formula = _formula("activations.Sigmoid.derivative")
    found = complaints(copy, formula, kind, sound, SIGMOID_BY_PYTORCH)
    assert [line for line in found if "'hidden sigmoid'" in line] == [
        f"{formula.name}, {kind}: survived by {driver} in 'hidden sigmoid'" for driver in DRIVERS
    ]
    replaced = copy.ask(None, SIGMOID_BY_PYTORCH)
    assert complaints(copy, formula, kind, replaced, SIGMOID_BY_PYTORCH) == [
        "no case needs activations.Sigmoid.derivative: "
        "autograd runs it in 0, explicit step runs it in 0, explicit epoch runs it in 0"
    ]


PRODUCT_OF_ITS_OWN: Edits = {
    "core/recursion.py": _followed_by("def linear_grad_input(delta, weight, out=None): return delta @ weight")
}


@pytest.mark.parametrize("kind", ["raise", "change"])
def test_a_second_copy_of_a_formula_is_detected(kind: str, copy: Copy, sound: Table):
    """With a product δ W of its own, the explicit driver does not need linear.py's; the harness reports that."""
    formula = _formula("linear.linear_grad_input")
    found = complaints(copy, formula, kind, sound, PRODUCT_OF_ITS_OWN)
    assert [line for line in found if "'hidden tanh'" in line] == [
        f"{formula.name}, {kind}: survived by {driver} in 'hidden tanh'"
        for driver in ("explicit step", "explicit epoch")
    ]
    copied = copy.ask(None, PRODUCT_OF_ITS_OWN)
    assert complaints(copy, formula, kind, copied, PRODUCT_OF_ITS_OWN) == [
        f"no case needs linear.linear_grad_input: autograd runs it in {len(copied)}, "
        "explicit step runs it in 0, explicit epoch runs it in 0"
    ]


def test_a_new_formula_is_tested_automatically(tmp_path: Path):
    """A class or function that is added to a file of core/ is found there; what only raises or passes on is not."""
    source = """
class Sine(Elementwise):
    @staticmethod
    def forward(z): return torch.sin(z)
    @staticmethod
    def derivative(z): return torch.cos(z)
    @staticmethod
    def saved(z, output): return output[1]
    @classmethod
    def delta(cls, grad_a): raise TypeError("abstract")
def helper(z): return 2 * z
"""
    (tmp_path / "more.py").write_text(source, encoding="utf-8")
    assert [formula.name for formula in formulas_in(tmp_path)] == [
        "more.Sine.forward",
        "more.Sine.derivative",
        "more.helper",
    ]


if __name__ == "__main__":
    serve(sys.argv[1])
