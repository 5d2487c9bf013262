"""What a step costs, in operations and in memory: figures that no clock can blur."""

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
from tests.explicit.recorder import asks
from tests.explicit.test_losses import CASES, OUTPUTS

VIEWS = {"slice", "permute", "numpy_T", "t", "view", "unsqueeze", "split", "detach", "alias"}


class Operations(TorchDispatchMode):
    """Records the name of every operation, and the shapes of all new memory."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.questions: list[str] = []
        self.allocated: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.names.append(function.overloadpacket.__name__)
        if asks(function, args):
            self.questions.append(self.names[-1])
        known = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        new = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        self.allocated += [tuple(t.shape) for t in new if t.untyped_storage().data_ptr() not in known]
        return result


class Net:
    """A net, and data in batches of 10."""

    def __init__(
        self, sizes: list[int], activation: str = "sigmoid", loss: Any = "cross_entropy", **options: Any
    ) -> None:
        self.model = dp.MLP(sizes, activation, dtype=F64)
        self.trainer = dp.ExplicitTrainer(self.model, loss, dp.SGD(self.model.parameters(), **{"lr": 0.1, **options}))
        self.sizes = sizes

    def epoch(self, steps: int) -> Operations:
        """Return what an epoch does, after one that has made momentum buffers and all memory that stays."""
        x = torch.rand(10 * steps, self.sizes[0], dtype=F64)
        y = targets(self.trainer.loss.name, 10 * steps, self.sizes[-1])
        order = torch.randperm(len(x))
        self.trainer.epoch(x, y, 10, order=order)
        with Operations() as operations:
            self.trainer.epoch(x, y, 10, order=order)
        return operations

    def step(self) -> Operations:
        """Return what a step taken singly does."""
        x, y = torch.rand(10, self.sizes[0], dtype=F64), torch.randint(self.sizes[-1], (10,))
        self.trainer.step(x, y)
        with Operations() as operations:
            self.trainer.step(x, y)
        return operations


@pytest.mark.parametrize(
    ("sizes", "options", "most"),
    [
        # the rows gathered 1; FWD 2 products, σ 1; C 2; ∂C/∂z of cross-entropy 4; BP2 1 product; σ' 2, its product 1;
        # BP3 2; updates 4; C added up 1
        ([784, 30, 10], {}, 21),
        ([784, 30, 10], {"momentum": 0.9}, 21 + 4 + 2),  # θ by v, four times; v of a bias is multiplied by μ apart
        ([784, 512, 512, 10], {}, 21 + 9),  # a layer more: its product, σ, BP2, σ' 2 and its product, BP3, updates 2
    ],
    ids=str,
)
def test_operations_of_a_step_within_an_epoch(sizes: list[int], options: dict[str, Any], most: int):
    """They are the time of a small net: raise a number only if the benchmarks are better for it."""
    net = Net(sizes, **options)
    longer, shorter = (Counter(net.epoch(steps).names) for steps in (12, 2))
    of_ten_steps = {name: count for name, count in (longer - shorter).items() if name not in VIEWS}
    assert sum(of_ten_steps.values()) // 10 <= most, of_ten_steps  # targets are made ready now and then


def test_operations_of_a_single_step():
    """Besides those of an epoch's step: on a CPU 3 to see that no label is ignored, and the targets made ready, 4."""
    names = [name for name in Net([784, 30, 10]).step().names if name not in VIEWS]
    assert len(names) <= 21 - 2 + 3 + 4, names  # nothing is gathered, and C is not added up


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_no_gradient_of_a_weight_is_stored(momentum: float):
    """δᵀ a is added to W, or to v, in one product: nothing of a weight's shape is ever new."""
    for operations in (Net([50, 30, 20, 7], momentum=momentum).step(), Net([50, 30, 20, 7]).epoch(2)):
        assert not {(30, 50), (20, 30), (7, 20)} & set(operations.allocated)


def test_a_stored_gradient_is_detected():
    """The test above can fail: Nesterov adds a gradient twice, and so stores it."""
    assert {(30, 50), (20, 30), (7, 20)} <= set(Net([50, 30, 20, 7], momentum=0.9, nesterov=True).step().allocated)


def test_no_gradient_of_the_inputs_is_computed():
    """Nobody asks for ∂C/∂x: apart from the rows themselves nothing has the shape [N, n_0]."""
    assert (10, 50) not in Net([50, 30, 10]).step().allocated


def test_no_gradient_is_computed_below_the_lowest_trainable_layer():
    """With all but the last layer frozen there is one product forward for each, and BP4 of the last."""
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
    """An epoch asks the device at its beginning, whether labels and order are what they should be; not as it goes."""
    loss = partial(getattr(F, name), **options)
    net = Net([5, 7, OUTPUTS], loss=loss, momentum=0.9, nesterov=True, weight_decay=0.1)
    assert len(net.epoch(12).questions) == len(net.epoch(2).questions)


def test_a_synchronization_is_detected():
    with Operations() as operations:
        torch.ones(2).sum().item()
    assert len(operations.questions) == 1


def test_memory_of_a_step_does_not_grow():
    """What layers write is written over: in a second epoch of the same sizes none of their memory is new."""
    net = Net([50, 30, 20, 7])
    places = []
    for rows in (30, 7, 20):  # of 7 rows a smaller batch, in the same place
        net.trainer.epoch(torch.rand(rows, 50, dtype=F64), torch.randint(7, (rows,)), 10)
        layers = net.trainer._workspace.layers
        memory = [t for layer in layers for t in (layer.z, layer.grad_a_out) if t is not None]
        assert len(memory) == 2 * len(layers) - 1  # ∂C/∂a^L is the loss's
        places.append([t.data_ptr() for t in memory])
    assert places[0] == places[1] == places[2]
