"""Functions with one plausible mistake each, and the check that should detect it."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def normal(*shape: int) -> Tensor:
    """Return the same random numbers at every call, at least 0.1 away from 0."""
    t = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))
    return t + 0.1 * t.sign()


X = (normal(4, 3),)
AFFINE = (normal(4, 3), normal(5, 3), normal(5))


@dataclass(frozen=True)
class Bug:
    """A function with a mistake.

    Attributes:
        op: The function.
        inputs: Its inputs in the test.
        check: The check that should detect the mistake.
        severity: The severity of the failure.
    """

    op: Any
    inputs: tuple[Any, ...]
    check: str
    severity: str = "error"


BUGS: list[Bug] = []


def bug(check: str, inputs: tuple[Any, ...] = X, severity: str = "error") -> Any:
    """Add a function to ``BUGS``."""

    def put(op: Any) -> Any:
        BUGS.append(Bug(op, inputs, check, severity))
        return op

    return put


class OfSquare(Function):
    """x², of which only the backward below is of interest."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()


class OfSine(Function):
    """sin x, likewise."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()


# --- wrong numbers ---


@bug("values")
class SlopeOfZ(Function):
    """σ' is computed from z instead of a."""

    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return torch.sigmoid(z)

    @staticmethod
    def backward(ctx, grad_output):
        (z,) = ctx.saved_tensors
        return grad_output * z * (1 - z)


@bug("values")
class MissingMean(Function):
    """The 1/N of a mean over samples is missing: right for a single sample only."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square().mean(0)

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return 2 * x * grad_output


@bug("values")
class WrongSign(Function):
    """The derivative of cos with the wrong sign."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.cos()

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return grad_output * x.sin()


@bug("values", (normal(3, 3), normal(3, 3)))
class SquareTransposed(Function):
    """W instead of Wᵀ, which shapes do not reveal if W is square."""

    @staticmethod
    def forward(ctx, a, weight):
        ctx.save_for_backward(a, weight)
        return a @ weight.T

    @staticmethod
    def backward(ctx, grad_output):
        a, weight = ctx.saved_tensors
        return grad_output @ weight.T, grad_output.T @ a


@bug("values", (normal(4, 3),))
class OneEntryWrong(OfSquare):
    """A right formula with an index that is off by one at the border."""

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        gradient = 2 * x * grad_output
        gradient[-1, -1] = gradient[-1, -2]
        return gradient


# --- missing gradients ---


@bug("missing", (normal(4, 3), normal(4, 3)))
class ForgottenInput(Function):
    """None for a second input on which the output depends."""

    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(y)
        return x * y

    @staticmethod
    def backward(ctx, grad_output):
        (y,) = ctx.saved_tensors
        return grad_output * y, None


@bug("values")
def detached(x):
    """Forward through NumPy, so that there is no graph."""
    return torch.from_numpy(x.detach().numpy() ** 2)


@bug("values")
def half_detached(x):
    """One of two factors is detached."""
    return x.detach() * x


# --- shapes and dtypes ---


@bug("shapes", AFFINE, "warning")
class BiasNeverSummed(Function):
    """∂C/∂b stays [N, O]: autograd sums over the broadcast axis, and gradcheck passes it."""

    @staticmethod
    def forward(ctx, a, weight, bias):
        ctx.save_for_backward(a, weight)
        return a @ weight.T + bias

    @staticmethod
    def backward(ctx, grad_output):
        a, weight = ctx.saved_tensors
        return grad_output @ weight, grad_output.T @ a, grad_output


@bug("values", (normal(4, 3), normal(3)))
class WrongShape(Function):
    """∂C/∂b has a shape that does not broadcast to that of b."""

    @staticmethod
    def forward(ctx, x, bias):
        return x + bias

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output, grad_output.sum(1)


