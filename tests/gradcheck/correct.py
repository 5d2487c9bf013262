"""Correct Functions of many styles: no check may fail, but the listed ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

import deltaprop as dp
from deltaprop import functional as F
from tests.gradcheck.planted import AFFINE, X, normal


@dataclass(frozen=True)
class Correct:
    """A correct function.

    Attributes:
        op: The function.
        inputs: Its inputs in the test.
        name: The name of the style.
        expected_failures: The checks that rightly fail.
    """

    op: Any
    inputs: tuple[Any, ...]
    name: str
    expected_failures: frozenset[str] = frozenset()


torch.manual_seed(0)  # the networks below do not depend on earlier random numbers
CORRECT: list[Correct] = []


def correct(inputs: tuple[Any, ...] = X, expected_failures: tuple[str, ...] = ()) -> Any:
    """Add a function to ``CORRECT``."""

    def put(op: Any) -> Any:
        CORRECT.append(Correct(op, inputs, op.__name__, frozenset(expected_failures)))
        return op

    return put


@correct()
class Legacy(Function):
    """forward(ctx, …)."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return 3 * x * x * grad_output


@correct()
class SetupContext(Function):
    """forward(…), setup_context, jvp and a vmap rule."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return torch.exp(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx, grad_output):
        (a,) = ctx.saved_tensors
        return grad_output * a

    @staticmethod
    def jvp(ctx, x_dot):
        (a,) = ctx.saved_tensors
        return x_dot * a


@correct()
class Once(Function):
    """once_differentiable: there is no second derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return grad_output * x.cos()


@correct((normal(4, 3), normal(4, 3)))
class TwoOutputs(Function):
    """Sum and product."""

    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return x + y, x * y

    @staticmethod
    def backward(ctx, grad_sum, grad_product):
        x, y = ctx.saved_tensors
        return grad_sum + grad_product * y, grad_sum + grad_product * x


@correct()
class IndexOutput(Function):
    """An output without a gradient: the index of the maximum."""

    @staticmethod
    def forward(ctx, x):
        values, indices = x.max(-1)
        ctx.mark_non_differentiable(indices)
        ctx.save_for_backward(indices)
        ctx.shape = x.shape
        return values, indices

    @staticmethod
    def backward(ctx, grad_values, _):
        (indices,) = ctx.saved_tensors
        zeros = grad_values.new_zeros(ctx.shape)
        return zeros.scatter(-1, indices.unsqueeze(-1), grad_values.unsqueeze(-1))


@correct((normal(4, 3), None))
class OptionalInput(Function):
    """None for an optional input."""

    @staticmethod
    def forward(ctx, x, bias):
        return x * 2 if bias is None else x * 2 + bias

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * 2, None


@correct((normal(4, 3), torch.tensor([2, 0, 1, 1])))
class IntegerInput(Function):
    """Labels with logits."""

    @staticmethod
    def forward(ctx, x, index):
        ctx.save_for_backward(index)
        ctx.shape = x.shape
        return x.gather(-1, index.unsqueeze(-1)).squeeze(-1)

    @staticmethod
    def backward(ctx, grad_output):
        (index,) = ctx.saved_tensors
        zeros = grad_output.new_zeros(ctx.shape)
        return zeros.scatter(-1, index.unsqueeze(-1), grad_output.unsqueeze(-1)), None


@correct((normal(4, 3), 2.5, "up"))
class ConstantInputs(Function):
    """Numbers and strings among the arguments."""

    @staticmethod
    def forward(ctx, x, scale, way):
        ctx.scale = scale if way == "up" else 1 / scale
        return x * ctx.scale

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * ctx.scale, None, None


