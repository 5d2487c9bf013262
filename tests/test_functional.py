"""The public functions behave like torch.nn.functional: signatures, defaults, warnings and errors."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
import torch.nn.functional as T
from torch import Tensor

import deltaprop.functional as F

OWN = {"step", "identity", "quadratic_loss", "binary_cross_entropy_per_sample"}  # names that PyTorch does not have
SHARED = sorted(set(F.__all__) - OWN)

Z = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 2, 1, 0])
BINARY = "binary_cross_entropy_with_logits"
REAL = torch.rand(4, 3, generator=torch.Generator().manual_seed(1))


# --- signatures ---


NONE = inspect.Parameter.empty

# Signatures of functions that are written in C++, from PyTorch's documentation.
BUILTIN = {
    "linear": {"input": NONE, "weight": NONE, "bias": None},
    "gelu": {"input": NONE, "approximate": "none"},
    "softplus": {"input": NONE, "beta": 1, "threshold": 20},
}


@pytest.mark.parametrize("name", SHARED)
def test_arguments(name):
    """Positional arguments have PyTorch's order, and every argument has PyTorch's name and default."""
    ours = inspect.signature(getattr(F, name)).parameters
    try:
        reference = {p.name: p.default for p in inspect.signature(getattr(T, name)).parameters.values()}
    except ValueError:  # a builtin has no signature
        reference = BUILTIN[name]
    for p in ours.values():
        if p.name != "dim":  # PyTorch guesses a missing dim, with a warning
            assert p.default == reference[p.name]
    positional = [p.name for p in ours.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == list(reference)[: len(positional)]
    assert set(ours) <= set(reference)


def test_all_lists_every_public_function():
    """__all__ lists every public function of the module."""
    functions = {
        name
        for name, value in vars(F).items()
        if inspect.isfunction(value) and value.__module__ == F.__name__ and not name.startswith("_")
    }
    assert functions == set(F.__all__)


@pytest.mark.parametrize("name", F.__all__)
def test_every_function_is_documented(name):
    """The docstring names every argument."""
    function = getattr(F, name)
    assert all(f"{p}:" in function.__doc__ for p in inspect.signature(function).parameters)


# --- results that the table of ops does not cover ---


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_dtype_is_cast_first(name):
    """softmax(z, dtype=float64) casts z first; the gradient comes back in z's dtype, as in PyTorch."""
    results = []
    for functional in (F, T):
        z = Z.clone().requires_grad_()
        a = getattr(functional, name)(z, 1, dtype=torch.float64)
        a.square().sum().backward()
        results.append((a.dtype, a.detach(), z.grad))
    (dtype, a, gradient), (their_dtype, theirs, their_gradient) = results
    assert dtype == their_dtype == torch.float64
    torch.testing.assert_close(a, theirs, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(gradient, their_gradient)


@pytest.mark.parametrize("ignore_index", [-100, 255, 1])
def test_labels_of_one_byte(ignore_index):
    """Labels may be uint8, as images' labels are stored: value and δ are PyTorch's.

    Among 200 classes, 156 is -100 modulo 256; it must not be confused with the ignored label.
    """
    labels = torch.tensor([156, 1, 2, ignore_index % 256], dtype=torch.uint8)
    logits = torch.randn(4, 200)
    results = []
    for functional in (F, T):
        z = logits.clone().requires_grad_()
        loss = functional.cross_entropy(z, labels, ignore_index=ignore_index)
        loss.backward()
        results.append((loss.detach(), z.grad))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_weight_of_an_absent_class(smoothing):
    """The weight of a class that only ignored samples have is not used: value and δ are PyTorch's."""
    weight = torch.tensor([math.nan, 2.0, 3.0])
    results = []
    for functional in (F, T):
        z = Z.clone().requires_grad_()
        loss = functional.cross_entropy(z, torch.tensor([-100, 1, 2, 1]), weight, label_smoothing=smoothing)
        loss.backward()
        results.append((loss.detach(), z.grad))
    torch.testing.assert_close(*results, equal_nan=True)
    assert smoothing or results[0][0].isfinite()


def test_every_label_ignored():
    """The mean over no sample is NaN, as in PyTorch, but δ is 0, so such a batch does not change the weights."""
    ignored = torch.full((4,), -100)
    for reduction, expected in (("mean", math.nan), ("sum", 0.0)):
        results = []
        for functional in (F, T):
            z = Z.clone().requires_grad_()
            loss = functional.cross_entropy(z, ignored, reduction=reduction)
            loss.backward()
            results.append((loss.detach(), z.grad))
        torch.testing.assert_close(results[0], (torch.tensor(expected), torch.zeros(4, 3)), equal_nan=True)
        torch.testing.assert_close(results[0], results[1], equal_nan=True)


@pytest.mark.parametrize("name", ["mse_loss", "l1_loss", "huber_loss", "quadratic_loss"])
@pytest.mark.parametrize(("a", "y"), [((4, 3), (3,)), ((4, 1), (4,))], ids=str)
def test_broadcasting_warns(name, a, y):
    """A target of another shape is broadcast with a warning that shows both; [4, 1] against [4] makes 16 residuals."""
    with pytest.warns(UserWarning, match="target of shape .* against input of shape") as caught:
        getattr(F, name)(torch.zeros(a), torch.zeros(y))
    assert str(list(a)) in str(caught[0].message)
    assert str(list(y)) in str(caught[0].message)
    assert caught[0].filename == __file__  # it points at the caller's line


@pytest.mark.parametrize("name", ["mse_loss", "l1_loss", "huber_loss", "quadratic_loss"])
def test_no_warning_for_equal_shapes(name):
    """There is no warning for equal shapes."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        getattr(F, name)(Z, REAL)


# huber_loss works too, but PyTorch's raises in backward.
@pytest.mark.parametrize("name", ["mse_loss", "l1_loss", "cross_entropy", BINARY])
def test_mixed_dtypes(name):
    """float32 against float64: PyTorch's result dtype, and each gradient in its input's."""
    results = []
    for functional in (F, T):
        a, y = Z.clone().requires_grad_(), REAL.double().requires_grad_()
        loss = getattr(functional, name)(a, y)
        loss.backward()
        assert (a.grad.dtype, y.grad.dtype) == (torch.float32, torch.float64)
        results.append((loss.detach(), a.grad, y.grad))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("name", ["mse_loss", "l1_loss"])
def test_integer_targets(name):
    """Integer targets are accepted as numbers, as in PyTorch."""
    y = torch.arange(12).reshape(4, 3)
    torch.testing.assert_close(getattr(F, name)(Z, y), getattr(T, name)(Z, y))


# --- what is refused ---

Call = Callable[[ModuleType], object]
INTS = torch.arange(12).reshape(4, 3)

BAD_CALLS: dict[str, Call] = {
    # not tensors
    "list for z": lambda m: m.relu([1.0, 2.0]),
    "list for a_prev": lambda m: m.linear([1.0, 2.0, 3.0], torch.randn(2, 3)),
    "None for z": lambda m: m.silu(None),
    # integers cannot be differentiated
    "integer input of silu": lambda m: m.silu(INTS),
    "integer input of elu": lambda m: m.elu(INTS),
    "integer input of gelu": lambda m: m.gelu(INTS),
    "integer input of leaky_relu": lambda m: m.leaky_relu(INTS, 0.2),
    "integer input of softplus": lambda m: m.softplus(INTS),
    "integer input of softmax": lambda m: m.softmax(INTS, 1),
    "integer input of log_softmax": lambda m: m.log_softmax(INTS, 1),
    "integer logits": lambda m: m.cross_entropy(INTS, LABELS),
    "integer input and target of huber_loss": lambda m: m.huber_loss(INTS, INTS, delta=0.5),
    # options
    "approximate": lambda m: m.gelu(Z, approximate="tan"),
    "softmax over an axis too many": lambda m: m.softmax(Z, 2),
    "log_softmax over an axis too many": lambda m: m.log_softmax(Z, -3),
    "huber delta below 0": lambda m: m.huber_loss(Z, REAL, delta=-1.0),
    "huber delta 0": lambda m: m.huber_loss(Z, REAL, delta=0.0),
    **{
        f"reduction of {name}": lambda m, name=name: getattr(m, name)(Z, REAL, reduction="average")
        for name in ("mse_loss", "l1_loss", "huber_loss", "cross_entropy", BINARY)
    },
    "reduction of cross_entropy over labels": lambda m: m.cross_entropy(Z, LABELS, reduction="average"),
    "smoothing above 1": lambda m: m.cross_entropy(Z, LABELS, label_smoothing=1.5),
    "smoothing of probabilities above 1": lambda m: m.cross_entropy(Z, REAL, label_smoothing=1.5),
    # linear
    "linear: sizes": lambda m: m.linear(Z, torch.randn(2, 4)),
    "linear: bias": lambda m: m.linear(Z, torch.randn(2, 3), torch.randn(5)),
    "linear: dtypes": lambda m: m.linear(Z, torch.randn(2, 3, dtype=torch.float64)),
    "linear: bias dtype": lambda m: m.linear(Z, torch.randn(2, 3), torch.randn(2, dtype=torch.float64)),
    "linear: weight [n_in] of another size": lambda m: m.linear(Z, torch.randn(4)),
    "linear: weight [n_in] and a bias": lambda m: m.linear(Z, torch.randn(3), torch.randn(1)),
    "linear: weight of three axes": lambda m: m.linear(Z, torch.randn(1, 2, 3)),
    "linear: input without axes": lambda m: m.linear(torch.tensor(1.0), torch.randn(2, 3)),
    # residuals
    **{
        f"shapes of {name}": lambda m, name=name: getattr(m, name)(Z, torch.randn(4, 2))
        for name in ("mse_loss", "l1_loss", "huber_loss")
    },
    **{
        f"weight of {name}": lambda m, name=name: getattr(m, name)(Z, REAL, weight=torch.ones(3))
        for name in ("mse_loss", "l1_loss", "huber_loss")
    },
    # cross-entropy
    "label -1": lambda m: m.cross_entropy(Z, torch.tensor([0, -1, 1, 0])),
    "label C": lambda m: m.cross_entropy(Z, torch.tensor([0, 3, 1, 0])),
    "label C with weights and smoothing": lambda m: m.cross_entropy(
        Z, torch.tensor([0, 3, 1, 0]), torch.ones(3), label_smoothing=0.1
    ),
    "label C, unreduced": lambda m: m.cross_entropy(Z, torch.tensor([0, 3, 1, 0]), reduction="none"),
    "label C in [C]": lambda m: m.cross_entropy(Z[0], torch.tensor(3)),
    "label C at a position": lambda m: m.cross_entropy(Z[..., None], torch.tensor([[0], [3], [1], [0]])),
    "labels of int32": lambda m: m.cross_entropy(Z, LABELS.int()),
    "labels of float": lambda m: m.cross_entropy(Z, LABELS.float()),
    "another number of labels": lambda m: m.cross_entropy(Z, LABELS[:3]),
    "labels of two axes": lambda m: m.cross_entropy(Z, LABELS[:, None]),
    "logits without axes": lambda m: m.cross_entropy(torch.tensor(1.0), torch.tensor([0])),
    "weight of another size": lambda m: m.cross_entropy(Z, LABELS, torch.ones(2)),
    "weight of two axes": lambda m: m.cross_entropy(Z, LABELS, torch.ones(1, 3)),
    "weight of another dtype": lambda m: m.cross_entropy(Z, LABELS, torch.ones(3, dtype=torch.float64)),
    "weight that asks for a gradient": lambda m: m.cross_entropy(Z, LABELS, torch.ones(3, requires_grad=True)),
    "probabilities of integers": lambda m: m.cross_entropy(Z, INTS),
    "ignore_index with probabilities": lambda m: m.cross_entropy(Z, REAL, ignore_index=1),
    "weight of another size with probabilities": lambda m: m.cross_entropy(Z, REAL, torch.ones(2)),
    "weight of two axes with probabilities": lambda m: m.cross_entropy(Z, REAL, torch.ones(4, 3)),
    "weight [1] with probabilities": lambda m: m.cross_entropy(Z, REAL, torch.ones(1)),
    "weight [1, C] with probabilities": lambda m: m.cross_entropy(Z, REAL, torch.ones(1, 3)),
    # binary cross-entropy
    "shapes of binary": lambda m: getattr(m, BINARY)(Z, torch.rand(4)),
    "weight of binary": lambda m: getattr(m, BINARY)(Z, REAL, torch.ones(2)),
    "pos_weight of binary": lambda m: getattr(m, BINARY)(Z, REAL, pos_weight=torch.ones(2)),
}


@pytest.mark.filterwarnings("ignore:target of shape:UserWarning", "ignore:Using a target size:UserWarning")
@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls(name):
    """Calls that PyTorch refuses are refused with the same type of exception, and a message."""
    call = BAD_CALLS[name]
    with pytest.raises(Exception) as theirs:  # noqa: PT011
        _differentiated(call(T))
    with pytest.raises(Exception) as ours:  # noqa: PT011
        _differentiated(call(F))
    assert type(ours.value) is type(theirs.value)
    assert str(ours.value)


def _differentiated(result: object) -> None:
    """Compute the gradient: PyTorch refuses gradients of constants only there."""
    if isinstance(result, Tensor) and result.requires_grad:
        result.sum().backward()


@pytest.mark.parametrize("label", [-1, 3, -101, 1000])
@pytest.mark.parametrize("options", [{}, {"weight": torch.ones(3)}, {"label_smoothing": 0.1}], ids=["", "w", "eps"])
def test_a_label_out_of_range(label, options):
    """A label below 0 or above C - 1 is an IndexError that names it; -1 is not the last class."""
    with pytest.raises(IndexError, match=rf"Target {label} is out of bounds"):
        F.cross_entropy(Z.clone().requires_grad_(), torch.tensor([0, label, 1, 0]), **options)


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "elu", "silu"])
def test_inplace_is_refused(name):
    """inplace=True, with which PyTorch would overwrite z, is refused with the reason; inplace=False works."""
    z = Z.clone()
    with pytest.raises(ValueError, match="inplace=True is not possible here: the δ formulas read"):
        getattr(F, name)(z, inplace=True)
    assert torch.equal(z, Z)
    positional = (0.1, True) if name in ("leaky_relu", "elu") else (True,)
    with pytest.raises(ValueError, match="inplace=True is not possible here"):
        getattr(F, name)(z, *positional)
    assert torch.equal(getattr(F, name)(z, inplace=False), getattr(T, name)(z))


def test_negative_smoothing_is_refused():
    """ε below 0 is refused; PyTorch ignores it silently."""
    with pytest.raises(RuntimeError, match=r"label_smoothing must be between 0.0 and 1.0, got -0.1"):
        F.cross_entropy(Z, LABELS, label_smoothing=-0.1)


@pytest.mark.parametrize("constant", ["weight", "pos_weight"])
def test_constants_of_binary_cross_entropy(constant):
    """A weight that requires grad is refused with a remedy; otherwise its gradient would silently be None."""
    with pytest.raises(RuntimeError, match=rf"^{constant} is a constant .*{constant}.detach\(\)"):
        getattr(F, BINARY)(Z, REAL, **{constant: torch.ones(3, requires_grad=True)})


def test_huber_loss_takes_reduction_and_delta_by_position():
    a, y = torch.rand(4, 3, dtype=torch.float64), 3 * torch.rand(4, 3, dtype=torch.float64)
    for reduction in ("mean", "sum", "none"):
        ours, theirs = F.huber_loss(a, y, reduction, 0.7), torch.nn.functional.huber_loss(a, y, reduction, 0.7)
        torch.testing.assert_close(ours, theirs)
