"""The table of cases that every test in this folder runs over.

A case is one call: a function of ``deltaprop.functional``, its reference, inputs and options. A new op is a few lines
in :data:`CASES`; it is then compared with PyTorch, differentiated numerically, vmapped, compiled and so on.

Inputs are at least 0.1 away from the kinks of relu and similar functions, where no derivative exists. N is 4 or 5, so
that a missing or repeated mean is detected.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

import deltaprop.functional as F
from deltaprop import core

Inputs = dict[str, Tensor]

# Functions that PyTorch does not have. sign has the derivative 0 everywhere, and so has step.
FORMULAS: dict[str, Callable[..., Tensor]] = {
    "step": lambda input: torch.sign(input).clamp(min=0),
    "identity": lambda input: 1 * input,
    "binary_cross_entropy_per_sample": lambda input, target: (
        torch.nn.functional.binary_cross_entropy_with_logits(input, target, reduction="sum") / input.shape[0]
    ),
    "quadratic_loss": lambda input, target: ((input - target) ** 2).sum() / (2 * max(input.shape[:-1].numel(), 1)),
}


@dataclass(frozen=True)
class Case:
    """One call of one op.

    Attributes:
        name: Its name in the test report.
        op: The function, by its name in ``deltaprop.functional``.
        make: Inputs by argument name, float64 or int64, from a generator.
        differentiable: The inputs that may require grad.
        batched: The inputs whose first axis counts samples; empty if the case has no such axis.
        options: Further arguments.
        warns: Whether PyTorch, and so deltaprop, warns about broadcasting.
        names: The inputs' names, in the order of :meth:`inputs`.
    """

    name: str
    op: str
    make: Callable[[Generator], Inputs]
    differentiable: tuple[str, ...]
    batched: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    warns: bool = False
    names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.make(Generator())))

    @property
    def at(self) -> tuple[int, ...]:
        """The positions of the differentiable inputs."""
        return tuple(i for i, name in enumerate(self.names) if name in self.differentiable)

    def inputs(
        self,
        dtype: torch.dtype = torch.float64,
        device: str = "cpu",
        *,
        draw: int = 0,
        requires_grad: Iterable[str] | None = None,
        layout: Callable[[Tensor], Tensor] = lambda t: t,
    ) -> list[Tensor]:
        """Return new leaves; labels stay integers.

        Args:
            dtype: The dtype of all inputs but labels.
            device: The device of all inputs.
            draw: The number of the random draw.
            requires_grad: The inputs that require grad; None for all differentiable ones.
            layout: Applied to each input before it becomes a leaf.
        """
        generator = Generator().manual_seed(zlib.crc32(self.name.encode()) + draw)
        requires_grad = self.differentiable if requires_grad is None else tuple(requires_grad)
        leaves = []
        for name, value in self.make(generator).items():
            leaf = layout(value.to(device, dtype if value.is_floating_point() else None)).detach()
            leaves.append(leaf.requires_grad_(name in requires_grad))
        return leaves

    def ours(self, *inputs: Tensor) -> Tensor:
        """Call deltaprop's function."""
        function = getattr(F, self.op, None) or (lambda input: core.primitive(core.ACTIVATIONS[self.op])(input))
        return _call(function, self.names, inputs, self.options)

    def theirs(self, *inputs: Tensor) -> Tensor:
        """Call the reference."""
        reference = FORMULAS.get(self.op) or getattr(torch.nn.functional, self.op, None)
        if reference is None:  # a new row that PyTorch does not have: its forward, differentiated by PyTorch
            reference = lambda input: core.ACTIVATIONS[self.op].forward(input)  # noqa: E731
        return _call(reference, self.names, inputs, self.options)


def _call(function: Callable[..., Tensor], names: Sequence[str], inputs: Sequence[Tensor], options: dict) -> Tensor:
    return function(**dict(zip(names, inputs, strict=True)), **options)


def off_kinks(generator: Generator, shape: Sequence[int], kinks: Sequence[float] = (0.0,)) -> Tensor:
    """Return normal numbers, none within 0.1 of a kink (they are moved by 0.25)."""
    z = torch.randn(*shape, generator=generator, dtype=torch.float64)
    for kink in kinks:
        z = torch.where((z - kink).abs() < 0.1, z + 0.25, z)
    return z


def positive(generator: Generator, shape: Sequence[int]) -> Tensor:
    """Return weights: numbers in [0.5, 1.5)."""
    return torch.rand(*shape, generator=generator, dtype=torch.float64) + 0.5