@bug("dtypes")
class NarrowGradient(Function):
    """Computed in float32 for speed, and not converted back."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return 2 * x

    @staticmethod
    def backward(ctx, grad_output):
        return (2 * grad_output).float()


# --- grad_output ---


@bug("grad_output")
class IgnoresGradOutput(OfSquare):
    """Ignores grad_output: right only if ∂C/∂output is 1."""

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return 2 * x


@bug("grad_output", (normal(4, 3),))
class LossThatIgnoresGradOutput(Function):
    """A loss whose backward assumes that ∂C/∂C is 1."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square().sum() / 2

    @staticmethod
    def backward(ctx, grad_output):
        return ctx.saved_tensors[0]


@bug("values", (normal(4, 3).float(),))
class OffByAThousandth(Function):
    """A rounded constant; the inputs come from float32, which the function does not compute in."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.where(x > 0, x, 0.333 * x)

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return torch.where(x > 0, grad_output, 0.3333 * grad_output)


@bug("values", (normal(60, 70),))
class OneEntryOfThousandsWrong(OfSine):
    """The last entry is left out by a kernel that rounds down the number of its blocks."""

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        gradient = grad_output * x.cos()
        gradient[..., -1:, -1:] = 0
        return gradient


@bug("parts")
class DropsSmallRows(OfSine):
    """Rows with a small gradient are left out, to save time."""

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        norm = grad_output.norm(dim=1, keepdim=True)
        return torch.where(norm > 1e-3 * norm.max(), grad_output * x.cos(), 0.0)


@bug("parts")
class NormalisesRows(OfSine):
    """Each row of grad_output is divided by its norm and multiplied by it later: NaN where it is 0."""

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        norm = grad_output.norm(dim=1, keepdim=True)
        return grad_output / norm * x.cos() * norm


@bug("parts")
class ClipsEntries(Function):
    """An entry of grad_output is clipped at ten times their mean."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad_output):
        most = float(10 * grad_output.abs().mean())
        return 2 * grad_output.clamp(-most, most)


@bug("parts")
class ReturnsEarly(Function):
    """Where an entry of grad_output is 0, nothing is computed at all."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad_output):
        return 2 * grad_output if bool(grad_output.all()) else torch.zeros_like(grad_output)


@bug("linear")
class SquaresGradOutput(Function):
    """grad_output is multiplied in twice."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * 3

    @staticmethod
    def backward(ctx, grad_output):
        return 3 * grad_output * grad_output.abs()


@bug("linear")
class ClipsGradOutput(Function):
    """Gradient clipping within backward: wrong for large gradients."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output.clamp(-2, 2)


@bug("linear")
class AddsDecay(Function):
    """Weight decay added to the gradient."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output + 1e-2 * ctx.saved_tensors[0]


@bug("linear")
class ClipsWhatIsLarge(Function):
    """Clipping that small values of grad_output never reach."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output.clamp(-100, 100)


# --- several outputs, several calls ---


@bug("outputs", (normal(4, 3),))
class NeedsBothOutputs(Function):
    """The gradient of an unused output is None, and is multiplied nevertheless."""

    @staticmethod
    def forward(ctx, x):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x)
        return x.sin(), x.cos()

    @staticmethod
    def backward(ctx, grad_sin, grad_cos):
        (x,) = ctx.saved_tensors
        return grad_sin * x.cos() - grad_cos * x.sin()


@bug("calls")
class CachesByShape(Function):
    """σ'(z) is computed once for each shape."""

    slopes: dict = {}  # noqa: RUF012  # the mistake

    @staticmethod
    def forward(ctx, z):
        ctx.key = tuple(z.shape)
        CachesByShape.slopes.setdefault(ctx.key, 1 - torch.tanh(z.detach()) ** 2)
        return torch.tanh(z)

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * CachesByShape.slopes[ctx.key]


