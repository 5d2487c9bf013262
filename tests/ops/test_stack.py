"""A stack of layers as one Function: the same numbers as layer by layer, in every mode, and nothing passed over."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

import deltaprop as dp
from deltaprop import functional as F
from deltaprop import ops

NAMES = sorted(ops.ACTIVATIONS)


def layered(model: nn.Sequential) -> nn.Sequential:
    """Return the same modules in a plain Sequential, which calls one after the other."""
    return nn.Sequential(*model)


def gradients(model: nn.Module, x: Tensor, grad_a: Tensor) -> list[Tensor]:
    """Return ∂C/∂x and the gradients of the parameters that learn."""
    asked = [t for t in (x, *model.parameters()) if t.requires_grad]
    return list(torch.autograd.grad(model(x), asked, grad_a))


def mlp(activation: Any, output: Any = None, **options: Any) -> dp.MLP:
    return dp.MLP([4, 5, 3, 2], activation, output, dtype=torch.float64, **options)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("output", [None, "sigmoid", "softmax"])
@pytest.mark.parametrize("shape", [(6, 4), (4,), (2, 3, 4), (0, 4)], ids=str)
def test_it_is_the_layers_one_by_one(name: str, output: str | None, shape: tuple[int, ...]):
    model = mlp(name, output)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    grad_a = torch.randn(*shape[:-1], 2, dtype=torch.float64)
    kept = grad_a.clone()
    assert torch.equal(model(x), layered(model)(x))
    for ours, theirs in zip(gradients(model, x, grad_a), gradients(layered(model), x, grad_a), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-15)
    assert torch.equal(grad_a, kept)  # never written over


def test_it_is_one_node_of_the_tape():
    x = torch.randn(3, 4, dtype=torch.float64)
    assert type(mlp("tanh")(x).grad_fn).__name__ == "StackBackward"


def test_activations_differ_by_layer_and_have_constants():
    model = mlp([dp.LeakyReLU(0.3), "softplus"])
    x = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    grad_a = torch.randn(6, 2, dtype=torch.float64)
    for ours, theirs in zip(gradients(model, x, grad_a), gradients(layered(model), x, grad_a), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(
    "frozen", [["0.weight"], ["0.bias"], ["0.weight", "0.bias"], ["2.weight"], ["4.bias"]], ids=str
)
@pytest.mark.parametrize("asks_x", [False, True])
def test_frozen_parameters(frozen: list[str], asks_x: bool):
    model = mlp("tanh")
    for name, p in model.named_parameters():
        p.requires_grad_(name not in frozen)
    x = torch.randn(6, 4, dtype=torch.float64, requires_grad=asks_x)
    grad_a = torch.randn(6, 2, dtype=torch.float64)
    for ours, theirs in zip(gradients(model, x, grad_a), gradients(layered(model), x, grad_a), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-15)


def test_no_biases():
    model = mlp("sigmoid", bias=False)
    x = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    grad_a = torch.randn(6, 2, dtype=torch.float64)
    for ours, theirs in zip(gradients(model, x, grad_a), gradients(layered(model), x, grad_a), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "softplus", "gelu", "log_softmax"])
def test_gradcheck_and_gradgradcheck(name: str):
    model = mlp(name)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    inputs = (x, *(p.detach().clone().requires_grad_() for p in model.parameters()))

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        named = dict(zip((n for n, _ in model.named_parameters()), parameters, strict=True))
        return torch.func.functional_call(model, named, (x,))

    assert gradcheck(run, inputs, check_batched_grad=True)
    assert gradgradcheck(run, inputs, check_batched_grad=True)


def test_a_second_derivative_is_pytorchs():
    """What is kept of the inside is no input and no output: differentiated once more, it would be silently wrong."""
    model, x = mlp("sigmoid"), torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    seconds = []
    for m in (model, dp.to_torch(model)):
        (slope,) = torch.autograd.grad(m(x).square().sum(), x, create_graph=True)
        seconds.append(torch.autograd.grad(slope.square().sum(), [x, *m.parameters()], allow_unused=True))
    for ours, theirs in zip(*seconds, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-13)


def test_one_tensor_in_two_places_gets_the_sum_of_both():
    """W² is W¹: its gradient is the sum, the first derivative and the second."""
    shared = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    sigmas = [ops.Sigma(ops.ACTIVATIONS["tanh"], ops.activation["tanh"], ()), None]
    x = torch.randn(5, 4, dtype=torch.float64)

    def run(w: Tensor) -> Tensor:
        return ops.stack(sigmas, x, w, None, w, None)

    assert type(run(shared).grad_fn).__name__ == "StackBackward"
    assert gradcheck(run, (shared,))
    assert gradgradcheck(run, (shared,))
    assert_a_graph_changes_no_gradient(run, shared)


def assert_a_graph_changes_no_gradient(run: Callable[[Tensor], Tensor], w: Tensor) -> None:
    """For gradgradcheck would pass the right derivative of a wrong gradient."""
    (plain,), (graphed,) = (torch.autograd.grad(run(w).square().sum(), w, create_graph=g) for g in (False, True))
    torch.testing.assert_close(graphed, plain, rtol=1e-12, atol=1e-14)


def test_inputs_that_follow_from_each_other_get_each_their_own():
    """W² = 2 W¹, with a graph of its own: the second derivative asks for ∂C/∂W¹ as if W² stood still."""
    w1 = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    sigmas = [ops.Sigma(ops.ACTIVATIONS["tanh"], ops.activation["tanh"], ()), None]
    x = torch.randn(5, 4, dtype=torch.float64)

    def run(w: Tensor) -> Tensor:
        return ops.stack(sigmas, x, w, None, 2 * w, None)

    assert gradcheck(run, (w1,))
    assert gradgradcheck(run, (w1,))
    assert_a_graph_changes_no_gradient(run, w1)


def test_without_a_tape_no_activation_outlives_the_next():
    """To evaluate a net takes the memory of its widest layers, not of all of them."""
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal most
            out = function(*args, **(kwargs or {}))
            alive.append(weakref.ref(out))
            most = max(most, sum(t() is not None and t().shape == (6, 5) for t in alive))
            return out

    model, x = dp.MLP([5] * 9, "gelu", dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    with torch.no_grad(), Watch():
        a = model(x)
    assert most <= 3
    assert torch.equal(a, model(x))


def test_the_lowest_products_are_not_made():
    """∂C/∂x that nobody asked for, and what lies below the lowest layer that learns."""

    class Products(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            Products.count += function.overloadpacket.__name__ in ("mm", "addmm")
            return function(*args, **(kwargs or {}))

    model = mlp("tanh")
    for p in model[0].parameters():
        p.requires_grad_(False)
    c = model(torch.randn(6, 4, dtype=torch.float64)).sum()
    with Products():
        c.backward()
    assert Products.count == 3  # ∂C/∂W of layers 3 and 2, and ∂C/∂a of layer 2


class TestNothingIsPassedOver:
    """Whatever a module would do besides its formula is done."""

    @pytest.fixture
    def x(self) -> Tensor:
        return torch.randn(6, 4, dtype=torch.float64)

    @pytest.mark.parametrize(
        "register",
        [
            lambda module, seen: module.register_forward_hook(lambda *_: seen.append("called")),
            lambda module, seen: module.register_forward_pre_hook(lambda *_: seen.append("called")),
            lambda module, seen: module.register_full_backward_hook(lambda *_: seen.append("called")),
            lambda module, seen: module.register_full_backward_pre_hook(lambda *_: seen.append("called")),
        ],
        ids=["forward", "forward_pre", "backward", "backward_pre"],
    )
    @pytest.mark.parametrize("index", [0, 1, 4])
    def test_hooks(self, x: Tensor, register: Any, index: int):
        model, seen = mlp("tanh"), []
        handle = register(model[index], seen)
        model(x.requires_grad_()).sum().backward()
        assert seen == ["called"]
        handle.remove()
        assert type(model(x).grad_fn).__name__ == "StackBackward"

    def test_global_hooks(self, x: Tensor):
        seen: list[str] = []
        handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module).__name__))
        try:
            mlp("tanh")(x)
        finally:
            handle.remove()
        assert seen == ["Linear", "Tanh", "Linear", "Tanh", "Linear", "MLP"]

    def test_modules_of_another_kind(self, x: Tensor):
        model = mlp("tanh")
        model[1] = nn.Hardtanh(-0.1, 0.1)
        assert torch.equal(model(x), layered(model)(x))
        model[0] = nn.utils.parametrizations.weight_norm(model[0])
        assert torch.equal(model(x), layered(model)(x))

    def test_a_forward_of_its_own(self, x: Tensor):
        model = mlp("tanh")
        model[1].forward = lambda z: z + 1  # type: ignore[method-assign]
        assert torch.equal(model(x), layered(model)(x))

    def test_two_activations_in_a_row(self, x: Tensor):
        model = mlp("tanh")
        model.insert(2, dp.Sigmoid())
        assert torch.equal(model(x), layered(model)(x))


class TestModes:
    """What one Function cannot do is done layer by layer."""

    def test_torch_func(self):
        model = mlp("tanh")
        x = torch.randn(6, 4, dtype=torch.float64)
        ours = torch.func.vmap(torch.func.jacrev(model))(x)
        theirs = torch.func.vmap(torch.func.jacrev(dp.to_torch(model)))(x)
        torch.testing.assert_close(ours, theirs)

    def test_forward_mode(self):
        model = mlp("tanh")
        x, x_dot = torch.randn(2, 6, 4, dtype=torch.float64)
        _, ours = torch.func.jvp(model, (x,), (x_dot,))
        _, theirs = torch.func.jvp(dp.to_torch(model), (x,), (x_dot,))
        torch.testing.assert_close(ours, theirs)

    def test_gradients_of_many_outputs_at_once(self):
        """``is_grads_batched`` maps over the backward itself."""
        model = mlp("tanh")
        x = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
        many = torch.randn(7, 6, 2, dtype=torch.float64)
        (batched,) = torch.autograd.grad(model(x), x, many, is_grads_batched=True)
        for grad_a, ours in zip(many, batched, strict=True):
            torch.testing.assert_close(ours, torch.autograd.grad(model(x), x, grad_a)[0])

    def test_a_tangent_of_the_gradient_given(self):
        """Forward mode over a backward of a tape that was kept before."""
        model = mlp("tanh")
        x = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
        grad_a, grad_a_dot = torch.randn(2, 6, 2, dtype=torch.float64)
        a = model(x)
        with forward_ad.dual_level():
            (grad_x,) = torch.autograd.grad(a, x, forward_ad.make_dual(grad_a, grad_a_dot))
            tangent = forward_ad.unpack_dual(grad_x).tangent
        torch.testing.assert_close(tangent, torch.autograd.grad(model(x), x, grad_a_dot)[0])  # backward is linear

    def test_the_meta_device(self):
        """Shapes without numbers, which know of no autocast."""
        model = mlp("tanh").to("meta")
        assert model(torch.empty(6, 4, dtype=torch.float64, device="meta")).shape == (6, 2)

    def test_parameters_that_are_plain_tensors(self):
        """As in a replica of ``nn.DataParallel``, whose attributes are tensors with a graph."""
        model, x = mlp("tanh"), torch.randn(6, 4, dtype=torch.float64)
        expected = model(x)
        for module in (model[0], model[2], model[4]):
            for name in ("weight", "bias"):
                p = module._parameters.pop(name)
                setattr(module, name, p * 1)
        assert torch.equal(model(x), expected)

    def test_autocast(self):
        model = dp.MLP([4, 5, 2], "gelu")
        twin, x = dp.to_torch(copy.deepcopy(model)), torch.randn(6, 4)
        for m in (model, twin):
            with torch.autocast("cpu", torch.bfloat16):
                a = m(x)
            assert a.dtype == torch.bfloat16
            a.float().sum().backward()
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            assert p.grad.dtype == torch.float32
            torch.testing.assert_close(p.grad, q.grad, rtol=0.02, atol=0.02)

    @pytest.mark.usefixtures("fresh_compiler")
    @pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning")
    def test_compiler(self):
        model, x = mlp("tanh"), torch.randn(6, 4, dtype=torch.float64)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), model(x))

    def test_complex_input_is_refused(self):
        with pytest.raises(TypeError, match="written for real numbers"):
            mlp("tanh")(torch.randn(6, 4, dtype=torch.complex128))

    def test_saved_tensors_are_freed_with_the_output(self):
        model, x = mlp("tanh"), torch.randn(6, 4, dtype=torch.float64)
        loss = F.mse_loss(model(x), torch.zeros(6, 2, dtype=torch.float64))
        loss.backward()
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()


def test_what_a_step_by_autograd_costs():
    """Of a 784-30-10 net in tensor calls, views left out: none is added unseen."""

    class Calls(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.names: list[str] = []

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.names.append(function.overloadpacket.__name__)
            return function(*args, **(kwargs or {}))

    model = dp.MLP([784, 30, 10], "sigmoid")
    x, y = torch.rand(10, 784), torch.randint(10, (10,))
    with Calls() as calls:
        F.cross_entropy(model(x), y).backward()
    counted = [name for name in calls.names if name not in ("t", "detach", "view", "permute")]
    assert counted == [
        *["addmm", "sigmoid_", "addmm"],
        *["_log_softmax", "nll_loss_forward", "ones_like"],
        *["nll_loss_backward", "_log_softmax_backward_data"],
        *["mm", "sum", "mm", "sigmoid_backward", "mm", "sum"],
    ]
