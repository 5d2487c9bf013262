"""Every formula is implemented once, and every engine uses that implementation.

Each formula of ``core/`` is broken in turn, in a copy of the package, and each engine takes a step of gradient descent.
A engine with a second implementation of the formula would not be affected.

- *raise*: the formula's first statement is ``raise RuntimeError("sabotage")``: the step fails with this error, with
  every engine and in every case that runs the formula.
- *change*: what the formula returns is doubled (:func:`changed`), or, where it adds to a tensor in place, what it adds:
  the weights after the step differ by more than 1e-3 of their norm, for every engine, in a case that runs it. The value
  of a loss is only reported: there the returned C differs, and not the weights.

The compiled engine has C++ of its own for what :data:`IN_CPP` lists, and emits the rest from the formulas: there a
formula that raises refuses the model by name, and one that is changed is built anew, whatever the cache holds.

Formulas are found by structure (:func:`formulas_in`), so a new class or function is tested automatically. A profiler
records which cases run a formula; if no case does, the test of the formula fails.
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
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PACKAGE = Path(importlib.util.find_spec("deltaprop").origin).parent

# --- the formulas ---

# Files of core/ without formulas.
FILES_WITHOUT = {
    "__init__.py": "the tables",
    "function.py": "makes callables from definitions",
    "casting.py": "dtypes",
    "emit.py": "writes the formulas in other languages",
    "recursion.py": "the explicit engine's loop over the formulas; autograd has its own",
}

# Functions that are not formulas. All others are, except those that only raise (abstract methods) or only return
# their arguments.
NAMES_WITHOUT = {
    "setup_context": "saves tensors for autograd",
    "backward": "autograd's call of the formulas, and the gradients of targets, which training does not use",
    "_saved": "reads saved tensors",
    "jvp": "tangents, which training does not use",
    "push": "tangents",
    "derivative_by_target": "gradients of targets",
    "_excess": "gradients of the entries' weights",
    "options": "reads a signature",
    "_defaults": "reads a signature",
    "_of_one_shape": "shapes",
}

# Formulas that only the autograd engine uses.
BY_AUTOGRAD_ALONE = {
    "linear.Linear.forward": "calls linear_forward, which the explicit engine calls itself",
    "linear._grad_broadcast_bias": "calls linear_grad_bias, except for shapes of b that no layer has",
}

# Formulas that ``compiled/epoch.cpp`` writes in C++ itself, held to them by tests/compiled/test_equality.py.
IN_CPP = {
    "linear.linear_forward": "FWD",
    "linear.linear_grad_input": "BP2, left factor",
    "linear.linear_grad_bias": "BP3",
    "linear.linear_grad_weight": "BP4",
    "linear.add_scaled": "SGD",
    "linear.rows": "shapes",
    "linear.Linear.forward": "FWD",
    "linear._grad_broadcast_bias": "BP3",
    "sgd.sgd_step": "SGD",
    "activations.Elementwise.delta": "BP1, BP2: the product with σ'",
    "losses.ElementwiseLoss.forward": "C: the sum over entries",
    "losses.ElementwiseLoss.grad_input": "BP1, left factor: the product with 1/D",
    "losses.CrossEntropy.forward": "the row-wise cross-entropy",
    "losses.CrossEntropy.value": "the row-wise cross-entropy",
    "losses.CrossEntropy.delta": "the row-wise cross-entropy",
    "losses.CrossEntropy.grad_input": "the row-wise cross-entropy",
    "losses.label_value": "the row-wise cross-entropy",
}

# Formulas of models that the compiled engine refuses: their σ' is a matrix.
REFUSED_IN_CPP = {
    f"activations.{name}.{method}" for name in ("Softmax", "LogSoftmax") for method in ("forward", "delta")
}

WITHOUT_CHANGE = {"losses.class_axis": "an axis: doubled, it is invalid"}

# Functions of linear.py and sgd.py may add to a tensor in place and return nothing useful: in them the first of these
# parameters is changed on entry.
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
        """The name, such as ``losses.MSE.derivative``."""
        return f"{self.file.removesuffix('.py')}.{self.path}"

    @property
    def engines(self) -> tuple[str, ...]:
        """The engines that must use it."""
        return ("autograd",) if self.name in BY_AUTOGRAD_ALONE else tuple(DRIVERS)

    @property
    def only_reports(self) -> bool:
        """Whether only the reported C depends on it, and no gradient."""
        name = self.path.rpartition(".")[2]
        return self.file == "losses.py" and (name in ("value", "label_value") or self.path == "ElementwiseLoss.forward")

    def sabotaged(self, source: str, kind: str) -> str:
        """Return the source of its file with the formula broken."""
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
        function.decorator_list = []  # decorators are above its first line, and stay in the source
        lines = source.splitlines()
        broken = textwrap.indent(ast.unparse(ast.fix_missing_locations(function)), " " * function.col_offset)
        lines[function.lineno - 1 : function.end_lineno] = [broken]
        return "\n".join([*lines, "", inspect.getsource(changed)])


def changed(value: Any) -> Any:
    """Return floats doubled, or 1 where all are 0; masks inverted, labels reversed; all else unchanged."""
    import torch.fx

    if isinstance(value, tuple):
        each = map(changed, value)
        return type(value)(*each) if hasattr(value, "_fields") else tuple(each)
    if isinstance(value, torch.fx.Proxy):
        return 2 * value + 1
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
    """Return whether a function does more than raise, or return some of its arguments."""
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

# --- in the child: a step of each case by each engine ---


@dataclass(frozen=True)
class Case:
    """A 5-4-3 network, a loss, an optimizer, and targets of 8 rows."""

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
"""The result of a case with a engine: ``weights`` and ``loss`` after the step, or ``error``; formulas that ``ran``."""


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


def _compiled(model: Any, loss: Any, optimizer: Any, x: Any, y: Any) -> Any:
    import deltaprop as dp

    return dp.CompiledTrainer(model, loss, optimizer).epoch(x, y, batch_size=len(x))


DRIVERS = {"autograd": _by_autograd, "explicit step": _by_step, "explicit epoch": _by_epoch}
COMPILED = {"compiled epoch": _compiled}  # apart: each of its changes takes seconds to build


def outcome(case: Case, engine: str) -> Outcome:
    """Take one step; return the outcome."""
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
        c = {**DRIVERS, **COMPILED}[engine](model, loss, optimizer, x, y)
    except Exception as error:
        return {"error": str(error)}
    return {"loss": c.item(), "weights": torch.nn.utils.parameters_to_vector(model.parameters()).tolist()}


@contextlib.contextmanager
def recorded(folder: Path, ran: set[str]) -> Iterator[None]:
    """Record the functions of a folder that are called, by :attr:`Formula.name`."""
    folder_name = str(folder)

    def record(frame: Any, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(folder_name):
            ran.add(f"{Path(code.co_filename).stem}.{code.co_qualname}")

    sys.setprofile(record)
    try:
        yield
    finally:
        sys.setprofile(None)


def outcomes(package: Path, names: list[str] | None, engines: list[str]) -> dict[str, dict[str, Outcome]]:
    """Return the outcomes of these cases with these engines; if ``names`` is None, of all cases, with what ran."""
    import deltaprop

    assert Path(deltaprop.__file__).is_relative_to(package)
    table = cases()
    result: dict[str, dict[str, Outcome]] = {}
    for name in table if names is None else names:
        result[name] = {}
        for engine in engines:
            ran: set[str] = set()
            with recorded(package / "core", ran) if names is None else contextlib.nullcontext():
                result[name][engine] = {**outcome(table[name], engine), "ran": sorted(ran)}
    return result


def serve(folder: str) -> None:
    """Serve requests, one per line, in forked children that have torch imported and import the edited package."""
    import torch

    torch.set_num_threads(1)
    sys.path.insert(0, folder)
    sys.dont_write_bytecode = False  # for files that are not edited
    importlib.import_module("deltaprop")
    for name in [name for name in sys.modules if name.partition(".")[0] == "deltaprop"]:
        del sys.modules[name]
    sys.dont_write_bytecode = True
    gc.freeze()  # otherwise a garbage collection in a child would copy all memory pages of torch's objects
    print("ready", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            signal.alarm(600)
            try:
                print(json.dumps(outcomes(Path(folder) / "deltaprop", *json.loads(line))), flush=True)
                os._exit(0)
            except BaseException:
                print(json.dumps(traceback.format_exc()), flush=True)
                os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            print(json.dumps(f"the child ended with status {status}"), flush=True)


# --- in the test: an edited copy, and undetected changes ---

Edits = dict[str, Callable[[str], str]]
"""Maps a file of the package to a function that edits its source."""

Table = dict[str, dict[str, Outcome]]
"""Outcomes by case and engine."""


class Copy:
    """A copy of the package, and a process that has imported torch once and forks for every request."""

    def __init__(self, folder: Path) -> None:
        self.package = folder / "deltaprop"
        shutil.copytree(PACKAGE, self.package, ignore=shutil.ignore_patterns("__pycache__"))
        command = [sys.executable, "-m", "tests.test_sabotage", str(folder)]
        root = Path(__file__).parents[1]
        environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
        self._server = subprocess.Popen(
            command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8", env=environment
        )
        assert self._server.stdout.readline() == "ready\n"

    def close(self) -> None:
        """End the process."""
        self._server.kill()
        self._server.communicate()

    def run(self, names: list[str] | None, *edits: Edits, engines: Iterable[str] = tuple(DRIVERS)) -> Table:
        """Return the outcomes of cases with these edits; if ``names`` is None, of all cases, with what ran."""
        edited = {file for edit in edits for file in edit}
        before = {file: (self.package / file).read_text(encoding="utf-8") for file in edited}
        times = {file: (self.package / file).stat() for file in edited}
        try:
            for edit in edits:
                for file, change in edit.items():
                    path = self.package / file
                    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
            self._server.stdin.write(json.dumps([names, list(engines)]) + "\n")
            self._server.stdin.flush()
            result = json.loads(self._server.stdout.readline())
        finally:
            for file, source in before.items():
                (self.package / file).write_text(source, encoding="utf-8")
                os.utime(self.package / file, ns=(times[file].st_atime_ns, times[file].st_mtime_ns))
        if isinstance(result, str):
            raise AssertionError(result)
        return result


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Copy]:
    """Return a copy of the package."""
    copied = Copy(tmp_path_factory.mktemp("sabotage"))
    yield copied
    copied.close()


@pytest.fixture(scope="module")
def unedited(copy: Copy) -> Table:
    """Return the outcomes of every case without edits."""
    return copy.run(None)


def undetected(copy: Copy, formula: Formula, kind: str, unedited: Table, *edits: Edits) -> list[str]:
    """Return with which engines and in which cases a broken formula is not detected; empty if it always is.

    Args:
        copy: The copy of the package.
        formula: The formula to break.
        kind: ``"raise"`` or ``"change"``.
        unedited: The outcomes of every case with the unbroken formula.
        edits: Further edits of the package, applied first.
    """
    runs = {engine: {name for name in unedited if formula.name in unedited[name][engine]["ran"]} for engine in DRIVERS}
    names = [name for name in unedited if all(name in runs[engine] for engine in formula.engines)]
    if not names:
        counts = ", ".join(f"{engine} runs it in {len(runs[engine])}" for engine in formula.engines)
        return [f"no case needs {formula.name}: {counts}"]
    sabotage = {f"core/{formula.file}": functools.partial(formula.sabotaged, kind=kind)}
    found: list[str] = []
    for chosen in [names] if kind == "raise" else [names[:1], names[1:]]:
        broken = copy.run(chosen, *edits, sabotage)
        survived = {
            name: [d for d in formula.engines if not _shows(formula, kind, unedited[name][d], broken[name][d])]
            for name in chosen
        }
        if kind == "change" and not all(survived.values()):
            return []  # one case is enough: in others a change may cancel, as that of the weights in a weighted mean
        found += [f"{formula.name}, {kind}: survived by {d} in {name!r}" for name in chosen for d in survived[name]]
    return found


def _shows(formula: Formula, kind: str, unedited: Outcome, broken: Outcome) -> bool:
    if kind == "raise":
        return broken.get("error") == "sabotage"
    assert "error" not in broken, broken
    if formula.only_reports:
        return (
            abs(broken["loss"] - unedited["loss"]) > 1e-3 * abs(unedited["loss"]) and _distance(unedited, broken) == 0
        )
    return _distance(unedited, broken) > 1e-3


def _distance(one: Outcome, other: Outcome) -> float:
    """Return the distance of two vectors of weights, relative to the norm of the first."""
    pairs = list(zip(one["weights"], other["weights"], strict=True))
    return (sum((p - q) ** 2 for p, q in pairs) / sum(p**2 for p, _ in pairs)) ** 0.5


# --- the tests ---


SABOTAGES = [
    pytest.param(formula, kind, id=f"{formula.name}, {kind}")
    for formula in FORMULAS
    for kind in ("raise", "change")
    if kind == "raise" or formula.name not in WITHOUT_CHANGE
]


@pytest.mark.parametrize(("formula", "kind"), SABOTAGES)
def test_every_broken_formula_is_detected(formula: Formula, kind: str, copy: Copy, unedited: Table):
    """If a formula fails or changes, so does the step of every engine."""
    assert not undetected(copy, formula, kind, unedited)


# --- the compiled engine: each change is a library to build, so most of it is slow ---

EMITTED = [
    pytest.param(formula, kind, id=f"{formula.name}, {kind}")
    for formula in FORMULAS
    if formula.name not in {*IN_CPP, *REFUSED_IN_CPP}
    for kind in ("raise", "change")
    if kind == "raise" or formula.name not in WITHOUT_CHANGE
]


def detects(formula: Formula, kind: str, copy: Copy, case: str, before: Outcome) -> bool:
    """Return whether the compiled engine refuses a broken formula, or computes something else."""
    sabotage = {f"core/{formula.file}": functools.partial(formula.sabotaged, kind=kind)}
    broken = copy.run([case], sabotage, engines=COMPILED)[case]["compiled epoch"]
    if kind == "change":
        return _shows(formula, kind, before, broken)
    error = broken.get("error", "")  # what the engine does in Python fails as it is
    refusal = "the compiled engine does not have the (activation|loss) .*sabotage"
    return error == "sabotage" or re.match(refusal, error) is not None


@pytest.mark.parametrize("kind", ["raise", "change"])
@pytest.mark.parametrize("name", ["activations.Sigmoid.derivative", "losses.MSE.derivative"])
def test_the_compiled_engine_runs_the_formulas(name: str, kind: str, copy: Copy, compiler: None):
    """A doubled σ' changes the weights, whatever the cache holds; one that fails refuses the model by its name."""
    case = "hidden sigmoid"
    before = copy.run([case], engines=COMPILED)[case]["compiled epoch"]
    assert detects(_formula(name), kind, copy, case, before)


