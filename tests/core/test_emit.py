"""The formulas written in C++ and in JavaScript compute what PyTorch computes from the same definitions."""

from __future__ import annotations

import ctypes
import json
import math
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deltaprop.compiled.build import FLAGS
from deltaprop.core import ACTIVATIONS, LOSSES, Elementwise, ElementwiseLoss
from deltaprop.core.emit import CPP, JAVASCRIPT, JAVASCRIPT_ERF, EmitError, emit, emit_definition

COMPILER = shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
NODE = shutil.which("node")
needs_compiler = pytest.mark.skipif(not COMPILER, reason="no C++ compiler")
needs_node = pytest.mark.skipif(not NODE, reason="no node")


@dataclass(frozen=True)
class Case:
    """A formula to write: a method of a definition, with constants.

    Attributes:
        name: The name of the function.
        definition: Its class.
        method: ``forward`` or ``value``, or ``derivative``.
        constants: What it takes after its variables.
    """

    name: str
    definition: Any
    method: str
    constants: tuple[Any, ...] = ()

    @property
    def variables(self) -> int:
        """z; or a and y."""
        return 1 if issubclass(self.definition, Elementwise) else 2

    @property
    def is_sum(self) -> bool:
        """Whether terms may cancel."""
        return self.variables == 2 or self.name.startswith(("gelu", "silu", "elu", "tanh"))

    def source(self, language: Any) -> str:
        """The formula in another language."""
        return emit(getattr(self.definition, self.method), self.name, language, self.variables, self.constants)

    def expected(self, *tensors: Tensor) -> Tensor:
        """What PyTorch makes of it."""
        inputs, dtype = tensors[: self.variables], tensors[0].dtype
        if self.name == "gelu_0_forward":
            inputs = tuple(t.double() for t in inputs)  # oneDNN's, for float32, makes NaN of infinity
        result: Tensor = getattr(self.definition, self.method)(*inputs, *self.constants)
        return result.to(dtype)


OTHER_CONSTANTS = {
    "leaky_relu": [(-0.3,)],
    "elu": [(0.7,)],
    "gelu": [("tanh",)],
    "softplus": [(2.0, 5.0)],
    "huber_loss": [(0.3,)],
}


def cases() -> list[Case]:
    found = []
    for table, kind, value in ((ACTIVATIONS, Elementwise, "forward"), (LOSSES, ElementwiseLoss, "value")):
        for name, definition in table.items():
            if issubclass(definition, kind):
                for number, constants in enumerate([(), *OTHER_CONSTANTS.get(name, [])]):
                    for method in (value, "derivative"):
                        found.append(Case(f"{name}_{number}_{method}", definition, method, constants))
    return found


# Operations that no formula of the library uses, as formulas of its users may.
OPERATIONS: dict[str, Any] = {
    "band": lambda z: torch.where((z > -1) & ~(z >= 2), z, 0.0),
    "outside": lambda z: ((z < -1) | torch.logical_not(z <= 2)).to(z.dtype) * z,
    "least": lambda z: torch.minimum(z, 1 - z),
    "greatest": lambda z: torch.maximum(z, z.reciprocal()),
    "log_cosh": lambda z: torch.log(torch.cosh(z.clamp(-50, 50))),
    "arctan": lambda z: torch.atan(z) + torch.sinh(z.clamp(max=3)),
    "relu6": torch.nn.functional.relu6,
    "hardtanh": lambda z: torch.nn.functional.hardtanh(z, -0.5, 2.0),
    "softsign": torch.nn.functional.softsign,
    "mish": torch.nn.functional.mish,
    "root": lambda z: torch.rsqrt(1 + z.abs()) + torch.floor(z) - torch.ceil(z),
}
CASES = [
    *cases(),
    *[
        Case(f"elu_{name}", type(name, (Elementwise,), {"forward": staticmethod(formula)}), "forward")
        for name, formula in OPERATIONS.items()
    ],
]


