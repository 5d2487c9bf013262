"""The cost of a step in operations and memory, which can be counted exactly."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import deltaprop as dp
from deltaprop import functional as F
from deltaprop.core import ACTIVATIONS, LOSSES
from tests.explicit.compare import F64, targets
from tests.explicit.recorder import synchronizes
from tests.explicit.test_losses import CASES, OUTPUTS

VIEWS = {"slice", "permute", "numpy_T", "t", "view", "unsqueeze", "split", "detach", "alias"}


class Operations(TorchDispatchMode):
    """Records the name of every operation, and the shapes of newly allocated tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.synchronizations: list[str] = []
        self.allocated: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.names.append(function.overloadpacket.__name__)
        if synchronizes(function, args):
            self.synchronizations.append(self.names[-1])
        known = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        new = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        self.allocated += [tuple(t.shape) for t in new if t.untyped_storage().data_ptr() not in known]
        return result


class Net:
    """A network, and data in batches of 10."""

    def __init__(
        self, sizes: list[int], activation: str = "sigmoid", loss: Any = "cross_entropy", **options: Any
    ) -> None:
        self.model = dp.MLP(sizes, activation, dtype=F64)
        self.trainer = dp.ExplicitTrainer(self.model, loss, dp.SGD(self.model.parameters(), **{"lr": 0.1, **options}))
        self.sizes = sizes

    def epoch(self, steps: int) -> Operations:
        """Return the operations of an epoch, after one that has allocated the momentum buffers and other memory."""
        x = torch.rand(10 * steps, self.sizes[0], dtype=F64)
        y = targets(self.trainer.loss.name, 10 * steps, self.sizes[-1])
        order = torch.randperm(len(x))
        self.trainer.epoch(x, y, 10, order=order)
        with Operations() as operations:
            self.trainer.epoch(x, y, 10, order=order)
        return operations

    def step(self) -> Operations:
        """Return the operations of a single step."""
        x, y = torch.rand(10, self.sizes[0], dtype=F64), torch.randint(self.sizes[-1], (10,))
        self.trainer.step(x, y)
        with Operations() as operations:
            self.trainer.step(x, y)
        return operations


@pytest.mark.parametrize(
    ("sizes", "options", "most"),
    [
        # gathering rows 1; FWD 2 products, σ 1; C 2; ∂C/∂z of cross-entropy 4; BP2 1 product; σ' 2, its product 1;
        # BP3 2; updates 4; sum of C 1
        ([784, 30, 10], {}, 21),
        (
            [784, 30, 10],
            {"momentum": 0.9},
            21 + 4 + 2,
        ),  # θ from v four times; v of each bias is multiplied by μ separately
        ([784, 512, 512, 10], {}, 21 + 9),  # one more layer: its product, σ, BP2, σ' 2 and its product, BP3, updates 2
    ],
    ids=str,
)
def test_operations_of_a_step_within_an_epoch(sizes: list[int], options: dict[str, Any], most: int):
    """They determine the time of a small network: raise a number only if the benchmarks improve."""
    net = Net(sizes, **options)
    longer, shorter = (Counter(net.epoch(steps).names) for steps in (12, 2))
    of_ten_steps = {name: count for name, count in (longer - shorter).items() if name not in VIEWS}
    assert sum(of_ten_steps.values()) // 10 <= most, of_ten_steps  # targets are prepared once for several steps


def test_operations_of_a_single_step():
    """In addition to a step of an epoch: on a CPU 3 to check for ignored labels, and 4 to prepare the targets."""
    names = [name for name in Net([784, 30, 10]).step().names if name not in VIEWS]
    assert len(names) <= 21 - 2 + 3 + 4, names  # no rows are gathered, and C is not summed


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_no_gradient_of_a_weight_is_stored(momentum: float):
    """δᵀ a is added to W or v in one product, so no tensor with the shape of a weight is allocated."""
    for operations in (Net([50, 30, 20, 7], momentum=momentum).step(), Net([50, 30, 20, 7]).epoch(2)):
        assert not {(30, 50), (20, 30), (7, 20)} & set(operations.allocated)


def test_a_stored_gradient_is_detected():
    """The test above can fail: Nesterov uses a gradient twice and so stores it."""
    assert {(30, 50), (20, 30), (7, 20)} <= set(Net([50, 30, 20, 7], momentum=0.9, nesterov=True).step().allocated)


def test_no_gradient_of_the_inputs_is_computed():
    """∂C/∂x is not needed: no tensor of the shape [N, n_0] is allocated."""
    assert (10, 50) not in Net([50, 30, 10]).step().allocated


def test_no_gradient_is_computed_below_the_lowest_trainable_layer():
    """If all layers but the last are frozen, there is one forward product per layer, and BP4 of the last."""
    net = Net([50, 30, 20, 7])
    for layer in list(net.model)[:-1]:
        layer.requires_grad_(False)
    names = Counter(net.step().names)
    assert names["linear"] + names["addmm"] + names["mm"] + names["matmul"] == 4


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_no_activation_uses_a_backward_kernel_of_pytorch(activation: str):
    for operations in (Net([5, 4, 3], activation).step(), Net([5, 4, 3], activation).epoch(2)):
        assert [name for name in operations.names if "backward" in name] == []


@pytest.mark.parametrize("loss", LOSSES)
def test_no_loss_uses_a_backward_kernel_of_pytorch(loss: str):
    names = Net([5, 4, 3], loss=loss).epoch(2).names
    assert names
    assert [name for name in names if "backward" in name] == []


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_steps_do_not_wait_for_the_device(name: str, options: dict[str, Any]):
    """An epoch synchronizes at its beginning, to check labels and order, and not at each step."""
    loss = partial(getattr(F, name), **options)
    net = Net([5, 7, OUTPUTS], loss=loss, momentum=0.9, nesterov=True, weight_decay=0.1)
    assert len(net.epoch(12).synchronizations) == len(net.epoch(2).synchronizations)


def test_a_synchronization_is_detected():
    with Operations() as operations:
        torch.ones(2).sum().item()
    assert len(operations.synchronizations) == 1


def test_memory_of_a_step_does_not_grow():
    """The memory of the layers is reused: a second epoch of the same sizes allocates none."""
    net = Net([50, 30, 20, 7])
    addresses = []
    for rows in (30, 7, 20):  # 7 rows are a smaller batch, in the same memory
        net.trainer.epoch(torch.rand(rows, 50, dtype=F64), torch.randint(7, (rows,)), 10)
        layers = net.trainer._workspace.layers
        memory = [t for layer in layers for t in (layer.z, layer.grad_a_out) if t is not None]
        assert len(memory) == 2 * len(layers) - 1  # ∂C/∂a^L is the loss's
        addresses.append([t.data_ptr() for t in memory])
    assert addresses[0] == addresses[1] == addresses[2]