@correct()
class ReturnsAView(Function):
    """A view of the input."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output


@correct()
class InPlace(Function):
    """An in-place operation, marked by mark_dirty."""

    @staticmethod
    def forward(ctx, x):
        x.exp_()
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx, grad_output):
        (a,) = ctx.saved_tensors
        return grad_output * a


@correct(AFFINE)
class SkipsWhatNobodyNeeds(Function):
    """Uses needs_input_grad."""

    @staticmethod
    def forward(ctx, a, weight, bias):
        ctx.save_for_backward(a, weight)
        return torch.nn.functional.linear(a, weight, bias)

    @staticmethod
    def backward(ctx, grad_output):
        a, weight = ctx.saved_tensors
        rows = grad_output.reshape(-1, grad_output.shape[-1])
        needs_a, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            grad_output @ weight.to(grad_output.dtype) if needs_a else None,
            rows.T @ a.to(grad_output.dtype).reshape(-1, a.shape[-1]) if needs_weight else None,
            rows.sum(0) if needs_bias else None,
        )


@correct((normal(4, 3), normal(3)))
class Broadcasts(Function):
    """A bias that is broadcast; its gradient is summed."""

    @staticmethod
    def forward(ctx, x, bias):
        ctx.shapes = x.shape, bias.shape
        return x + bias

    @staticmethod
    def backward(ctx, grad_output):
        return tuple(grad_output.sum_to_size(shape) for shape in ctx.shapes)


@correct()
class DoesNotMaterialize(Function):
    """None as the gradient of an unused output."""

    @staticmethod
    def forward(ctx, x):
        ctx.set_materialize_grads(False)
        return x * 2, x * 3

    @staticmethod
    def backward(ctx, grad_two, grad_three):
        parts = [g * k for g, k in ((grad_two, 2), (grad_three, 3)) if g is not None]
        return sum(parts) if parts else None


@correct()
class HiddenOutput(Function):
    """An additional output for backward, so that it has a graph."""

    @staticmethod
    def forward(ctx, x):
        e = torch.exp(-x)
        ctx.save_for_backward(e)
        return 1 / (1 + e), e

    @staticmethod
    def backward(ctx, grad_output, grad_e):
        (e,) = ctx.saved_tensors
        return grad_output * e / (1 + e) ** 2 - grad_e * e


@correct((normal(4, 3), normal(3, 4)))
class Constant(Function):
    """A gradient of None for an input on which the output does not depend."""

    @staticmethod
    def forward(ctx, x, unused):
        return x * 2

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * 2, None


@correct((torch.nn.functional.normalize(normal(4, 3)),))
class Straight(Function):
    """A sum of everything: ∂C/∂x is an expanded number."""

    @staticmethod
    def forward(ctx, x):
        ctx.shape = x.shape
        return x.sum()

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output.expand(ctx.shape)


@correct()
def plain_function(x: Tensor) -> Tensor:
    """A function without a custom Function."""
    return torch.tanh(x) * x.softmax(-1)


@correct(([normal(4, 3), normal(4, 3)],))
def of_a_list(tensors: list[Tensor]) -> dict[str, Tensor]:
    """Tensors in a list, results in a dictionary."""
    first, second = tensors
    return {"sum": first + second, "product": first * second}


@correct()
def with_dropout(x: Tensor) -> Tensor:
    """Random numbers are the same at every call of a check."""
    return torch.nn.functional.dropout(x, 0.5) * x


@correct((torch.tensor([[1e-3, 2e-4], [5e-4, 3e-3]], dtype=torch.float64),))
def steep(x: Tensor) -> Tensor:
    """A function with high curvature within h."""
    return 1 / x + x.log()


@correct((torch.tensor([[0.0, 1.0], [-2.0, 0.0]], dtype=torch.float64),))
def at_a_kink(x: Tensor) -> Tensor:
    """|x| at 0, where the gradient itself jumps."""
    return x.abs()


@correct((normal(4, 4), normal(4, 4)))
def square(x: Tensor, weight: Tensor) -> Tensor:
    """A square weight with as many rows as samples."""
    return F.linear(x, weight)


@correct()
def of_complex_numbers(x: Tensor) -> Tensor:
    """A complex output."""
    return torch.fft.rfft(x)


@correct((torch.zeros(0, 3, dtype=torch.float64),))
def of_no_samples(x: Tensor) -> Tensor:
    """An empty result."""
    return x.sin()


class Checkpointed(nn.Module):
    """Its layer is called again in backward, with the same parameters."""

    def __init__(self, use_reentrant: bool = False) -> None:
        super().__init__()
        self.layer, self.use_reentrant = nn.Linear(3, 4), use_reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(lambda t: torch.tanh(self.layer(t)), x, use_reentrant=self.use_reentrant)


MODULES = [
    Correct(Checkpointed(), X, "a checkpoint"),
    Correct(nn.Sequential(nn.Linear(20, 50), nn.ReLU(), nn.Linear(50, 3)), (normal(64, 20),), "many gates"),
    Correct(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh()), X, "batch norm in training"),
    Correct(nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)), X, "an in-place module"),
    Correct(nn.GRUCell(3, 4), (normal(4, 3), normal(4, 4)), "a recurrent cell"),
    Correct(nn.Embedding(7, 3), (torch.tensor([1, 4, 1]),), "an embedding"),
    Correct(nn.MultiheadAttention(4, 2, batch_first=True), (normal(2, 3, 4),) * 3, "attention"),
    Correct(dp.MLP([3, 5, 2], "tanh"), X, "an MLP"),
    Correct(nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.LayerNorm(4)), X, "torch modules"),
    Correct(F.linear, AFFINE, "linear"),
    Correct(F.cross_entropy, (normal(4, 3), torch.tensor([0, 2, 1, 1])), "cross-entropy of labels"),
    Correct(F.mse_loss, (normal(4, 3), normal(3, 4).T.contiguous()), "a loss of two inputs"),
]
CORRECT += MODULES


@correct()
def in_float32(x):
    """Computed in float32, returned in float64."""
    return x.float().sin().double()


@correct()
def returns_float32(x):
    return x.float().sin()


@correct()
def once_differentiable_deep_in_it(x):
    return 3 * Once.apply(2 * x)


@correct((normal(4, 4) @ normal(4, 4).T + 4 * torch.eye(4, dtype=torch.float64),))
def log_determinant(x):
    return torch.logdet(x)


@correct((normal(3, 3),))
def inverse(x):
    return torch.linalg.inv(x)


@correct((normal(5),))
def one_dimension_alone(x):
    return x.cumsum(0).logsumexp(0)


@correct((torch.tensor(0.7),))
def a_number(x):
    return x.exp()


# --- hard ones: right, and easily taken for wrong ---

SQUARE = normal(4, 4)
SPD = SQUARE @ SQUARE.T + 4 * torch.eye(4, dtype=torch.float64)


@correct((SPD,), ("values",))
def cholesky(x):
    """PyTorch's gradient is that for symmetric matrices, which is a warning that says so."""
    return torch.linalg.cholesky(x)