@pytest.fixture(scope="module")
def compiled(copy: Copy, compiler: None) -> Table:
    """Return the outcomes of every case with the compiled engine, without edits."""
    return copy.run(None, engines=COMPILED)


@pytest.mark.slow
def test_the_compiled_engine_runs_every_formula_but_those_listed(compiled: Table):
    ran = {name for by_engine in compiled.values() for name in by_engine["compiled epoch"]["ran"]}
    assert {formula.name for formula in FORMULAS} - ran == IN_CPP.keys() | REFUSED_IN_CPP


@pytest.mark.slow
def test_without_edits_the_compiled_engine_agrees(compiled: Table, unedited: Table):
    for name, by_engine in compiled.items():
        if "softmax" in name:
            assert "softmax: its derivative is a matrix" in by_engine["compiled epoch"]["error"]
        else:
            assert _distance(unedited[name]["autograd"], by_engine["compiled epoch"]) < 1e-12, name


@pytest.mark.slow
@pytest.mark.parametrize(("formula", "kind"), EMITTED)
def test_the_compiled_engine_detects_a_broken_formula(formula: Formula, kind: str, copy: Copy, compiled: Table):
    runs = {name: of["compiled epoch"] for name, of in compiled.items() if formula.name in of["compiled epoch"]["ran"]}
    found = (detects(formula, kind, copy, name, before) for name, before in runs.items())
    assert all(found) if kind == "raise" else any(found)  # in some cases a change may cancel
    assert runs


