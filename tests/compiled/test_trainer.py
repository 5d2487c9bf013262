"""What is particular to the compiled trainer: memory it must not misread, changes it must see, how soon it stops."""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import deltaprop as dp
from deltaprop import UserError
from deltaprop import functional as F
from deltaprop.compiled import trainer as module
from deltaprop.core import ACTIVATIONS
from deltaprop.core.emit import CPP, JAVASCRIPT, EmitError, emit
from tests.compiled.shared import SharedTrainer
from tests.explicit.compare import F64, assert_same, problem, twin_of

X, Y = problem([5, 7, 3], rows=24)


@pytest.fixture
def ours() -> dp.CompiledTrainer:
    model = dp.MLP([5, 7, 3], "tanh", dtype=F64)
    return SharedTrainer(model, "cross_entropy", dp.SGD(model.parameters(), lr=0.1, momentum=0.9))


class TestChanges:
    def test_a_refused_dtype_is_refused_again(self, ours: dp.CompiledTrainer):
        """Memory of another dtype must never reach the library."""
        ours.step(X, Y)
        ours.model.half()
        for _ in range(2):
            with pytest.raises(UserError, match=r"torch\.float16"):
                ours.step(X.half(), Y)

    def test_a_refused_module_is_refused_again(self, ours: dp.CompiledTrainer):
        ours.step(X, Y)
        ours.model[1] = nn.Softmax(-1)
        for _ in range(2):
            with pytest.raises(UserError, match="does not have the activation softmax"):
                ours.step(X, Y)

    def test_a_change_is_not_lost_when_the_build_is_interrupted(
        self, ours: dp.CompiledTrainer, monkeypatch: pytest.MonkeyPatch
    ):
        def interrupted(*_: Any, **__: Any) -> Any:
            raise KeyboardInterrupt

        ours.step(X, Y)
        ours.model[1] = dp.ReLU()
        with monkeypatch.context() as patch:
            patch.setattr(module, "load_library", interrupted)
            with pytest.raises(KeyboardInterrupt):
                ours.step(X, Y)
        expected = F.cross_entropy(ours.model(X), Y).detach()
        torch.testing.assert_close(ours.step(X, Y), expected)

    @pytest.mark.parametrize("replace", [lambda b: b[:1].clone(), lambda b: b.float()], ids=["rows", "dtype"])
    def test_a_momentum_buffer_that_does_not_fit_is_refused(
        self, ours: dp.CompiledTrainer, replace: Callable[[Tensor], Tensor]
    ):
        ours.step(X, Y)
        state = ours.optimizer.state[ours.model[0].weight]
        state["momentum_buffer"] = replace(state["momentum_buffer"])
        with pytest.raises(UserError, match=r"the momentum buffer of a parameter, \[7, 5\] torch\.float64 on cpu, is"):
            ours.step(X, Y)

    def test_a_transposed_momentum_buffer_is_read_as_it_is(self, ours: dp.CompiledTrainer):
        ours.step(X, Y)
        twin = twin_of(ours)
        state = ours.optimizer.state[ours.model[0].weight]
        state["momentum_buffer"] = state["momentum_buffer"].t().contiguous().t()
        ours.step(X, Y)
        twin.step(X, Y)
        assert_same(ours.model, twin.model, ours.optimizer, twin.optimizer)

    def test_a_graph_of_the_old_weights_is_refused_by_autograd(self, ours: dp.CompiledTrainer):
        """As after a step of the other engines, which write through PyTorch."""
        loss = F.cross_entropy(ours.model(X), Y)
        ours.step(X, Y)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@pytest.mark.parametrize("options", [{}, {"weight": torch.tensor([0.5, 1.0, 2.0])}], ids=["plain", "weighted"])
def test_the_mean_loss_has_the_dtype_of_the_model(options: dict[str, Any]):
    model = dp.MLP([5, 7, 3], "tanh")
    loss = functools.partial(F.cross_entropy, **options)
    ours = SharedTrainer(model, loss, dp.SGD(model.parameters(), lr=0.1))
    assert ours.epoch(X.float(), Y, 5).dtype == ours.step(X.float(), Y).dtype == torch.float32


