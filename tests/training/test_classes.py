"""Binary classification with one or two logits, and balanced class weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from deltaprop import UserError
from deltaprop.cli import main
from deltaprop.cli.console import describe
from deltaprop.training import Result, TrainConfig
from deltaprop.training.engines import ENGINES
from deltaprop.training.load_run import load_run
from deltaprop.training.objective import Objective, balanced, choose_objective
from deltaprop.training.setup import prepare
from tests.training.conftest import without_times

Run = Callable[..., Result]

Z = torch.tensor([-30.0, -2.0, 0.0, 0.5, 3.0, 40.0], dtype=torch.float64)  # logits
Y = torch.tensor([0, 1, 1, 0, 0, 0])


def one(**options: Any) -> Objective:
    """Return binary cross-entropy on one logit."""
    return choose_objective("auto", "classification", 2, "none", one_logit=True, **options)


def two(**options: Any) -> Objective:
    """Return cross-entropy on two logits."""
    return choose_objective("auto", "classification", 2, "none", **options)


def logits(z: torch.Tensor, shift: float = 0.7) -> torch.Tensor:
    """Return two logits whose difference is z; both are shifted, which does not change the softmax."""
    return torch.stack([torch.full_like(z, shift), z + shift], dim=1)


# One logit and two --------------------------------------------------------------------------------------------------


def test_auto_selects_binary_cross_entropy_for_one_logit():
    assert (one().name, two().name) == ("binary-cross-entropy", "cross-entropy")


def test_one_logit_by_hand():
    """At z = ln 3: σ = 3/4; the loss of class 1 is ln 4/3, of class 0 ln 4."""
    objective, z = one(), torch.tensor([[math.log(3.0)]], dtype=torch.float64)
    assert_close(objective.probabilities(z), torch.tensor([[0.25, 0.75]], dtype=torch.float64))
    for label, cost in ((1, math.log(4 / 3)), (0, math.log(4))):
        y = objective.targets(torch.tensor([label]), z.dtype)
        assert objective(z, y).item() == pytest.approx(cost)


def test_one_logit_gives_the_probabilities_and_decisions_of_two():
    """σ(z) equals the softmax of two logits whose difference is z."""
    ours, theirs = one(), two()
    assert_close(ours.probabilities(Z[:, None]), theirs.probabilities(logits(Z)), rtol=1e-12, atol=0)
    decisive = Z != 0  # at 0 both classes are equally likely
    assert torch.equal(ours.decide(Z[:, None])[decisive], theirs.decide(logits(Z))[decisive])
    assert ours.decide(Z[:, None])[decisive].tolist() == [0, 0, 1, 1, 1]


@pytest.mark.parametrize("weights", [None, balanced([4, 2])], ids=["alike", "balanced"])
def test_the_gradient_for_one_logit_matches_two_logits(weights: list[float] | None):
    """∂C/∂z = w_y (σ(z) − y) / N = ∂C/∂z₁ = −∂C/∂z₀; the balanced weights of the six samples sum to six."""
    w = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    ours, theirs = one(class_weights=w), two(class_weights=w)
    z1, z2 = Z[:, None].clone().requires_grad_(), logits(Z).requires_grad_()
    ours(z1, ours.targets(Y, torch.float64)).backward()
    theirs(z2, Y).backward()
    by_hand = (torch.sigmoid(Z) - Y) * (1.0 if w is None else w[Y]) / 6
    assert_close(z1.grad, by_hand[:, None], rtol=1e-12, atol=1e-15)
    assert_close(z2.grad[:, 1:], z1.grad, rtol=1e-12, atol=1e-15)
    assert_close(z2.grad[:, :1], -z1.grad, rtol=1e-12, atol=1e-15)


def test_one_logit_has_a_finite_loss_for_large_logits():
    """At z = ±1000 the loss of the wrong class is 1000, not infinite."""
    objective = one()
    z = torch.tensor([[1000.0], [-1000.0]], dtype=torch.float64)
    assert objective(z, objective.targets(torch.tensor([0, 1]), z.dtype)).item() == pytest.approx(1000)


def test_a_net_of_one_logit_has_one_output():
    setup = prepare(TrainConfig(data="moons", hidden=(8,), one_logit=True))
    assert setup.sizes == [2, 8, 1]


@pytest.mark.parametrize("loss", ["mse", "huber", "l1", "quadratic"])
def test_one_output_without_a_logit_decides_at_one_half(loss: str):
    """Targets are 0 and 1, so the prediction is the nearer one."""
    outputs = torch.tensor([[0.4], [0.6], [-0.1]])
    objective = choose_objective(loss, "classification", 2, "none", one_logit=True)
    assert objective.decide(outputs).tolist() == [0, 1, 0]


@pytest.mark.parametrize(("classes", "task"), [(3, "classification"), (0, "regression")])
def test_one_logit_is_refused_without_two_classes(classes: int, task: Any):
    with pytest.raises(UserError, match="`one_logit` is for two classes"):
        choose_objective("auto", task, classes, "none", one_logit=True)


def test_one_logit_is_refused_for_cross_entropy():
    with pytest.raises(UserError, match="binary-cross-entropy"):
        choose_objective("cross-entropy", "classification", 2, "none", one_logit=True)


# Balanced classes ---------------------------------------------------------------------------------------------------


def test_balanced_by_hand():
    """N / (C n_c): for 1, 1 and 4 of 6 samples in three classes 2, 2 and 1/2; each class has the total weight 2."""
    assert balanced([1, 1, 4]) == [2.0, 2.0, 0.5]
    assert balanced([3, 3]) == [1.0, 1.0]


@pytest.mark.parametrize("logits_", ["one", "two"])
def test_balanced_loss_by_hand(logits_: str):
    """Class 0 three times at z = 0, class 1 once at ln 3, weights 2/3 and 2: (3 · 2/3 ln 2 + 2 ln 4/3) / 4."""
    w = torch.tensor(balanced([3, 1]), dtype=torch.float64)
    z, y = torch.tensor([0, 0, 0, math.log(3.0)], dtype=torch.float64), torch.tensor([0, 0, 0, 1])
    objective = one(class_weights=w) if logits_ == "one" else two(class_weights=w)
    outputs = z[:, None] if logits_ == "one" else logits(z)
    c = objective(outputs, objective.targets(y, torch.float64))
    assert c.item() == pytest.approx((2 * math.log(2) + 2 * math.log(4 / 3)) / 4)


@pytest.fixture
def unbalanced(tmp_path: Path) -> str:
    """A table of 90 rows of one class and 10 of another; the classes overlap."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(100, 2, generator=draw)
    lines = [f"{a + (i >= 90):.4f},{b:.4f},{'rare' if i >= 90 else 'common'}" for i, (a, b) in enumerate(x.tolist())]
    (tmp_path / "t.csv").write_text("a,b,y\n" + "\n".join(lines) + "\n")
    return str(tmp_path / "t.csv")


