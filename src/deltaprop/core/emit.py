"""The formulas of ``core/`` as source code of other languages: C++ for machine code, JavaScript for a page.

A formula is a plain function of tensors, element by element. ``torch.fx`` traces it once, with its constants closed
over, and each operation of the trace becomes an operator or a call of the other language. What stands here is how an
operation is spelt, and in ``KERNELS`` what PyTorch's fused kernels (relu, gelu, …) compute; no formula of ``core/`` is
repeated.

An operation that is not listed, a branch on data, and a formula that looks at other entries are refused by name.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.autograd import Function

from deltaprop.core.activations import Elementwise
from deltaprop.core.losses import ElementwiseLoss

F = torch.nn.functional


class EmitError(TypeError):
    """A formula that cannot be written as source code; the message names it and the reason."""


@dataclass(frozen=True)
class Language:
    """How a language spells numbers, variables and functions.

    Attributes:
        functions: The mathematical functions, by the names of PyTorch.
        number: Spells a finite number; ``nan`` and ``infinity`` spell the others.
        declare: Spells the declaration of a variable: of its name and value.
        function: Spells a function: of its name, parameters, the declarations in it and the value it returns.
    """

    functions: dict[str, str]
    number: Callable[[float], str]
    nan: str
    infinity: str
    declare: str
    function: Callable[[str, Sequence[str], Sequence[str], str], str]

    def literal(self, value: float) -> str:
        """Spell a number."""
        if math.isnan(value):
            return self.nan
        if math.isinf(value):
            return self.infinity if value > 0 else f"(-{self.infinity})"
        return self.number(value)


def _cpp_function(name: str, parameters: Sequence[str], lines: Sequence[str], value: str) -> str:
    body = "".join(f"    {line}\n" for line in [*lines, f"return {value};"])
    return f"template <typename T> static inline T {name}({', '.join(f'T {p}' for p in parameters)}) {{\n{body}}}"


def _js_function(name: str, parameters: Sequence[str], lines: Sequence[str], value: str) -> str:
    body = "".join(f"    {line}\n" for line in [*lines, f"return {value};"])
    return f"function {name}({', '.join(parameters)}) {{\n{body}}}"


MATH = (
    "exp", "expm1", "log", "log2", "log10", "log1p", "sqrt", "abs", "pow", "floor", "ceil", "trunc",
    "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh",
)  # fmt: skip
CPP = Language(
    functions={**{name: f"std::{name}" for name in MATH}, "erf": "std::erf"},
    number=lambda value: f"T({value!r})",
    nan="std::numeric_limits<T>::quiet_NaN()",
    infinity="std::numeric_limits<T>::infinity()",
    declare="const auto {} = {};",
    function=_cpp_function,
)
JAVASCRIPT = Language(
    functions={**{name: f"Math.{name}" for name in MATH}, "erf": "erf"},
    number=repr,
    nan="NaN",
    infinity="Infinity",
    declare="const {} = {};",
    function=_js_function,
)

# JavaScript has no erf. Between 0 and 6 a Taylor polynomial about the nearest of these points, whose coefficients
# follow from f' = −2x f for f = erf'; beyond, erf is 1 to the last digit.
JAVASCRIPT_ERF = """\
const ERF_AT = [{values}];
const ERF_SERIES = ERF_AT.map((value, k) => {{
    const c = k / 4, f = [2 / Math.sqrt(Math.PI) * Math.exp(-c * c)], series = [value];
    for (let n = 0; n < 14; n++) {{
        f.push(-2 * (c * f[n] + (n > 0 ? f[n - 1] : 0)) / (n + 1));
        series.push(f[n] / (n + 1));
    }}
    return series.reverse();
}});
function erf(x) {{
    if (!(Math.abs(x) < 6)) return x > 0 ? 1 : x < 0 ? -1 : NaN;
    const k = Math.round(4 * Math.abs(x)), h = Math.abs(x) - k / 4;
    const value = ERF_SERIES[k].reduce((sum, c) => sum * h + c, 0);
    return x < 0 || Object.is(x, -0) ? -value : value;
}}
""".format(values=", ".join(repr(math.erf(k / 4)) for k in range(25)))


# What PyTorch's kernels compute, in operations that are emitted. Source: ATen/native/cpu/Activation.cpp, Loss.cpp.


def _relu(z: Tensor) -> Tensor:
    return torch.where(z <= 0, 0.0, z)  # NaN stays NaN


def _leaky_relu(z: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    return torch.where(z > 0, z, z * negative_slope)


def _elu(z: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    return torch.where(z <= 0, torch.expm1(z) * alpha, z)


def _sigmoid(z: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-z))


def _silu(z: Tensor, inplace: bool = False) -> Tensor:
    return z / (1 + torch.exp(-z))


def _softplus(z: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    return torch.where(z * beta > threshold, z, torch.log1p(torch.exp(z * beta)) / beta)


def _gelu(z: Tensor, approximate: str = "none") -> Tensor:
    if approximate == "tanh":
        return 0.5 * z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z * z * z)))
    return z * 0.5 * (1 + torch.erf(z * math.sqrt(0.5)))


def _logsigmoid(z: Tensor) -> Tensor:
    return torch.where(z > 0, 0.0, z) - torch.log1p(torch.exp(-torch.abs(z)))


def _mse(a: Tensor, y: Tensor, reduction: str = "none", **_: Any) -> Tensor:
    return (a - y) * (a - y)


def _l1(a: Tensor, y: Tensor, reduction: str = "none", **_: Any) -> Tensor:
    return torch.abs(a - y)


def _huber(a: Tensor, y: Tensor, reduction: str = "none", delta: float = 1.0, **_: Any) -> Tensor:
    r = torch.abs(a - y)
    return torch.where(r <= delta, 0.5 * r * r, delta * (r - 0.5 * delta))


def _bce(z: Tensor, y: Tensor, pos_weight: Tensor | None = None, reduction: str = "none", **_: Any) -> Tensor:
    if pos_weight is None:
        return (1 - y) * z - _logsigmoid(z)
    return (1 - y) * z - (1 + (pos_weight - 1) * y) * _logsigmoid(z)


def _minimum(x: Tensor, y: Tensor) -> Tensor:
    return torch.where(x != x, x, torch.where(y < x, y, torch.where(y != y, y, x)))  # NaN stays NaN


def _maximum(x: Tensor, y: Tensor) -> Tensor:
    return torch.where(x != x, x, torch.where(y > x, y, torch.where(y != y, y, x)))


KERNELS: dict[Any, Callable[..., Tensor]] = {
    torch.reciprocal: lambda x: 1 / x,
    torch.rsqrt: lambda x: 1 / torch.sqrt(x),
    torch.minimum: _minimum,
    torch.maximum: _maximum,
    F.relu6: lambda z, inplace=False: torch.clamp(z, 0.0, 6.0),
    F.hardtanh: lambda z, min_val=-1.0, max_val=1.0, inplace=False: torch.clamp(z, min_val, max_val),
    F.softsign: lambda z: z / (1 + torch.abs(z)),
    F.mish: lambda z, inplace=False: z * torch.tanh(_softplus(z)),
    torch.relu: _relu,
    F.leaky_relu: _leaky_relu,
    F.elu: _elu,
    torch.sigmoid: _sigmoid,
    F.silu: _silu,
    F.softplus: _softplus,
    F.gelu: _gelu,
    F.logsigmoid: _logsigmoid,
    F.mse_loss: _mse,
    F.l1_loss: _l1,
    F.huber_loss: _huber,
    F.binary_cross_entropy_with_logits: _bce,
}
INFIX = {
    operator.add: "+", operator.sub: "-", operator.mul: "*", operator.truediv: "/",
    operator.gt: ">", operator.ge: ">=", operator.lt: "<", operator.le: "<=", operator.eq: "==", operator.ne: "!=",
    operator.and_: "&", operator.or_: "|", torch.logical_and: "&", torch.logical_or: "|",
    torch.add: "+", torch.sub: "-", torch.mul: "*", torch.div: "/",
}  # fmt: skip
COMPARISONS = {operator.gt, operator.ge, operator.lt, operator.le, operator.eq, operator.ne}
LOGICAL = {operator.and_, operator.or_, torch.logical_and, torch.logical_or}
NEGATIONS = ("invert", "logical_not", "bitwise_not")
# Words of C++ or JavaScript that a parameter in Python may have as its name.
RESERVED = {
    "T", "auto", "bool", "case", "catch", "char", "const", "default", "delete", "do", "double", "enum", "explicit",
    "export", "extern", "float", "function", "goto", "inline", "int", "let", "long", "namespace", "new", "operator",
    "private", "public", "register", "short", "signed", "sizeof", "static", "struct", "switch", "template", "this",
    "throw", "typeof", "union", "unsigned", "using", "var", "virtual", "void", "volatile",
}  # fmt: skip
SAME = {"clone", "to", "type_as", "contiguous", "detach"}
ZERO_OR_ONE = {torch.zeros_like: 0.0, torch.ones_like: 1.0, "new_zeros": 0.0, "new_ones": 1.0}


def emit_definition(definition: type[Function], name: str, language: Language, constants: Sequence[Any] = ()) -> str:
    """Return the functions ``NAME_forward``, or ``NAME_value`` of a loss, and ``NAME_derivative`` of a definition.

    Its formula, the first paragraph of the docstring, stands above them as a comment.

    Args:
        definition: A subclass of ``Elementwise`` or of ``ElementwiseLoss``.
        name: What the names of the functions begin with.
        language: ``CPP`` or ``JAVASCRIPT``.
        constants: What the formulas take after their variables; a tensor becomes one more parameter.

    Raises:
        EmitError: If it cannot be written, with the reason.
    """
    if issubclass(definition, Elementwise):
        value, variables = "forward", 1
    elif issubclass(definition, ElementwiseLoss):
        value, variables = "value", 2
    else:
        raise EmitError(
            f"{definition.__name__} is not computed entry by entry, so it is not written in other languages"
        )
    comment = (inspect.getdoc(definition) or definition.__name__).split("\n\n")[0]
    functions = [
        emit(getattr(definition, method), f"{name}_{method}", language, variables, constants)
        for method in (value, "derivative")
    ]
    return "\n".join([*[f"// {line}" for line in comment.splitlines()], *functions])


def emit(
    formula: Callable[..., Tensor], name: str, language: Language, variables: int = 1, constants: Sequence[Any] = ()
) -> str:
    """Return a function of another language that computes a formula of one entry.

    Args:
        formula: A plain function of tensors, such as ``Sigmoid.derivative``.
        name: The name of the function to write.
        language: ``CPP`` or ``JAVASCRIPT``.
        variables: How many of its first arguments are variables.
        constants: Its further arguments; a tensor becomes one more parameter, the number for this entry.

    Raises:
        EmitError: If it cannot be written, with the reason.
    """
    constants = [c.item() if hasattr(c, "item") and not isinstance(c, Tensor) else c for c in constants]  # NumPy's
    parameters = list(inspect.signature(formula).parameters)[: variables + len(constants)]
    varying = [*[True] * variables, *[isinstance(c, Tensor) for c in constants]]
    closed_over = dict(zip(parameters[variables:], constants, strict=True))
    names = [p for p, varies in zip(parameters, varying, strict=True) if varies]
    where = getattr(formula, "__qualname__", name)
    writer = _Writer(language, where)
    spelt = [f"{p}_" if p in RESERVED or (p[0] == "t" and p[1:].isdigit()) else p for p in names]
    value = writer.inline(formula, names, spelt, {p: c for p, c in closed_over.items() if p not in names})
    return language.function(name, spelt, writer.lines, value)


@dataclass
class _Writer:
    language: Language
    where: str
    lines: list[str] = field(default_factory=list)
    booleans: set[fx.Node] = field(default_factory=set)  # comparisons, and what joins them

    def inline(
        self, formula: Callable[..., Tensor], names: Sequence[str], operands: Sequence[str], constants: dict[str, Any]
    ) -> str:
        """Return the expression of a formula; declarations that it needs are added to the lines.

        Args:
            formula: A plain function of tensors.
            names: The parameters that are variables.
            operands: How each of them is spelt.
            constants: The other arguments, by name.
        """
        graph, values = self._trace(formula, names, constants), {}
        placeholders = iter(operands)
        for node in graph.nodes:
            if node.op == "placeholder":
                values[node] = next(placeholders)
            elif node.op == "output":
                return self._spell(node.args[0], values)
            else:
                text = self._operation(node, values)
                values[node] = self._name(text) if len(node.users) > 1 else text
        raise EmitError(f"{self.where} returns nothing")

    def _trace(self, formula: Callable[..., Tensor], names: Sequence[str], constants: dict[str, Any]) -> fx.Graph:
        def call(*operands: Any) -> Any:
            return formula(**dict(zip(names, operands, strict=True)), **constants)

        of_count = (  # fx counts the parameters of what it traces
            lambda: call(), lambda x: call(x), lambda x, y: call(x, y), lambda x, y, w: call(x, y, w),
        )  # fmt: skip
        try:
            return fx.Tracer().trace(of_count[len(names)])
        except Exception as error:  # a branch on data, or what the formula itself raises
            raise EmitError(f"{self.where} cannot be traced: {type(error).__name__}: {error}") from error

    def _operation(self, node: fx.Node, values: dict[fx.Node, str]) -> str:
        target, args, kwargs = node.target, node.args, dict(node.kwargs)
        name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
        if target in KERNELS:
            return self._kernel(KERNELS[target], args, kwargs, values)
        if node.op == "call_method" and getattr(torch, name, None) in KERNELS:
            return self._kernel(KERNELS[getattr(torch, name)], args, kwargs, values)
        if target is getattr and args[1] in ("dtype", "device"):
            return str(args[1])  # an argument of ``to``, which is not spelt
        spelt = [self._spell(a, values) for a in args]
        logical = target in LOGICAL
        if target in INFIX and not logical and all(a in self.booleans for a in args) and target not in COMPARISONS:
            raise EmitError(f"{self.where} adds or multiplies two comparisons, which is a comparison in PyTorch")
        if logical and not all(a in self.booleans for a in args):
            raise EmitError(f"{self.where} joins numbers as if they were comparisons")
        if logical or target in COMPARISONS or name in NEGATIONS:
            self.booleans.add(node)
        if target in INFIX and len(args) == 2 and not kwargs:
            return f"({spelt[0]} {INFIX[target]} {spelt[1]})"
        if name in NEGATIONS and len(args) == 1 and args[0] in self.booleans:
            return f"(!{spelt[0]})"
        if name == "neg" and len(args) == 1:
            return f"(-{spelt[0]})"
        if target is torch.where and len(args) == 3:
            return f"({spelt[0]} ? {spelt[1]} : {spelt[2]})"
        if target in ZERO_OR_ONE:
            return self.language.literal(ZERO_OR_ONE[target])
        if name in SAME:
            if any(isinstance(a, torch.dtype) for a in (*args, *kwargs.values())):
                raise EmitError(f"{self.where} computes in another dtype")
            if args and args[0] in self.booleans:
                self.booleans.add(node)
            return spelt[0]
        if name in self.language.functions and len(args) == 1 and not kwargs:
            return f"{self.language.functions[name]}({spelt[0]})"
        if name == "sign" and len(args) == 1:
            x, zero, one = self._name(spelt[0]), self.language.literal(0.0), self.language.literal(1.0)
            return f"({x} > {zero} ? {one} : {x} < {zero} ? -{one} : {zero})"
        if name == "square" and len(args) == 1:
            return self._power(spelt[0], 2)
        if name == "pow" and len(args) == 2:
            return self._power(spelt[0], args[1], spelt[1])
        if name in ("clamp", "clip"):
            return self._clamp(spelt[0], *_bounds(args[1:], kwargs))
        raise EmitError(f"{self.where} calls {name}, which is not written in other languages")

    def _kernel(
        self, kernel: Callable[..., Tensor], args: Sequence[Any], kwargs: dict[str, Any], values: dict[fx.Node, str]
    ) -> str:
        bound = inspect.signature(kernel).bind(*args, **kwargs)
        given = {**bound.arguments, **bound.arguments.pop("_", {})}
        operands = {name: value for name, value in given.items() if isinstance(value, fx.Node)}
        constants = {name: value for name, value in given.items() if name not in operands}
        if constants.get("reduction", "none") != "none" or constants.get("weight") is not None:
            raise EmitError(f"{self.where} sums over entries")
        spelt = [self._name(self._spell(value, values)) for value in operands.values()]
        known = inspect.signature(kernel).parameters
        return self.inline(kernel, list(operands), spelt, {k: v for k, v in constants.items() if k in known})

    def _power(self, x: str, exponent: Any, spelt: str = "") -> str:
        if exponent not in (2, 3):
            return f"{self.language.functions['pow']}({x}, {spelt})"
        x = self._name(x)
        return f"({x} * {x})" if exponent == 2 else f"(({x} * {x}) * {x})"

    def _clamp(self, x: str, low: float | None, high: float | None) -> str:
        """NaN stays NaN: no comparison with it is true."""
        x = self._name(x)
        text = x if high is None else f"({x} > {self.language.literal(high)} ? {self.language.literal(high)} : {x})"
        if low is None:
            return text
        return f"({x} < {self.language.literal(low)} ? {self.language.literal(low)} : {text})"

    def _spell(self, value: Any, values: dict[fx.Node, str]) -> str:
        if isinstance(value, fx.Node):
            return values[value]
        if isinstance(value, int | float) and not isinstance(value, bool):
            return self.language.literal(float(value))
        if value is None or isinstance(value, torch.dtype | torch.device | str):
            return repr(value)  # an argument that is not spelt
        raise EmitError(f"{self.where} has {value!r} in a place for numbers")

    def _name(self, text: str) -> str:
        """Return a variable for an expression, so that it is computed once."""
        if text.isidentifier():
            return text
        name = f"t{len(self.lines)}"
        self.lines.append(self.language.declare.format(name, text))
        return name


def _bounds(args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[float | None, float | None]:
    low, high = [*args, None, None][:2]
    bounds = kwargs.get("min", low), kwargs.get("max", high)
    return tuple(None if bound is None else float(bound) for bound in bounds)  # type: ignore[return-value]  # two