def probabilities(generator: Generator, shape: Sequence[int], axis: int) -> Tensor:
    """Return positive numbers that sum to 1 along an axis."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64).softmax(axis)


# --- activations ---


def _activation(name: str, op: str, kinks: Sequence[float] = (), shape: Sequence[int] = (4, 3), **options: Any) -> Case:
    return Case(name, op, lambda g: {"input": off_kinks(g, shape, kinks)}, ("input",), ("input",), options)


ACTIVATIONS = [
    _activation("step", "step", kinks=[0]),
    _activation("identity", "identity"),
    _activation("relu", "relu", kinks=[0]),
    _activation("leaky_relu", "leaky_relu", kinks=[0]),
    _activation("leaky_relu, slope 0.2", "leaky_relu", kinks=[0], negative_slope=0.2),
    _activation("leaky_relu, slope -0.3", "leaky_relu", kinks=[0], negative_slope=-0.3),
    _activation("elu", "elu", kinks=[0]),
    _activation("elu, alpha 0.7", "elu", kinks=[0], alpha=0.7),
    _activation("gelu", "gelu"),
    _activation("gelu, tanh", "gelu", approximate="tanh"),
    _activation("silu", "silu"),
    _activation("softplus", "softplus"),
    # From beta z = 1 on, z = 0.5, softplus is z; the draws are on both sides.
    _activation("softplus, beta 2, threshold 1", "softplus", kinks=[0.5], beta=2, threshold=1),
    _activation("sigmoid", "sigmoid"),
    _activation("tanh", "tanh"),
    _activation("softmax, dim -1", "softmax", dim=-1),
    _activation("softmax, dim 0", "softmax", dim=0),
    _activation("softmax, dim 1 of 3", "softmax", shape=(4, 3, 2), dim=1),
    _activation("log_softmax, dim -1", "log_softmax", dim=-1),
    _activation("log_softmax, dim 0", "log_softmax", dim=0),
    _activation("log_softmax, dim 1 of 3", "log_softmax", shape=(4, 3, 2), dim=1),
]

# A new row of the table is tested automatically.
ACTIVATIONS += [
    _activation(f"{name}, by its row alone", name, kinks=[0])
    for name in core.ACTIVATIONS
    if name not in {case.op for case in ACTIVATIONS}
]

# --- linear ---


def _linear(name: str, input: Sequence[int], weight: Sequence[int], bias: Sequence[int] | None) -> Case:
    def make(g: Generator) -> Inputs:
        shapes = {"input": input, "weight": weight} | ({} if bias is None else {"bias": bias})
        return {
            name: torch.randn(torch.Size(shape), generator=g, dtype=torch.float64) for name, shape in shapes.items()
        }

    names = ("input", "weight") if bias is None else ("input", "weight", "bias")
    batched = len(input) > 1 and (bias is None or len(bias) < 2)
    return Case(f"linear, {name}", "linear", make, names, ("input",) if batched else ())


LINEAR = [
    _linear("2-D", (4, 3), (2, 3), (2,)),
    _linear("as many samples as outputs", (3, 2), (3, 2), (3,)),  # a sum along the wrong axis has the right shape
    _linear("square", (4, 3), (3, 3), (3,)),  # W in place of its transpose has the right shape
    _linear("no bias", (4, 3), (2, 3), None),
    _linear("3-D", (2, 4, 3), (2, 3), (2,)),
    _linear("3-D, no bias", (2, 4, 3), (2, 3), None),
    _linear("1-D", (3,), (2, 3), (2,)),
    _linear("1-D, no bias", (3,), (2, 3), None),
    _linear("one output", (4, 3), (1, 3), (1,)),
    _linear("bias [1] for two outputs", (4, 3), (2, 3), (1,)),
    _linear("bias []", (4, 3), (2, 3), ()),
    _linear("weight [n_in]", (4, 3), (3,), None),
    _linear("weight [n_in], 3-D", (2, 4, 3), (3,), None),
    _linear("weight [n_in], 1-D", (3,), (3,), None),
    _linear("bias [N, O]", (4, 3), (2, 3), (4, 2)),
]

# --- losses of a residual ---


def _residual(
    op: str,
    name: str,
    kinks: Sequence[float] = (),
    *,
    input: Sequence[int] = (4, 3),
    target: Sequence[int] | None = None,
    weight: bool = False,
    **options: Any,
) -> Case:
    """Return a case whose residuals are away from the kinks; a is y plus the residual, so y may be broadcast."""

    def make(g: Generator) -> Inputs:
        y = torch.randn(*(input if target is None else target), generator=g, dtype=torch.float64)
        wide = torch.broadcast_shapes(y.shape, torch.Size(input))
        a = (y + off_kinks(g, wide, kinks)) if wide == torch.Size(input) else off_kinks(g, input)
        return {"input": a, "target": y} | ({"weight": positive(g, input)} if weight else {})

    names = ("input", "target", "weight") if weight else ("input", "target")
    batched = () if target is not None else names
    return Case(f"{op}, {name}", op, make, names, batched, options, warns=target is not None)


REDUCTIONS = ("mean", "sum", "none")

RESIDUAL = [
    case
    for op, kinks, constants in [
        ("mse_loss", (), {}),
        ("l1_loss", (0.0,), {}),
        ("huber_loss", (-0.7, 0.7), {"delta": 0.7}),  # residuals on both sides of the threshold
    ]
    for case in [
        *[_residual(op, r, kinks, reduction=r, **constants) for r in REDUCTIONS],
        *[_residual(op, f"{r}, weight", kinks, weight=True, reduction=r, **constants) for r in REDUCTIONS],
        _residual(op, "broadcast target", kinks, target=(3,), **constants),
        _residual(op, "broadcast target, weight", kinks, target=(4, 1), weight=True, **constants),
    ]
] + [
    _residual("mse_loss", "broadcast input", input=(4, 1), target=(4, 3)),
    _residual("mse_loss", "broadcast none", target=(3,), reduction="none"),
    _residual("huber_loss", "delta 1", (-1.0, 1.0)),
    _residual("quadratic_loss", "2-D"),
    _residual("quadratic_loss", "1-D", input=(3,)),
    _residual("quadratic_loss", "3-D", input=(2, 4, 3)),
    _residual("quadratic_loss", "broadcast target", target=(3,)),
]

# --- cross-entropy ---

# Shapes of z; the classes are axis 1, or axis 0 in [C].
_LOGITS = {"[N, C]": (5, 3), "[C]": (3,), "[N, C, d]": (4, 3, 2)}


def _class_axis(shape: Sequence[int]) -> int:
    return 0 if len(shape) == 1 else 1


def _labels(name: str, shape: str = "[N, C]", *, weight: bool = False, ignored: bool = False, **options: Any) -> Case:
    """Return a case of cross-entropy of labels; with ``ignored``, one sample (or position) has the ignored label."""
    z_shape = _LOGITS[shape]
    classes = z_shape[_class_axis(z_shape)]
    y_shape = [n for axis, n in enumerate(z_shape) if axis != _class_axis(z_shape)]

    def make(g: Generator) -> Inputs:
        z = 2 * torch.randn(*z_shape, generator=g, dtype=torch.float64)
        y = torch.randint(0, classes, y_shape, generator=g)
        if ignored:
            y.view(-1)[1] = options.get("ignore_index", -100)
            y.view(-1)[0] = 0  # not all labels are ignored
        return {"input": z, "target": y} | ({"weight": positive(g, [classes])} if weight else {})

    batched = () if shape == "[C]" else ("input", "target")
    return Case(f"cross_entropy, {name}", "cross_entropy", make, ("input",), batched, options)


def _soft(name: str, shape: str = "[N, C]", *, weight: bool = False, **options: Any) -> Case:
    """Return a case of cross-entropy of class probabilities."""
    z_shape = _LOGITS[shape]
    axis = _class_axis(z_shape)

    def make(g: Generator) -> Inputs:
        z = 2 * torch.randn(*z_shape, generator=g, dtype=torch.float64)
        y = probabilities(g, z_shape, axis)
        return {"input": z, "target": y} | ({"weight": positive(g, [z_shape[axis]])} if weight else {})

    names = ("input", "target", "weight") if weight else ("input", "target")
    batched = () if shape == "[C]" else ("input", "target")
    return Case(f"cross_entropy, {name}", "cross_entropy", make, names, batched, options)


_EVERYTHING: dict[str, Any] = {"weight": True, "ignored": True, "ignore_index": 1, "label_smoothing": 0.2}

LABELS = [
    case
    for r in REDUCTIONS
    for case in [
        _labels(f"labels, {r}", reduction=r),
        _labels(f"labels, {r}, weight", weight=True, reduction=r),
        _labels(f"labels, {r}, ignored", ignored=True, reduction=r),
        _labels(f"labels, {r}, smoothing", label_smoothing=0.1, reduction=r),
        _labels(f"labels, {r}, smoothing and ignored", ignored=True, label_smoothing=0.1, reduction=r),
        _labels(f"labels, {r}, everything", reduction=r, **_EVERYTHING),
        _labels(f"labels [], {r}, weight and smoothing", "[C]", weight=True, label_smoothing=0.1, reduction=r),
        _labels(f"labels [N, d], {r}, everything", "[N, C, d]", reduction=r, **_EVERYTHING),
    ]
] + [
    _labels("labels [], mean", "[C]"),
    _labels("labels [N, d], mean", "[N, C, d]"),
]

SOFT = [
    case
    for r in REDUCTIONS
    for case in [
        _soft(f"probabilities, {r}", reduction=r),
        _soft(f"probabilities, {r}, weight", weight=True, reduction=r),
        _soft(f"probabilities, {r}, smoothing", label_smoothing=0.1, reduction=r),
        _soft(f"probabilities, {r}, weight and smoothing", weight=True, label_smoothing=0.1, reduction=r),
    ]
] + [
    _soft("probabilities [C], mean", "[C]"),
    _soft("probabilities [C], weight and smoothing", "[C]", weight=True, label_smoothing=0.1),
    _soft("probabilities [N, C, d], mean", "[N, C, d]"),
    _soft("probabilities [N, C, d], weight and smoothing", "[N, C, d]", weight=True, label_smoothing=0.1),
    _soft("probabilities [N, C, d], none", "[N, C, d]", reduction="none"),
]


def _binary(
    name: str,
    op: str = "binary_cross_entropy_with_logits",
    *,
    weight: Sequence[int] = (),
    pos_weight: Sequence[int] = (),
    **options: Any,
) -> Case:
    """Return a case of binary cross-entropy; ``weight`` and ``pos_weight`` are shapes that broadcast to [4, 3]."""

    def make(g: Generator) -> Inputs:
        z = 2 * torch.randn(4, 3, generator=g, dtype=torch.float64)
        y = torch.rand(4, 3, generator=g, dtype=torch.float64)
        constants = {"weight": weight, "pos_weight": pos_weight}
        return {"input": z, "target": y} | {name: positive(g, shape) for name, shape in constants.items() if shape}

    batched = ("input", "target", "weight") if len(weight) == 2 else ("input", "target")
    return Case(f"{op}, {name}", op, make, ("input", "target"), batched, options)


BINARY = [
    case
    for r in REDUCTIONS
    for case in [
        _binary(r, reduction=r),
        _binary(f"{r}, weight", weight=(4, 3), reduction=r),
        _binary(f"{r}, pos_weight", pos_weight=(3,), reduction=r),
        _binary(f"{r}, weight and pos_weight", weight=(3,), pos_weight=(3,), reduction=r),
    ]
] + [_binary("per sample", "binary_cross_entropy_per_sample")]

LOSSES = [*RESIDUAL, *LABELS, *SOFT, *BINARY]
CASES = [*ACTIVATIONS, *LINEAR, *LOSSES]

# Each op once, with as many of its arguments as one case can have, for slow tests.
_RICH = {
    "leaky_relu": "leaky_relu, slope 0.2",
    "elu": "elu, alpha 0.7",
    "softplus": "softplus, beta 2, threshold 1",
    "cross_entropy": "cross_entropy, labels, mean, everything",
    "mse_loss": "mse_loss, mean, weight",
    "binary_cross_entropy_with_logits": "binary_cross_entropy_with_logits, mean, weight and pos_weight",
}
ONE_PER_OP = [
    next(case for case in CASES if case.op == op and case.name == _RICH.get(op, case.name))
    for op in dict.fromkeys(case.op for case in CASES)
] + [next(case for case in CASES if case.name == "cross_entropy, probabilities, mean, weight and smoothing")]


# For slow tests: reduction "mean" with each option, since the divisor depends on them; "sum" and "none" with no other
# option and with all of them. So each pair of a loss's arguments occurs in some case.
_ENDS = ("sum", "none", "everything", "weight and smoothing", "weight and pos_weight")
PAIRWISE = [
    case
    for case in CASES
    if case in RESIDUAL or case.options.get("reduction", "mean") == "mean" or case.name.endswith(_ENDS)
]


def over(cases: Iterable[Case]) -> pytest.MarkDecorator:
    """Parametrize a test over cases; ignore the warning of those that broadcast."""
    marks = pytest.mark.filterwarnings("ignore:target of shape:UserWarning", "ignore:Using a target size:UserWarning")
    params = [pytest.param(case, id=case.name, marks=marks if case.warns else ()) for case in cases]
    return pytest.mark.parametrize("case", params)