@pytest.mark.parametrize("one_logit", [False, True], ids=["two logits", "one"])
def test_balanced_weights_come_from_the_training_rows(unbalanced: str, one_logit: bool):
    """20 of 100 are test rows, 2 of them rare; a quarter of 80 are validation rows, 2 rare: 54 and 6 training rows.

    So a rare sample counts 54/6 = 9 times a common one. At z = 0 each sample has the loss ln 2, and so has the mean.
    """
    config = TrainConfig(
        data=unbalanced, class_weight="balanced", one_logit=one_logit, val_fraction=0.25, hidden=(4,), dtype="float64"
    )
    setup = prepare(config)
    y = setup.dataset.train.y
    assert torch.bincount(y).tolist() == [54, 6]
    z = torch.zeros(60, 1 if one_logit else 2, dtype=torch.float64, requires_grad=True)
    cost = setup.objective(z, setup.objective.targets(y, z.dtype))
    assert cost.item() == pytest.approx(math.log(2))
    cost.backward()
    of_common, of_rare = (z.grad[y == label][:, -1].abs().unique() for label in (0, 1))
    assert of_rare.item() == pytest.approx(9 * of_common.item())


@pytest.mark.parametrize("one_logit", [False, True], ids=["two logits", "one"])
@pytest.mark.parametrize("batch_size", [1, 16])
def test_balanced_class_weights_change_the_trained_weights(run: Run, unbalanced: str, one_logit: bool, batch_size: int):
    """With every batch size: a sample of the rare class counts nine times a common one."""
    settings = {"data": unbalanced, "one_logit": one_logit, "batch_size": batch_size, "lr": 0.01}
    plain, balanced_bytes = (
        (run(class_weight=weight, **settings).folder / "model.safetensors").read_bytes()
        for weight in ("none", "balanced")
    )
    assert plain != balanced_bytes


@pytest.mark.parametrize("batch_size", [1, 16, 1000])
def test_balanced_gradients_match_for_one_and_two_logits(unbalanced: str, batch_size: int):
    """At weights 0, where both networks give the same outputs, ∂C/∂w with one logit is ∂C/∂w₁ with two."""
    gradients = []
    for one_logit in (True, False):
        config = TrainConfig(data=unbalanced, class_weight="balanced", hidden=(), one_logit=one_logit, dtype="float64")
        setup = prepare(config)
        for parameter in setup.model.parameters():
            torch.nn.init.zeros_(parameter)
        x, y = setup.dataset.train.x[:batch_size], setup.dataset.train.y[:batch_size]
        setup.objective(setup.model(x), setup.objective.targets(y, x.dtype)).backward()
        (weight, _) = setup.model.parameters()
        gradients.append(weight.grad[-1])
    assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_the_header_and_info_show_balanced_class_weights(run: Run, unbalanced: str, capsys: pytest.CaptureFixture[str]):
    for weight in ("balanced", "none"):
        result = run(data=unbalanced, class_weight=weight)
        header = dict(describe(load_run(result.folder)))["loss"]
        assert main(["info", str(result.folder)]) == 0
        for text in (header, capsys.readouterr().out):
            assert ("balanced class weights" in text) == (weight == "balanced")


@pytest.mark.parametrize("loss", ["mse", "binary-cross-entropy"])
def test_balanced_is_refused_for_losses_without_class_weights(run: Run, unbalanced: str, loss: str):
    with pytest.raises(UserError, match=f"`class_weight='balanced'` is for .*not for {loss}"):
        run(data=unbalanced, class_weight="balanced", loss=loss)


def test_balanced_is_refused_for_regression(run: Run):
    with pytest.raises(UserError, match="`class_weight='balanced'`: the target is numeric"):
        run(data="sine", class_weight="balanced")


@pytest.mark.parametrize("one_logit", [False, True], ids=["two logits", "one"])
@pytest.mark.parametrize("class_weight", ["none", "balanced"])
@pytest.mark.parametrize("batch_size", [7, 16])
@pytest.mark.usefixtures("compiler")
def test_all_engines_give_the_same_metrics(
    run: Run, unbalanced: str, one_logit: bool, class_weight: str, batch_size: int
):
    """In float64, over three epochs whose last batch is smaller."""
    settings = {"data": unbalanced, "one_logit": one_logit, "class_weight": class_weight, "batch_size": batch_size}
    lines = [without_times(run(engine=engine, dtype="float64", **settings)) for engine in ENGINES]
    for first, *others in zip(*lines, strict=True):
        for other in others:
            assert first == pytest.approx(other, rel=1e-9)