def points(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return pairs of entries: extremes of every kind with each other, and 10⁴ random ones of all sizes."""
    info = torch.finfo(dtype)
    extremes = [0.0, -0.0, math.inf, -math.inf, math.nan, info.tiny, -info.tiny, info.tiny / 8, -info.tiny / 8]
    extremes += [1.0, -1.0, 20.0, -20.0, 100.0, -100.0, 1e4, -1e4, info.max, -info.max, info.eps]
    grid = torch.cartesian_prod(*[torch.tensor(extremes, dtype=dtype)] * 2)
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(10**4, 2, generator=generator, dtype=torch.float64)
    random *= 10 ** torch.empty(10**4, 1, dtype=torch.float64).uniform_(-3, 2, generator=generator)
    both = torch.cat([grid, random.to(dtype)])
    return both[:, 0].contiguous(), both[:, 1].contiguous()


def assert_same(got: Tensor, expected: Tensor, case: Case, inputs: Sequence[Tensor]) -> None:
    """The same to 8 units in the last digit: of the result or, where it is a sum, of its largest term."""
    eps, tiny = torch.finfo(expected.dtype).eps, torch.finfo(expected.dtype).tiny
    size = expected.abs().clamp(min=tiny)
    if case.is_sum:
        terms = torch.stack([*[t.abs() for t in inputs], torch.stack(list(inputs)).prod(0).abs()])
        size = torch.maximum(size, terms.nan_to_num(0, 0, 0).amax(0).clamp(min=1))
    same = ((got - expected).abs() <= 8 * eps * size) | (got == expected) | (got.isnan() & expected.isnan())
    wrong = torch.nonzero(~same).flatten()
    shown = [([float(t[k]) for t in inputs], float(got[k]), float(expected[k])) for k in wrong[:4].tolist()]
    assert not len(wrong), f"{case.name}: {len(wrong)} of {len(got)} differ: (inputs, got, expected) {shown}"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """All formulas in C++, each as a loop over entries in both precisions."""
    folder = tmp_path_factory.mktemp("emitted")
    template = resources.files("deltaprop.compiled").joinpath("epoch.cpp").read_text(encoding="utf-8")
    lines = ["using real = float;", template.split("struct Activation")[0]]  # with the functions for whole vectors
    for case in CASES:
        lines.append(case.source(CPP))
        for suffix, dtype in (("f32", "float"), ("f64", "double")):
            call = ", ".join(f"x{k}[i]" for k in range(case.variables))
            lines.append(
                f'extern "C" void {case.name}_{suffix}(const {dtype}* x0, const {dtype}* x1, {dtype}* out, long n) '
                f"{{ for (long i = 0; i < n; i++) out[i] = {case.name}<{dtype}>({call}); }}"
            )
    (folder / "all.cpp").write_text("\n".join(lines))
    assert COMPILER
    command = [COMPILER, *FLAGS, "-Wall", "-Werror", "-o", folder / "all.so", folder / "all.cpp"]
    subprocess.run(command, check=True, timeout=120)
    return ctypes.CDLL(str(folder / "all.so"))


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_cpp_computes_what_pytorch_computes(case: Case, dtype: torch.dtype, library: ctypes.CDLL):
    a, y = points(dtype)
    out = torch.empty_like(a)
    function = getattr(library, f"{case.name}_{'f32' if dtype == torch.float32 else 'f64'}")
    function(*[ctypes.c_void_p(t.data_ptr()) for t in (a, y, out)], ctypes.c_long(len(a)))
    assert_same(out, case.expected(a, y), case, [a, y][: case.variables])


def run_node(script: str, folder: Path, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """Run a script that fills ``results`` from ``a`` and ``y``, and return them."""
    for name, t in zip("ay", inputs, strict=True):
        (folder / f"{name}.bin").write_bytes(t.numpy().tobytes())
    read = "const f = require('fs'), floats = n => new Float64Array(new Uint8Array(f.readFileSync(n)).buffer);"
    head = f"{read}\nconst a = floats('a.bin'), y = floats('y.bin'), results = {{}};\n"
    tail = "\nfor (const n in results) f.writeFileSync(n + '.out', Buffer.from(results[n].buffer));"
    (folder / "script.js").write_text(head + script + tail)
    assert NODE
    subprocess.run([NODE, "script.js"], cwd=folder, check=True, timeout=120)
    return {
        path.stem: torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.float64) for path in folder.glob("*.out")
    }


@pytest.fixture(scope="module")
def in_node(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """What all formulas in JavaScript make of the points."""
    lines = [JAVASCRIPT_ERF]
    for case in CASES:
        lines.append(case.source(JAVASCRIPT))
        call = ", ".join(["z", "y[i]"][: case.variables])
        lines.append(f"results[{json.dumps(case.name)}] = a.map((z, i) => {case.name}({call}));")
    return run_node("\n".join(lines), tmp_path_factory.mktemp("node"), points(torch.float64))


@needs_node
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_javascript_computes_what_pytorch_computes(case: Case, in_node: dict[str, Tensor]):
    a, y = points(torch.float64)
    assert_same(in_node[case.name], case.expected(a, y), case, [a, y][: case.variables])


@needs_node
def test_erf_of_javascript_is_right_to_the_last_digit(tmp_path: Path):
    x = torch.cat([torch.linspace(-7, 7, 20001, dtype=torch.float64), points(torch.float64)[0]])
    got = run_node(f"{JAVASCRIPT_ERF}\nresults.erf = a.map(erf);", tmp_path, [x, x])["erf"]
    expected = torch.erf(x)
    assert torch.equal(got.isnan(), expected.isnan())
    assert float((got - expected).nan_to_num().abs().max()) <= 2e-16


def test_a_definition_is_written_with_its_formula_as_comment():
    source = emit_definition(ACTIVATIONS["sigmoid"], "sigmoid", CPP)
    assert source.startswith("// a = σ(z) = 1 / (1 + e^−z);  σ'(z) = a (1 − a)")
    assert "static inline T sigmoid_forward(T z) {\n    return (T(1.0) / (T(1.0) + std::exp((-z))));\n}" in source
    assert "static inline T sigmoid_derivative(T a) {\n    return (a * (T(1.0) - a));\n}" in source


def test_a_tensor_among_the_constants_becomes_a_parameter():
    source = emit_definition(LOSSES["binary_cross_entropy_with_logits"], "bce", JAVASCRIPT, (torch.ones(3),))
    assert "function bce_value(z, y, pos_weight)" in source
    assert "function bce_derivative(z, y, pos_weight)" in source


class Cube(Elementwise):
    """a = z³;  σ'(z) = 3 z².

    A row that a user adds.
    """

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return z * z * z

    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        return 3 * z.square()


class Branches(Cube):
    """Looks at its data."""

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return z if z > 0 else -z


class CallsTheUnknown(Cube):
    """Calls what is not written in other languages."""

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.special.bessel_j0(z)


class Raises(Cube):
    """Raises."""

    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        raise RuntimeError("not today")


@pytest.mark.parametrize(
    ("formula", "written"),
    [
        (lambda z: z**2, "(z * z)"),
        (lambda z: z**3 + 1, "(((z * z) * z) + 1.0)"),
        (lambda z: z.abs().pow(1.5), "Math.pow(Math.abs(z), 1.5)"),
        (lambda z: -z.tanh(), "(-Math.tanh(z))"),
        (lambda z: torch.where(z >= 0, z, torch.zeros_like(z)), "((z >= 0.0) ? z : 0.0)"),
        (lambda z: z * math.inf, "(z * Infinity)"),
        (lambda z: z.clamp(0, 6), "(z < 0.0 ? 0.0 : (z > 6.0 ? 6.0 : z))"),
    ],
)
def test_operations_are_written_as_a_reader_would(formula: Any, written: str):
    assert emit(formula, "f", JAVASCRIPT) == f"function f(z) {{\n    return {written};\n}}"


def test_a_new_definition_is_written_with_no_more_work():
    assert emit_definition(Cube, "cube", JAVASCRIPT) == (
        "// a = z³;  σ'(z) = 3 z².\n"
        "function cube_forward(z) {\n    return ((z * z) * z);\n}\n"
        "function cube_derivative(z) {\n    return (3.0 * (z * z));\n}"
    )


@pytest.mark.parametrize(
    ("definition", "message"),
    [
        (Branches, "Branches.forward cannot be traced: TraceError: symbolically traced variables cannot be used"),
        (CallsTheUnknown, "CallsTheUnknown.forward calls special_bessel_j0, which is not written in other languages"),
        (Raises, "Raises.derivative cannot be traced: RuntimeError: not today"),
        (ACTIVATIONS["softmax"], "Softmax is not computed entry by entry, so it is not written in other languages"),
        (LOSSES["cross_entropy"], "CrossEntropy is not computed entry by entry"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_cannot_be_written_is_refused_by_name(definition: Any, message: str):
    with pytest.raises(EmitError, match=message.replace("(", r"\(")):
        emit_definition(definition, "f", CPP)