class TestInputs:
    @pytest.mark.parametrize("order", [torch.empty(0, dtype=torch.int64), torch.tensor([3, 3, 1], dtype=torch.int32)])
    def test_any_order(self, ours: dp.CompiledTrainer, order: Tensor):
        twin = twin_of(ours)
        losses = [each.epoch(X, Y, 2, order=order) for each in (ours, twin)]
        torch.testing.assert_close(*losses, equal_nan=True)

    @pytest.mark.parametrize(
        "view", [lambda x: x.t().contiguous().t(), torch._neg_view, lambda x: x.clone().requires_grad_()]
    )
    def test_any_view(self, ours: dp.CompiledTrainer, view: Callable[[Tensor], Tensor]):
        twin = twin_of(ours)
        torch.testing.assert_close(*[each.epoch(view(X), Y, 5) for each in (ours, twin)])

    def test_a_batch_size_beyond_the_rows_takes_no_more_memory(self, ours: dp.CompiledTrainer):
        twin = twin_of(ours)
        torch.testing.assert_close(*[each.epoch(X, Y, 2**40) for each in (ours, twin)])


@pytest.mark.parametrize(
    ("sizes", "activation", "batch_size"),
    [
        ([784, 30, 10], "relu", 10),
        pytest.param([1, 4096, 1], "gelu", 256, marks=pytest.mark.slow),
        pytest.param([10, 8, 5000], "relu", 1, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_call_is_short_enough_for_a_signal(sizes: list[int], activation: str, batch_size: int):
    """0.1 s are promised on an idle machine; a busy one gets ten times as long here."""
    model = dp.MLP(sizes, activation, dtype=F64)
    loss = "mse_loss" if sizes[-1] == 1 else "cross_entropy"
    ours = SharedTrainer(model, loss, dp.SGD(model.parameters(), lr=1e-3))
    x, y = problem(sizes, loss, rows=4000)

    def interrupt() -> None:
        time.sleep(0.3)
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    sent: list[float] = []
    ours.epoch(x[:batch_size], y[:batch_size], batch_size)
    threading.Thread(target=interrupt).start()

    def train() -> None:
        while True:
            ours.epoch(x, y, batch_size)

    with pytest.raises(KeyboardInterrupt):
        train()
    assert time.perf_counter() - sent[0] < 1.0


@pytest.mark.slow
def test_threads_that_cannot_be_started_are_told(ours: dp.CompiledTrainer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(SharedTrainer, "_threads", lambda self, size: 10**6)
    before = ours.model[0].weight.clone()
    with pytest.raises(UserError, match="1000000 threads cannot be started here"):
        ours.step(X, Y)
    assert torch.equal(ours.model[0].weight, before)


class TestFormulas:
    @pytest.mark.parametrize(
        ("formula", "reason"),
        [
            (lambda z: z.to(torch.int64) + z, "computes in another dtype"),
            (lambda z: z.to(dtype=torch.float16), "computes in another dtype"),
            (lambda z: (z > 0) + (z > 1), "adds or multiplies two comparisons"),
            (lambda z: torch.logical_and(z, z > 1), "joins numbers as if they were comparisons"),
            (lambda z: torch.where(z > 0, True, False), "True in a place for numbers"),
        ],
    )
    def test_what_would_become_another_function_is_refused(self, formula: Callable[[Tensor], Tensor], reason: str):
        with pytest.raises(EmitError, match=reason):
            emit(formula, "f", CPP)

    def test_a_parameter_may_have_the_name_of_a_type(self):
        assert (
            emit(lambda double: double + 1, "f", JAVASCRIPT) == "function f(double_) {\n    return (double_ + 1.0);\n}"
        )

    def test_a_constant_of_numpy_is_a_number(self):
        assert emit(ACTIVATIONS["elu"].derivative, "f", JAVASCRIPT, 1, (np.float64(0.3),)) == emit(
            ACTIVATIONS["elu"].derivative, "f", JAVASCRIPT, 1, (0.3,)
        )


def test_constants_that_are_tensors_are_refused(ours: dp.CompiledTrainer):
    ours.step(X, Y)
    slope = torch.rand(7, dtype=F64)
    ours.model[1] = dp.LeakyReLU(slope)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="does not have the activation leaky_relu: it has a constant that is a tensor"):
        ours.step(X, Y)
