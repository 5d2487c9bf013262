"""The choice of a run's loss for its data, and the conversion of targets."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from deltaprop import UserError
from deltaprop.functional import binary_cross_entropy_per_sample
from deltaprop.training.objective import choose_objective, losses


def test_auto_selects_cross_entropy_for_classification_and_mse_for_regression():
    assert choose_objective("auto", "classification", 3, "none").name == "cross-entropy"
    assert choose_objective("auto", "regression", 0, "none").name == "mse"


@pytest.mark.parametrize("loss", ["cross-entropy", "binary-cross-entropy"])
def test_a_classification_loss_is_refused_for_regression(loss: str):
    with pytest.raises(UserError, match=f"`loss='{loss}'` needs classes"):
        choose_objective(loss, "regression", 0, "none")


@pytest.mark.parametrize(
    ("loss", "output"),
    [("auto", "softmax"), ("cross-entropy", "log_softmax"), ("binary-cross-entropy", "sigmoid")],
)
def test_an_output_activation_that_the_loss_contains_is_refused(loss: str, output: str):
    with pytest.raises(UserError, match="already contains it"):
        choose_objective(loss, "classification", 3, output)


@pytest.mark.parametrize(("loss", "output"), [("mse", "softmax"), ("quadratic", "sigmoid"), ("cross-entropy", "tanh")])
def test_an_output_activation_that_the_loss_does_not_contain_is_accepted(loss: str, output: str):
    assert choose_objective(loss, "classification", 3, output).name == loss


def test_binary_cross_entropy_is_summed_over_outputs_and_averaged_over_samples():
    """At z = 0 each output has the loss ln 2 for every y: two outputs, 2 ln 2 per sample."""
    z, y = torch.zeros(5, 2), torch.tensor([[1.0, 0.0]]).expand(5, 2)
    assert_close(binary_cross_entropy_per_sample(z, y), torch.tensor(2 * math.log(2)))


def test_labels_become_one_hot_for_every_loss_but_cross_entropy():
    y = torch.tensor([2, 0])
    for name in losses():
        targets = choose_objective(name, "classification", 3, "none").targets(y, torch.float64)
        if name == "cross-entropy":
            assert targets is y
        else:
            assert_close(targets, torch.tensor([[0, 0, 1], [1, 0, 0]], dtype=torch.float64))


def test_regression_targets_are_unchanged():
    y = torch.tensor([[0.5], [1.5]])
    assert choose_objective("huber", "regression", 0, "none").targets(y, y.dtype) is y