@correct((SPD,), ("values",))
def eigenvalues(x):
    return torch.linalg.eigvalsh(x)


@correct((SPD, normal(4, 2)))
def solve(a, b):
    return torch.linalg.solve(a, b)


@correct((torch.linalg.qr(SQUARE)[0],))
def inverse_of_an_orthogonal_matrix(x):
    return torch.linalg.inv(x)


@correct((SQUARE,))
def matrix_exponential(x):
    """Its algorithm takes more steps for a larger grad_output."""
    return torch.linalg.matrix_exp(x)


@correct((SPD,))
def a_constant(x):
    """The solution is 1 whatever x is: the gradient is 0 but for rounding."""
    return torch.linalg.solve(x, x.sum(1))


@correct()
def with_a_mask_in_float32(x):
    """Computed in float64 all the same."""
    return x * (x > 0).float()


@correct(expected_failures=("values",))
def in_bfloat16(x):
    """Too few digits for differences, which is a warning."""
    return x.bfloat16().sin().double()


EDGE = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 0.5]], dtype=torch.float64)


@correct((EDGE,))
def root_at_zero(x):
    return x.sqrt()


@correct((EDGE,))
def logarithm_at_zero(x):
    return x.log()


@correct((torch.tensor([[0.5, -float("inf"), 1.0], [2.0, 0.1, 0.3]], dtype=torch.float64),))
def softmax_of_masked_scores(x):
    return x.log_softmax(1)


@correct((torch.view_as_complex(normal(4, 3, 2)), normal(4, 3)))
def complex_times_real(z, x):
    return z * x


@correct((torch.view_as_complex(normal(4, 3, 2)),))
class ComplexModulus(Function):
    """|z|², whose gradient is 2 z."""

    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return (z * z.conj()).real

    @staticmethod
    def backward(ctx, grad_output):
        (z,) = ctx.saved_tensors
        return 2 * grad_output * z


@correct()
class DropsOutByState(Function):
    """Dropout whose mask is drawn again in backward from the generator's state, which is put back."""

    @staticmethod
    def forward(ctx, x):
        ctx.state = torch.get_rng_state()
        return x * torch.bernoulli(torch.full_like(x, 0.5))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        now = torch.get_rng_state()
        torch.set_rng_state(ctx.state)
        gradient = grad_output * torch.bernoulli(torch.full_like(grad_output, 0.5))
        torch.set_rng_state(now)
        return gradient


