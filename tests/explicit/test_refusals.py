"""Unsupported models, optimizers and batches are refused by name, before any update, with a remedy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

import deltaprop as dp
from deltaprop import UserError
from deltaprop import functional as F
from tests.explicit.compare import (
    F64,
    X,
    Y,
    weights,
)


class TestRefusals:
    """Unsupported models, optimizers and batches are refused by name, before any update, with a remedy."""

    @pytest.mark.parametrize(
        ("model", "message"),
        [
            (lambda: nn.Linear(2, 2), "takes an nn.Sequential, got Linear"),
            (
                lambda: nn.Sequential(nn.Linear(2, 2), nn.Dropout()),
                r"module 1 \(Dropout\) is neither a linear layer nor",
            ),
            (lambda: nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.LayerNorm(2))), r"module 1.0 \(LayerNorm\)"),
            (lambda: nn.Sequential(nn.ReLU(), nn.Linear(2, 2)), r"module 0 \(ReLU\) does not follow a linear layer"),
            (lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Tanh()), r"module 2 \(Tanh\) does not follow"),
            (lambda: nn.Sequential(), "no linear layer"),
            (
                lambda: nn.Sequential(nn.Linear(2, 3), nn.Linear(2, 2)),
                "a layer of 3 outputs comes before",
            ),
            (lambda: nn.Sequential(*[nn.Linear(2, 2)] * 2), "layers share a parameter"),
            (
                lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, dtype=F64)),
                "must all be torch.float32",
            ),
            (lambda: Hooked(), r"module 0 \(Linear\) has hooks or a forward"),
            (lambda: OwnForward(nn.Linear(2, 2)), "the model has a forward or hooks"),
            (lambda: patched(nn.Sequential(nn.Linear(2, 2))), "the model has a forward or hooks"),
            (lambda: nn.Sequential(nn.Linear(2, 2), Steeper()), r"module 1 \(Steeper\) is neither"),
            (lambda: nn.Sequential(nn.Linear(2, 2)).requires_grad_(False), "nothing to learn"),
            (lambda: nn.Sequential(nn.Linear(2, 2), nn.Softmax(1)), "cross_entropy already contains Softmax"),
        ],
    )
    def test_models(self, model: Callable[[], nn.Module], message: str):
        built = model()
        parameters = list(built.parameters()) or [nn.Parameter(torch.ones(1))]
        with pytest.raises(UserError, match=message):
            dp.ExplicitTrainer(built, "cross_entropy", dp.SGD(parameters))

    def test_hooks_on_all_modules(self):
        model = nn.Sequential(nn.Linear(2, 2))
        trainer = dp.ExplicitTrainer(model, "mse_loss", dp.SGD(model.parameters()))
        handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
        try:
            with pytest.raises(UserError, match="hooks on all modules"):
                trainer.step(torch.ones(1, 2), torch.ones(1, 2))
        finally:
            handle.remove()
        trainer.step(torch.ones(1, 2), torch.ones(1, 2))

    def test_a_users_module_is_sent_to_autograd(self):
        model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
        with pytest.raises(UserError, match="engine='autograd'"):
            dp.ExplicitTrainer(model, "mse_loss", dp.SGD(model.parameters()))

    def test_a_sigmoid_before_binary_cross_entropy(self):
        model = dp.MLP([2, 1], output_activation="sigmoid")
        with pytest.raises(UserError, match="already contains Sigmoid"):
            dp.ExplicitTrainer(model, F.binary_cross_entropy_with_logits, dp.SGD(model.parameters()))

    def test_other_optimizers(self):
        model = dp.MLP([2, 1])
        with pytest.raises(UserError, match=r"SGD.*got Adam"):
            dp.ExplicitTrainer(model, "mse_loss", torch.optim.Adam(model.parameters()))

    def test_a_hook_added_later(self, trainer: dp.ExplicitTrainer):
        trainer.step(X, Y)
        trainer.model[0].register_forward_hook(lambda *_: None)
        with pytest.raises(UserError, match="has hooks"):
            trainer.epoch(X, Y, 8)

    @pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
    def test_a_parameter_hook_added_later(self, trainer: dp.ExplicitTrainer, register: str):
        trainer.step(X, Y)
        handle = getattr(trainer.model[0].weight, register)(lambda *_: None)
        with pytest.raises(UserError, match=r"a parameter of shape \[7, 5\] has hooks"):
            trainer.step(X, Y)
        handle.remove()
        trainer.step(X, Y)

    @pytest.mark.parametrize(
        ("x", "y", "message"),
        [
            (X[:, :4], Y, r"inputs must be \[N, 5\] with N at least 1, got \[23, 4\]"),
            (X[0], Y[:1], r"inputs must be \[N, 5\] with N at least 1, got \[5\]"),
            (X[:0], Y[:0], r"got \[0, 5\]"),
            (X.float(), Y, "inputs must have the model's dtype, torch.float64, got torch.float32"),
            (X, Y[:5], r"labels must be \[23\], one for each row, got \[5\]"),
            (X, Y + 1, "labels must be 0 to 2, as there are 3 outputs, got 3"),
            (X, Y - 1, "labels must be 0 to 2, as there are 3 outputs, got -1"),
        ],
    )
    def test_data(self, trainer: dp.ExplicitTrainer, x: Tensor, y: Tensor, message: str):
        before = weights(trainer)
        for call in (lambda: trainer.step(x, y), lambda: trainer.epoch(x, y, 8)):
            with pytest.raises(UserError, match=message):
                call()
        assert torch.equal(weights(trainer), before)
        assert not trainer.optimizer.state  # no velocity was created

    @pytest.mark.parametrize(
        "options",
        [
            {"weight": torch.ones(3, dtype=F64)},
            {"label_smoothing": 0.1},
            {"ignore_index": 1},
            {"weight": torch.ones(3, dtype=F64), "label_smoothing": 0.1, "reduction": "sum"},
        ],
        ids=str,
    )
    @pytest.mark.parametrize(("wrong", "message"), [(3, "got 3"), (-1, "got -1"), (200, "got 200")])
    def test_a_label_that_is_not_a_class(self, options: dict[str, Any], wrong: int, message: str):
        """With every option of the loss and in any row; also in a single step before the first update."""
        model = dp.MLP([5, 7, 3], "tanh", dtype=F64)
        loss = partial(F.cross_entropy, **options)
        trainer = dp.ExplicitTrainer(model, loss, dp.SGD(model.parameters(), lr=0.1, momentum=0.9))
        before, y = weights(trainer), Y.clone()
        y[20] = wrong
        for call in (lambda: trainer.step(X, y), lambda: trainer.epoch(X, y, 8)):
            with pytest.raises(UserError, match=f"labels must be 0 to 2, as there are 3 outputs, {message}"):
                call()
        assert torch.equal(weights(trainer), before)
        assert not trainer.optimizer.state

    def test_contradictory_options_set_later(self, trainer: dp.ExplicitTrainer):
        """The constructor of the optimizer would refuse them."""
        trainer.step(X, Y)
        before = weights(trainer)
        trainer.optimizer.param_groups[0].update(nesterov=True, dampening=0.5)
        for call in (lambda: trainer.step(X, Y), lambda: trainer.epoch(X, Y, 8)):
            with pytest.raises(UserError, match="nesterov needs a dampening of 0"):
                call()
        assert torch.equal(weights(trainer), before)

    def test_targets_that_would_be_broadcast(self):
        model = dp.MLP([5, 1], dtype=F64)
        trainer = dp.ExplicitTrainer(model, "mse_loss", dp.SGD(model.parameters()))
        with pytest.raises(UserError, match=r"targets must be \[23, 1\], as the outputs are, got \[23\]"):
            trainer.epoch(X, Y.double(), 8)

    @pytest.mark.parametrize(
        ("order", "message"),
        [
            (torch.arange(24), "order must hold rows 0 to 22, got 0 to 23"),
            (torch.tensor([-1]), "order must hold rows 0 to 22, got -1 to -1"),
            (torch.ones(23, dtype=torch.bool), r"order must be row indices \[M\] of int64, got torch.bool"),
        ],
    )
    def test_orders(self, trainer: dp.ExplicitTrainer, order: Tensor, message: str):
        before = weights(trainer)
        with pytest.raises(UserError, match=message):
            trainer.epoch(X, Y, 8, order=order)
        assert torch.equal(weights(trainer), before)

    def test_inputs_that_are_not_tensors(self, trainer: dp.ExplicitTrainer):
        with pytest.raises(UserError, match=r"must be tensors .*got ndarray and Tensor"):
            trainer.step(X.numpy(), Y)
        with pytest.raises(UserError, match="order must be a tensor of row indices, got list"):
            trainer.epoch(X, Y, 8, order=[1, 2])

    def test_sparse_data(self, trainer: dp.ExplicitTrainer):
        before = weights(trainer)
        for call in (lambda: trainer.step(X.to_sparse(), Y), lambda: trainer.epoch(X.to_sparse(), Y, 8)):
            with pytest.raises(UserError, match=r"must be dense tensors, got torch\.sparse_coo"):
                call()
        assert torch.equal(weights(trainer), before)

    def test_an_argument_that_is_not_an_optimizer(self):
        with pytest.raises(UserError, match=r"without autograd supports dp\.SGD and torch\.optim\.SGD, got NoneType"):
            dp.ExplicitTrainer(dp.MLP([2, 1]), "mse_loss", None)  # type: ignore[arg-type]

    def test_float_labels(self, trainer: dp.ExplicitTrainer):
        with pytest.raises(UserError, match=r"class probabilities, \[23, 3\], got \[23\]; labels are whole numbers"):
            trainer.epoch(X, Y.double(), 8)

    @pytest.mark.parametrize("dtype", [torch.int32, torch.bool], ids=str)
    def test_labels_of_a_dtype_that_the_loss_refuses(self, trainer: dp.ExplicitTrainer, dtype: torch.dtype):
        with pytest.raises(RuntimeError):
            F.cross_entropy(trainer.model(X), Y.to(dtype))
        with pytest.raises(UserError, match=f"labels must be of int64 or uint8, got {dtype}"):
            trainer.epoch(X, Y.to(dtype), 8)

    def test_training_within_training(self, trainer: dp.ExplicitTrainer):
        with pytest.raises(UserError, match="epoch was called within an epoch of the same trainer"):
            trainer.epoch(X, Y, 8, on_step=lambda step: trainer.epoch(X, Y, 8))
        trainer.epoch(X, Y, 8)  # and works afterwards

    def test_optimizer_step_hooks(self):
        model = dp.MLP([2, 1])
        optimizer = dp.SGD(model.parameters())
        optimizer.register_step_pre_hook(lambda *_: None)
        with pytest.raises(UserError, match="SGD with step hooks"):
            dp.ExplicitTrainer(model, "mse_loss", optimizer)

    @pytest.mark.parametrize("everywhere", [False, True])
    def test_optimizer_step_hooks_added_later(self, trainer: dp.ExplicitTrainer, everywhere: bool):
        trainer.step(X, Y)
        register = register_optimizer_step_post_hook if everywhere else trainer.optimizer.register_step_post_hook
        handle = register(lambda *_: None)
        try:
            with pytest.raises(UserError, match="SGD with step hooks"):
                trainer.step(X, Y)
        finally:
            handle.remove()
        trainer.step(X, Y)

    def test_parameters_that_become_non_contiguous(self, trainer: dp.ExplicitTrainer):
        trainer.model[0] = dp.Linear(5, 5, dtype=F64)
        trainer.model[2] = dp.Linear(5, 3, dtype=F64)
        trainer.optimizer.param_groups[0]["params"] = list(trainer.model.parameters())
        trainer.step(X, Y)
        weight = trainer.model[0].weight
        weight.data = weight.data.t()  # the same memory, transposed
        with pytest.raises(UserError, match="parameters must be contiguous"):
            trainer.step(X, Y)

    def test_batch_size_and_start(self, trainer: dp.ExplicitTrainer):
        with pytest.raises(UserError, match="batch_size must be a whole number, at least 1, got 0"):
            trainer.epoch(X, Y, 0)
        with pytest.raises(UserError, match=r"batch_size must be a whole number, at least 1, got 2\.5"):
            trainer.epoch(X, Y, 2.5)  # type: ignore[arg-type]
        with pytest.raises(UserError, match="batch_size must be a whole number, at least 1, got True"):
            trainer.epoch(X, Y, True)
        with pytest.raises(UserError, match="on_step must be a function of the number of steps done, got 3"):
            trainer.epoch(X, Y, 8, on_step=3)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=r"generator must be a torch\.Generator, got 0"):
            trainer.epoch(X, Y, 8, generator=0)  # type: ignore[arg-type]
        with pytest.raises(UserError, match="order and generator both"):
            trainer.epoch(X, Y, 8, order=torch.arange(23), generator=torch.Generator())
        with pytest.raises(UserError, match="start must be a step of the epoch, 0 to 3, got 4"):
            trainer.epoch(X, Y, 8, start=4)
        with pytest.raises(UserError, match=r"start must be a step of the epoch, a whole number, got 1\.0"):
            trainer.epoch(X, Y, 8, start=1.0)  # type: ignore[arg-type]


class Steeper(dp.Tanh):
    """A subclass of an activation with another forward."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class OwnForward(nn.Sequential):
    """A subclass of Sequential with another forward."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def patched(model: nn.Module) -> nn.Module:
    """Return the model with a forward set on the instance."""
    model.forward = lambda input: 2 * input  # type: ignore[method-assign]
    return model


class Hooked(nn.Sequential):
    """A Sequential with a hook on its layer."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(2, 2))
        self[0].register_forward_hook(lambda *_: None)