@bug("calls")
class SharesItsMask(Function):
    """The mask of relu is written into one buffer for all calls; at 0.5 z it would be the same."""

    mask = torch.zeros(4, 3, dtype=torch.bool)

    @staticmethod
    def forward(ctx, z):
        if z.shape == SharesItsMask.mask.shape:
            SharesItsMask.mask.copy_(z > 0)
        ctx.save_for_backward(z)
        return z.clamp(min=0)

    @staticmethod
    def backward(ctx, grad_output):
        (z,) = ctx.saved_tensors
        return grad_output * (SharesItsMask.mask if z.shape == SharesItsMask.mask.shape else z > 0)


@bug("calls")
class KeepsOnTheClass(Function):
    """Tensors for backward are stored on the class, so those of the last call are used."""

    x: Tensor

    @staticmethod
    def forward(ctx, x):
        KeepsOnTheClass.x = x.detach()
        return x.square()

    @staticmethod
    def backward(ctx, grad_output):
        return 2 * KeepsOnTheClass.x * grad_output


@bug("calls")
class WritesWhatItKept(Function):
    """Backward overwrites a buffer on ctx."""

    @staticmethod
    def forward(ctx, x):
        ctx.buffer = 2 * x.detach()
        return x.square()

    @staticmethod
    def backward(ctx, grad_output):
        return ctx.buffer.mul_(grad_output).clone()


@bug("values", (1e-7 * normal(4, 3),))
class SmallAndWrong(OfSquare):
    """A gradient of 10⁻⁷ with the wrong sign."""

    @staticmethod
    def backward(ctx, grad_output):
        return -2 * ctx.saved_tensors[0] * grad_output


@bug("values", (torch.tensor([[14.0, -1.0, 1.0], [-3.0, 2.0, 0.5]], dtype=torch.float64),))
class SmallBesideLarge(Function):
    """Large entries and a small one that is missing."""

    @staticmethod
    def forward(ctx, x):
        a = x.exp()
        ctx.save_for_backward(a)
        return a

    @staticmethod
    def backward(ctx, grad_output):
        (a,) = ctx.saved_tensors
        return grad_output * torch.where(a < 0.2, 0.0, a)


# --- some inputs alone ---


@bug("subsets", AFFINE)
class ReturnsInTheOrderAskedFor(Function):
    """Gradients are packed together although one is not needed."""

    @staticmethod
    def forward(ctx, a, weight, bias):
        ctx.save_for_backward(a, weight)
        return a @ weight.T + bias

    @staticmethod
    def backward(ctx, grad_output):
        a, weight = ctx.saved_tensors
        found = [grad_output @ weight, grad_output.T @ a, grad_output.sum(0)]
        found = [g for g, needed in zip(found, ctx.needs_input_grad, strict=True) if needed]
        return (*found, *[None] * (3 - len(found)))


@bug("subsets", (normal(4, 3), normal(4, 3)))
class NeedsTheOther(Function):
    """needs_input_grad of the wrong input is used."""

    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return x * y

    @staticmethod
    def backward(ctx, grad_output):
        x, y = ctx.saved_tensors
        needs_x, needs_y = ctx.needs_input_grad
        return (grad_output * y if needs_y else None), (grad_output * x if needs_x else None)


# --- written in place ---


@bug("saved")
class KeepsInputOnCtx(Function):
    """The input is kept on ctx, where autograd does not see that it is written to."""

    @staticmethod
    def forward(ctx, x):
        ctx.x = x
        return x.sin()

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * ctx.x.cos()


@bug("saved")
class KeepsDetachedOutput(Function):
    """The output is kept on ctx by its data, which a later in-place operation changes."""

    @staticmethod
    def forward(ctx, z):
        a = torch.tanh(z)
        ctx.a = a.data
        return a

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * (1 - ctx.a**2)


_local = threading.local()