@correct((0.5 * normal(4, 3), normal(3)), ("vmap",))
class FixedPoint(Function):
    """a = tanh(x + w a) solved by iteration; backward solves a linear equation by iteration, and asks for a number."""

    @staticmethod
    def forward(ctx, x, w):
        a = torch.zeros_like(x)
        for _ in range(60):
            a = torch.tanh(x + 0.3 * torch.tanh(w) * a)
        ctx.save_for_backward(a, w)
        return a

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        a, w = ctx.saved_tensors
        slope, delta = 1 - a * a, grad_output
        for _ in range(60):
            new = grad_output + delta * slope * 0.3 * torch.tanh(w)
            if (new - delta).abs().max().item() == 0 if new.numel() else True:
                break
            delta = new
        of_w = delta * slope * 0.3 * (1 - torch.tanh(w) ** 2) * a
        return delta * slope, of_w.sum_to_size(w.shape)


@correct((normal(2, 3, 4, 4),), ("vmap",))
class KeepsTheLayout(Function):
    """An image whose gradient has the layout of the image; vmap does not work with ``copy_``, which is a warning."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return torch.empty_like(x).copy_(2 * grad_output * x) if not torch.is_grad_enabled() else 2 * grad_output * x


@correct((normal(4, 3), normal(3), normal(3)))
class Normalisation(Function):
    """Layer normalisation with saved statistics, and its backward by hand."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
        ctx.save_for_backward(centred * scale, scale, weight)
        return centred * scale * weight + bias

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        unit, scale, weight = ctx.saved_tensors
        inner = grad_output * weight
        delta = inner - inner.mean(-1, keepdim=True) - unit * (inner * unit).mean(-1, keepdim=True)
        return scale * delta, (grad_output * unit).sum_to_size(weight.shape), grad_output.sum_to_size(weight.shape)


@correct()
class LargeInputsApart(Function):
    """Softplus, linear beyond a threshold, as PyTorch's own."""

    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return torch.where(z > 40, z, torch.log1p(z.clamp(max=40).exp()))

    @staticmethod
    def backward(ctx, grad_output):
        (z,) = ctx.saved_tensors
        return grad_output * torch.sigmoid(z)


@correct((normal(4, 3), torch.tensor([[0, 1], [2, 1], [0, 0], [1, 2]])))
def gathered(x, index):
    return x.gather(1, index)


@correct((normal(4, 3), torch.tensor([3, 0, 2])))
def rows_by_index(x, index):
    return x[index]


@correct((normal(5, 3), normal(5, 2)))
def least_squares(a, b):
    return torch.linalg.lstsq(a, b).solution


@correct()
def extremes(x):
    """Values, their places, and a number that is none."""
    values, places = x.sort(dim=1)
    return values, places, 3.5, x.sign()


@correct()
def a_matrix_and_a_number(x):
    """Outputs of different numbers of axes."""
    return {"values": x.sin(), "others": [x.cos(), x.square().mean()]}


@correct()
class Float32InBackward(Function):
    """Backward computes in float32 for speed, forward does not."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return (grad_output.float() * x.float().cos()).to(grad_output.dtype)


@correct((torch.tensor([[0.5, 1 - 1e-7], [1.0, 0.75]], dtype=torch.float64),))
def at_the_edge_of_what_it_accepts(p):
    """Refuses a probability above 1, as binary cross-entropy does."""
    if bool((p > 1).any()):
        raise ValueError("a probability must be at most 1")
    return p.log() * p


SHARES = torch.softmax(normal(4, 3), 1)


@correct((SHARES + 1e-9,))
def at_its_minimum(p):
    """The divergence of p from itself: large terms, whose sum is 0."""
    return (p * (p.log() - SHARES.to(p).log()[: len(p)])).sum()


@correct()
def with_a_large_constant(x):
    return x.sin() + 1e4


@correct((normal(4, 3), torch.eye(4, dtype=torch.float64).to_sparse()), ("vmap", "autocast"))
def with_a_sparse_constant(x, graph):
    """PyTorch has no such product under vmap and autocast, which are warnings."""
    return torch.sparse.mm(graph, x)
