"""Corner cases that the table of cases does not cover; each was a bug once, or a planted error was not detected."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as T
from torch.testing import assert_close

import deltaprop.functional as F


def gradients_of(function, *inputs):
    """Return the value, and the gradients of its sum with respect to new leaves."""
    leaves = [t.clone().requires_grad_() for t in inputs]
    value = function(*leaves)
    return value.detach(), torch.autograd.grad(value.sum(), leaves)


def test_uint8_labels_can_be_class_156():
    """−100, the label to ignore by default, is 156 modulo 256."""
    z, y = torch.zeros(2, 200), torch.tensor([156, 3], dtype=torch.uint8)
    assert_close(gradients_of(lambda z: F.cross_entropy(z, y), z), gradients_of(lambda z: T.cross_entropy(z, y), z))


def test_an_ignored_sample_does_not_use_the_weight_of_class_0():
    """0 · inf is NaN, so an infinite weight of a class that only ignored samples have must not be multiplied."""
    z, y = torch.randn(2, 3), torch.tensor([-100, 1])
    weight = torch.tensor([torch.inf, 1.0, 2.0])
    ours, theirs = (gradients_of(lambda z, f=f: f(z, y, weight), z) for f in (F.cross_entropy, T.cross_entropy))
    assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("a_prev", "weight", "bias"), [((3,), (2, 3), (1, 2)), ((4, 0), (2, 0), (2,)), ((4, 3), (0, 3), (0,))]
)
def test_linear_with_unusual_shapes(a_prev, weight, bias):
    """A bias with more axes than z; no inputs; no outputs."""
    inputs = [torch.randn(shape) for shape in (a_prev, weight, bias)]
    assert_close(gradients_of(F.linear, *inputs), gradients_of(T.linear, *inputs))


@pytest.mark.parametrize("loss", ["mse_loss", "l1_loss", "huber_loss"])
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # caused by the compiler itself
@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.filterwarnings("ignore:target of shape")
def test_a_broadcast_target_compiles(loss, fresh_compiler):
    """PyTorch's functions compile with a broadcast target; the warning given here must not prevent it."""
    a, y = torch.randn(4, 3, requires_grad=True), torch.randn(4, 1)
    compiled = torch.compile(getattr(F, loss), fullgraph=True, backend="aot_eager")
    assert_close(compiled(a, y), getattr(T, loss)(a, y))


def test_gradients_have_their_inputs_dtype_before_autograd_casts_them():
    """Under autocast products run in bfloat16; the node itself returns float32 gradients for float32 parameters."""
    a_prev, weight, bias = torch.randn(4, 3), torch.randn(2, 3), torch.randn(2)
    leaves = [t.requires_grad_() for t in (a_prev, weight, bias)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = F.linear(*leaves)
    assert z.dtype == torch.bfloat16
    assert [g.dtype for g in z.grad_fn.apply(torch.ones_like(z))] == [torch.float32] * 3


@pytest.mark.parametrize("loss", ["mse_loss", "l1_loss"])
def test_gradients_of_mixed_dtypes_have_their_inputs_dtype(loss):
    a, y = torch.randn(4, requires_grad=True), torch.randn(4, dtype=torch.float64, requires_grad=True)
    c = getattr(F, loss)(a, y)
    assert [g.dtype for g in c.grad_fn.apply(torch.ones_like(c)) if g is not None] == [torch.float32, torch.float64]


@pytest.mark.parametrize("call", [lambda: F.relu([1.0]), lambda: F.linear(None, torch.ones(2, 2)), lambda: F.relu(3)])
def test_an_input_that_is_not_a_tensor_is_a_type_error(call):
    with pytest.raises(TypeError):
        call()


def test_delta_of_bfloat16_logits_is_bfloat16():
    """Under autocast log p is float32, but the node itself returns a bfloat16 δ for bfloat16 logits."""
    z = torch.randn(4, 3, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        c = F.cross_entropy(z, torch.tensor([0, 1, 2, 0]))
    delta, *_ = c.grad_fn.apply(torch.ones_like(c), None)
    assert (c.dtype, delta.dtype) == (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("shape", [(2,), (4, 3), (1,)])
def test_class_weights_of_another_length_are_refused_for_probabilities(shape):
    """[1] would broadcast, and [N, C] would fit by chance."""
    z, y = torch.randn(4, 3), torch.full((4, 3), 1 / 3)
    with pytest.raises(RuntimeError, match="weight must hold one number a class"):
        F.cross_entropy(z, y, torch.ones(shape))
    with pytest.raises(RuntimeError):
        T.cross_entropy(z, y, torch.ones(shape))