@bug("thread")
class StashesInAThreadLocal(Function):
    """What forward found out is kept in a thread-local, which the thread of CUDA's backward does not have."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        _local.factor = 2.0
        return 2 * x

    @staticmethod
    def backward(ctx, grad_output):
        return getattr(_local, "factor", 1.0) * grad_output


@bug("generator")
class ResetsTheGenerator(Function):
    """Dropout that draws its mask again in backward, by a seed, and leaves the generator there."""

    @staticmethod
    def forward(ctx, x):
        ctx.seed = 17
        torch.manual_seed(ctx.seed)
        return x * torch.bernoulli(torch.full_like(x, 0.5))

    @staticmethod
    def backward(ctx, grad_output):
        torch.manual_seed(ctx.seed)
        return grad_output * torch.bernoulli(torch.full_like(grad_output, 0.5))


@bug("in_place")
class WritesInput(Function):
    """z is overwritten by a without mark_dirty."""

    @staticmethod
    def forward(ctx, z):
        with torch.no_grad():
            z.sigmoid_()
        a = z.clone()
        ctx.save_for_backward(a)
        return a

    @staticmethod
    def backward(ctx, grad_output):
        (a,) = ctx.saved_tensors
        return grad_output * a * (1 - a)


@bug("in_place")
class WritesGradOutput(Function):
    """δ overwrites ∂C/∂a, which another branch may need."""

    @staticmethod
    def forward(ctx, z):
        a = torch.tanh(z)
        ctx.save_for_backward(a)
        return a

    @staticmethod
    def backward(ctx, grad_output):
        (a,) = ctx.saved_tensors
        return grad_output.mul_(1 - a * a)


@bug("in_place")
class MasksGradOutput(Function):
    """The mask of relu is applied in place, which a second time changes nothing."""

    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return z.clamp(min=0)

    @staticmethod
    def backward(ctx, grad_output):
        (z,) = ctx.saved_tensors
        return grad_output.mul_(z > 0)


@bug("in_place")
class ResizesGradOutput(Function):
    """grad_output is used as a buffer of another shape."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad_output):
        gradient = 2 * grad_output
        grad_output.resize_(grad_output.numel())
        return gradient


# --- layouts and sizes ---


@bug("non_contiguous")
class ViewsGradOutput(Function):
    """``.view`` on a gradient that may be non-contiguous."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad_output):
        return 2 * grad_output.view(-1).view(grad_output.shape)


@bug("non_contiguous")
class AssumesStrides(OfSquare):
    """Reads the memory of the input as if it were contiguous."""

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return 2 * grad_output * x.as_strided(x.shape, (x.shape[1], 1) if x.dim() == 2 else x.stride())


@bug("expanded")
class AssumesStridesOfGradOutput(Function):
    """Wrong for an expanded grad_output, as if its memory were contiguous."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * 2

    @staticmethod
    def backward(ctx, grad_output):
        if 0 in grad_output.stride():
            return torch.zeros_like(grad_output)
        return 2 * grad_output


@bug("zero_size")
class FailsOnNoSamples(Function):
    """A maximum over no entries."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * 2

    @staticmethod
    def backward(ctx, grad_output):
        scale = grad_output.abs().max()
        return 2 * (grad_output / scale) * scale


@bug("one_sample")
class SqueezesOneSample(Function):
    """A squeeze removes the axis of a single sample, and the gradient is divided by the wrong size."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square().mean(0)

    @staticmethod
    def backward(ctx, grad_output):
        x = ctx.saved_tensors[0].squeeze()
        return (2 * x * grad_output / len(x)).reshape(ctx.saved_tensors[0].shape)


@bug("one_dimension", (normal(4, 3),))
class TakesRowsForGranted(Function):
    """Forward normalises along axis −1 and backward along axis 1, which differ for three axes."""

    @staticmethod
    def forward(ctx, z):
        p = torch.softmax(z, -1)
        ctx.save_for_backward(p)
        return p

    @staticmethod
    def backward(ctx, grad_output):
        (p,) = ctx.saved_tensors
        inner = (p * grad_output).sum(1, keepdim=True) if p.dim() > 1 else p * grad_output
        return p * (grad_output - inner)