def test_every_exclusion_refers_to_existing_code():
    """Every excluded file and function exists."""
    files = {file.name: file for file in (PACKAGE / "core").glob("*.py")}
    assert set(FILES_WITHOUT) <= set(files)
    trees = [ast.parse(file.read_text(encoding="utf-8")) for name, file in files.items() if name not in FILES_WITHOUT]
    assert set(NAMES_WITHOUT) <= {node.name for tree in trees for _, node in _functions(tree)}
    assert {*BY_AUTOGRAD_ALONE, *WITHOUT_CHANGE, *IN_CPP, *REFUSED_IN_CPP} <= {formula.name for formula in FORMULAS}


# --- tests of the harness ---


def _followed_by(more: str) -> Callable[[str], str]:
    return lambda source: f"{source}\n\n{more}\n"


def _formula(name: str) -> Formula:
    return next(formula for formula in FORMULAS if formula.name == name)


def test_without_edits_all_engines_agree(unedited: Table):
    """Without edits no step fails, and all engines give the same weights."""
    for name, by_engine in unedited.items():
        assert not [engine for engine in DRIVERS if "error" in by_engine[engine]], by_engine
        assert all(_distance(by_engine["autograd"], by_engine[engine]) < 1e-12 for engine in DRIVERS), name


SIGMOID_BY_PYTORCH: Edits = {
    "core/activations.py": _followed_by(
        "Sigmoid.delta = staticmethod(lambda grad_a, a, out=None: torch.ops.aten.sigmoid_backward(grad_a, a))"
    )
}