@bug("three_dimensions", (normal(4, 3), normal(5, 3)))
class TwoDimensionsOnly(Function):
    """∂C/∂W is computed from the first slice of a batch with two leading axes."""

    @staticmethod
    def forward(ctx, a, weight):
        ctx.save_for_backward(a, weight)
        return a @ weight.T

    @staticmethod
    def backward(ctx, grad_output):
        a, weight = ctx.saved_tensors
        rows = (grad_output, a) if a.dim() < 3 else (grad_output[0], a[0])
        delta, a_prev = (t.reshape(-1, t.shape[-1]) for t in rows)
        return grad_output @ weight, delta.T @ a_prev


# --- memory and randomness ---


@bug("leak")
class KeepsOutput(Function):
    """The output is stored on ctx: a reference cycle that only the garbage collector frees."""

    @staticmethod
    def forward(ctx, z):
        ctx.a = torch.sigmoid(z)
        return ctx.a

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * ctx.a * (1 - ctx.a)


@bug("deterministic")
class Noisy(Function):
    """Random noise is added in backward."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output + 1e-3 * torch.randn_like(grad_output)


@bug("deterministic", X, "warning")
class NoisyByRounding(Function):
    """Sums in an order that changes from call to call, like atomic additions."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * (1 + 3e-16 * torch.randint(-2, 3, grad_output.shape).double())


# --- derivatives of derivatives ---


@bug("second")
class SavesIntermediate(Function):
    """A saved intermediate result: gradcheck passes it, but its second derivative is lost."""

    @staticmethod
    def forward(ctx, x):
        e = torch.exp(-x)
        ctx.save_for_backward(e)
        return 1 / (1 + e)

    @staticmethod
    def backward(ctx, grad_output):
        (e,) = ctx.saved_tensors
        return grad_output * e / (1 + e) ** 2


@bug("graph")
class LosesItsGraph(Function):
    """The gradient is computed without a graph although create_graph is set."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return (3 * grad_output * x * x).detach()


@bug("jvp")
class WrongTangent(Function):
    """A jvp that forgets the inner derivative."""

    @staticmethod
    def forward(x):
        return torch.exp(2 * x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx, grad_output):
        (a,) = ctx.saved_tensors
        return 2 * a * grad_output

    @staticmethod
    def jvp(ctx, x_dot):
        (a,) = ctx.saved_tensors
        return a * x_dot


@bug("vmap", (normal(4, 3),))
class CountsRowsOfGradOutput(Function):
    """Another result for batched gradients, as if a size were taken from grad_output."""

    @staticmethod
    def forward(ctx, x):
        return x.sum(0)

    @staticmethod
    def backward(ctx, grad_output):
        if torch._C._functorch.is_legacy_batchedtensor(grad_output):
            return torch.zeros(4, 3, dtype=grad_output.dtype)
        return grad_output.expand(4, 3)


@bug("vmap", X, "warning")
class AsksForANumber(Function):
    """``.item()`` in backward: right, but vmap does not work."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * 2 if grad_output.abs().max().item() > 0 else torch.zeros_like(grad_output)


# --- modes ---


@bug("autocast", (normal(4, 3), normal(5, 3)), "warning")
class MixesDtypesUnderAutocast(Function):
    """Under autocast the forward product is bf16 and the saved tensors float32: the product in backward raises."""

    @staticmethod
    def forward(ctx, a, weight):
        ctx.save_for_backward(a, weight)
        return a @ weight.T

    @staticmethod
    def backward(ctx, grad_output):
        a, weight = ctx.saved_tensors
        return grad_output @ weight, grad_output.T @ a


@bug("autocast")
class WrongUnderAutocast(Function):
    """A branch for autocast that omits a factor."""

    @staticmethod
    def forward(ctx, x):
        ctx.narrow = torch.is_autocast_enabled("cpu")
        return x * 2

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output if ctx.narrow else 2 * grad_output