@pytest.mark.parametrize("kind", ["raise", "change"])
def test_a_derivative_computed_by_pytorch_is_detected(kind: str, copy: Copy, unedited: Table):
    """If sigmoid's δ is computed by a kernel of PyTorch, no engine uses the formula; the harness reports that."""
    formula = _formula("activations.Sigmoid.derivative")
    found = undetected(copy, formula, kind, unedited, SIGMOID_BY_PYTORCH)
    assert [line for line in found if "'hidden sigmoid'" in line] == [
        f"{formula.name}, {kind}: survived by {engine} in 'hidden sigmoid'" for engine in DRIVERS
    ]
    replaced = copy.run(None, SIGMOID_BY_PYTORCH)
    assert undetected(copy, formula, kind, replaced, SIGMOID_BY_PYTORCH) == [
        "no case needs activations.Sigmoid.derivative: "
        "autograd runs it in 0, explicit step runs it in 0, explicit epoch runs it in 0"
    ]


PRODUCT_OF_ITS_OWN: Edits = {
    "core/recursion.py": _followed_by("def linear_grad_input(delta, weight, out=None): return delta @ weight")
}


@pytest.mark.parametrize("kind", ["raise", "change"])
def test_a_second_copy_of_a_formula_is_detected(kind: str, copy: Copy, unedited: Table):
    """With a second product δ W the explicit engine does not use linear.py's; the harness reports that."""
    formula = _formula("linear.linear_grad_input")
    found = undetected(copy, formula, kind, unedited, PRODUCT_OF_ITS_OWN)
    assert [line for line in found if "'hidden tanh'" in line] == [
        f"{formula.name}, {kind}: survived by {engine} in 'hidden tanh'"
        for engine in ("explicit step", "explicit epoch")
    ]
    copied = copy.run(None, PRODUCT_OF_ITS_OWN)
    assert undetected(copy, formula, kind, copied, PRODUCT_OF_ITS_OWN) == [
        f"no case needs linear.linear_grad_input: autograd runs it in {len(copied)}, "
        "explicit step runs it in 0, explicit epoch runs it in 0"
    ]


def test_a_new_formula_is_tested_automatically(tmp_path: Path):
    """A class or function added to a file of core/ is found, unless it only raises or returns its arguments."""
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