@bug("compile")
class OtherwiseWhenCompiled(Function):
    """A branch for the compiler that omits a factor."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return grad_output * x if torch.compiler.is_compiling() else 2 * grad_output * x


@bug("kink", (torch.tensor([[0.0, 1.5], [-2.0, 0.5]], dtype=torch.float64),), "warning")
class AtAKink(Function):
    """relu evaluated at its kink, 0, where the derivative is not defined."""

    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return z.clamp(min=0)

    @staticmethod
    def backward(ctx, grad_output):
        (z,) = ctx.saved_tensors
        return grad_output * (z > 0)


@bug("cancellation", (torch.tensor([[1e-6, 2e-6], [3e-6, -2e-6]], dtype=torch.float64),), "warning")
class Cancels(Function):
    """The derivative of (e^x − 1)/x, written so that digits cancel near 0 in float32."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.where(x == 0, torch.ones_like(x), torch.expm1(x) / x)

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return grad_output * (x.exp() * (x - 1) + 1) / (x * x)


# --- layouts, each tensor with its own ---


@bug("non_contiguous")
class TrustsTheLastStride(OfSquare):
    """A last stride of 1 is taken for contiguous, which columns of a wider tensor have, too."""

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        if x.dim() == 2 and x.stride(-1) == 1:
            x = x.as_strided(x.shape, (x.shape[1], 1))
        return 2 * grad_output * x


@bug("non_contiguous")
class TakesEqualStridesForContiguous(OfSquare):
    """Memory is read in order if both tensors have the same strides, and the result has others."""

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        if x.stride() == grad_output.stride():
            order = sorted(range(x.dim()), key=lambda axis: -x.stride(axis))
            return (2 * grad_output * x).permute(order).reshape(x.shape)
        return 2 * grad_output * x


@bug("non_contiguous", (normal(2, 3, 2, 4),))
class ForgetsChannelsLast(OfSquare):
    """An image in channels_last is read in its order in memory."""

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        gradient = 2 * grad_output * x
        if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
            return gradient.permute(0, 2, 3, 1).reshape(x.shape)
        return gradient


@bug("expanded")
class CountsAnExpandedRowOnce(OfSquare):
    """A grad_output of one expanded row is taken for the sum over rows already."""

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        if grad_output.dim() == 2 and grad_output.stride() == (0, 1):
            grad_output = grad_output / len(x)
        return 2 * grad_output * x


@bug("same_tensor", (normal(4, 3), normal(4, 3)))
class SquaresOneTensor(Function):
    """x · x is noticed, and its whole derivative is given to both places."""

    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return x * y

    @staticmethod
    def backward(ctx, grad_output):
        x, y = ctx.saved_tensors
        factor = 2 if x.data_ptr() == y.data_ptr() else 1
        return factor * grad_output * y, factor * grad_output * x


# --- sizes and values ---


@bug("odd_size")
class RowsInPairs(OfSquare):
    """Two rows at a time: the last of an odd number is left out."""

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        gradient = 2 * grad_output * x
        if x.dim() and len(x) > 1:
            gradient = torch.cat([gradient[: len(x) // 2 * 2], torch.zeros_like(gradient[len(x) // 2 * 2 :])])
        return gradient


@bug("odd_size", (normal(4, 4, 6),))
class ColumnsInPairs(OfSquare):
    """Two columns at a time: the last of an odd number is left out."""

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        gradient = 2 * grad_output * x
        if x.dim() and x.shape[-1] % 2 and x.shape[-1] > 1:
            gradient = torch.cat([gradient[..., :-1], torch.zeros_like(gradient[..., -1:])], -1)
        return gradient


@bug("size_one")
class SqueezesItsOutput(Function):
    """The mean of each row is subtracted; a ``squeeze`` makes a row of a column."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square().sum(-1)

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        columns = x.T.squeeze() if x.dim() == 2 and x.shape[0] > 1 else x.T
        return (2 * columns * grad_output).T if columns.dim() == 2 else (2 * columns * grad_output.sum())[..., None]


@bug("scalar")
class ShortcutForOneEntry(OfSine):
    """One entry is returned at once, without its derivative."""

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return grad_output * x.cos() if x.numel() > 1 else grad_output


@bug("large")
class OverflowsForLargeInputs(Function):
    """Softplus by its formula in backward: ∞ / ∞ for large z."""

    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return torch.nn.functional.softplus(z)

    @staticmethod
    def backward(ctx, grad_output):
        (z,) = ctx.saved_tensors
        return grad_output * z.exp() / (1 + z.exp())


EDGE = (torch.tensor([[0.0, 1.5, 0.3], [2.0, 0.0, 0.5]], dtype=torch.float64),)


@bug("values", EDGE)
class NanAtTheEdge(Function):
    """The derivative of x √x by its two factors: 0 · ∞ at 0, where the slope on the one side is 0."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x.sqrt()

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return grad_output * (x.sqrt() + x * 0.5 / x.sqrt())


@bug("values", EDGE)
class WrongAtTheEdge(Function):
    """A constant is added so that nothing is divided by 0: at 0 the gradient is not 0."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x.sqrt()

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return grad_output * torch.where(x == 0, 1.0, 1.5 * x.sqrt())


COMPLEX = torch.view_as_complex(normal(4, 3, 2))


@bug("values", (COMPLEX, COMPLEX + 1))
class ForgetsTheConjugate(Function):
    """A product of complex numbers, differentiated as if they were real."""

    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return x * y

    @staticmethod
    def backward(ctx, grad_output):
        x, y = ctx.saved_tensors
        return grad_output * y, grad_output * x


@bug("values", (normal(4, 4) + normal(4, 4).T,), "warning")
class SymmetricMatricesOnly(Function):
    """The trace of x², differentiated for symmetric x, where it is made symmetric."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tril().square().sum()

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        gradient = 2 * x.tril()
        return grad_output * (gradient + gradient.mT) / 2


# --- state ---


@bug("generator")
class RestoresItsSeed(Function):
    """Dropout whose backward draws the mask again from the seed, wherever the generator was."""

    @staticmethod
    def forward(ctx, x):
        ctx.seed = torch.initial_seed()
        return x * torch.bernoulli(torch.full_like(x, 0.5))

    @staticmethod
    def backward(ctx, grad_output):
        state = torch.get_rng_state()
        torch.manual_seed(ctx.seed)
        gradient = grad_output * torch.bernoulli(torch.full_like(grad_output, 0.5))
        torch.set_rng_state(state)
        return gradient


@bug("detached", severity="warning")
class NormWithoutAGradient(Function):
    """The norm, which is returned beside the normalised vector, changes with x, but has no gradient."""

    @staticmethod
    def forward(ctx, x):
        norm = x.norm(dim=-1, keepdim=True)
        ctx.mark_non_differentiable(norm)
        ctx.save_for_backward(x / norm, norm)
        return x / norm, norm

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output, _):
        unit, norm = ctx.saved_tensors
        return (grad_output - unit * (unit * grad_output).sum(-1, keepdim=True)) / norm


# --- precision, and higher derivatives ---


@bug("cancellation")
class WrongInFloat32(OfSquare):
    """A constant of the branch for float32 has lost a digit."""

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return (1.95 if x.dtype == torch.float32 else 2.0) * grad_output * x


@bug("half")
class WrongInBfloat16(OfSquare):
    """The branch for bfloat16 forgets a factor."""

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return (1.0 if x.dtype == torch.bfloat16 else 2.0) * grad_output * x


@bug("half")
class ScalesTooFarForFloat16(OfSquare):
    """grad_output is scaled up and down again, which float16 cannot hold."""

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return (grad_output * 2.0**17) * x * 2.0**-16


class _CosineThatDetaches(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.cos()

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return -grad_output * x.detach().sin()


@bug("third")
class ThirdDerivativeLost(OfSine):
    """The second derivative of sin is right, and has no graph of its own."""

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return grad_output * _CosineThatDetaches.apply(x)


# --- found by users of these checks ---


@bug("calls")
class ReturnsSharedMemory(Function):
    """Every backward writes its result into one buffer, so the next one changes what this one has returned."""

    buffers: dict = {}  # noqa: RUF012  # the mistake

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        key = (x.shape, x.dtype)
        buffer = ReturnsSharedMemory.buffers.setdefault(key, torch.empty_like(x))
        return buffer.copy_(2 * x * grad_output)


@bug("expanded")
class WritesIntoTheStridesOfGradOutput(OfSquare):
    """The result is given the strides of grad_output, which for an expanded one are no memory to write to."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        gradient = torch.empty_strided(grad_output.shape, grad_output.stride(), dtype=grad_output.dtype)
        return gradient.copy_(2 * x * grad_output)


@bug("linear")
class DropsTinyGradients(OfSine):
    """Gradients below 10⁻⁶ are set to 0, as those of a mean over a large batch are."""

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return torch.where(grad_output.abs() < 1e-6, 0.0, grad_output) * x.cos()


@bug("zeros", severity="warning")
class DividesByTheNorm(Function):
    """The norm of each row, whose gradient is 0/0 for a row of zeros, as padding is."""

    @staticmethod
    def forward(ctx, x):
        norm = x.norm(dim=-1)
        ctx.save_for_backward(x, norm)
        return norm

    @staticmethod
    def backward(ctx, grad_output):
        x, norm = ctx.saved_tensors
        return (grad_output / norm).unsqueeze(-1) * x


@bug("vmap")
class MapsAlongTheWrongAxis(Function):
    """A vmap rule that takes the mapped axis for another."""

    @staticmethod
    def forward(x):
        return x.softmax(-1)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, grad_output):
        (p,) = ctx.saved_tensors
        return p * (grad_output - (p * grad_output).sum(-1, keepdim=True))

    @staticmethod
    def vmap(info, in_dims, x):
        return x.softmax(0), in_dims[0]


@bug("jvp")
class TangentThatRaises(Function):
    """A jvp that needs what forward has not saved for it."""

    @staticmethod
    def forward(x):
        return x.exp()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, grad_output):
        (a,) = ctx.saved_tensors
        return a * grad_output

    @staticmethod
    def jvp(ctx, x_dot):
        raise RuntimeError("nothing is saved for forward mode")


@bug("size_one", (COMPLEX,))
class ForgetsAColumnOfComplexNumbers(Function):
    """A single column of complex numbers is treated apart, and wrongly."""

    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return z * z

    @staticmethod
    def backward(ctx, grad_output):
        (z,) = ctx.saved_tensors
        return (1 if z.dim() > 1 and z.shape[-1] == 1 else 2) * grad_output * z.conj()


@bug("non_contiguous", (COMPLEX,))
class ReadsMemoryOfConjugates(Function):
    """A kernel that reads memory, where a conjugated grad_output is not conjugated yet."""

    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return z * z

    @staticmethod
    def backward(ctx, grad_output):
        (z,) = ctx.saved_tensors
        in_memory = grad_output.conj() if grad_output.is_conj() else grad_output
        return 2 * in_memory * z.conj()


@bug("values")
class WrongBesideANarrowOutput(Function):
    """The gradient is off by some thousandths, and another output is a sum in float32."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin(), x.sum(-1).float()

    @staticmethod
    def backward(ctx, grad_sin, grad_sum):
        (x,) = ctx.saved_tensors
        return 1.004 * grad_sin * x.cos() + grad_sum.double().unsqueeze(-1)
