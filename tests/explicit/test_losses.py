"""The losses in the explicit engine: ∂C/∂a of each batch, and the mean of C over an epoch."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import deltaprop as dp
from deltaprop import UserError
from deltaprop import functional as F
from deltaprop.explicit import batches
from deltaprop.loss_spec import LossSpec, parse_loss
from tests.explicit.compare import F64, targets

N, OUTPUTS = 6, 4
WEIGHT = torch.tensor([0.5, 1.0, 2.0, 0.0], dtype=F64)

CASES: list[tuple[str, dict[str, Any]]] = [
    ("mse_loss", {}),
    ("mse_loss", {"reduction": "sum"}),
    ("l1_loss", {}),
    ("l1_loss", {"reduction": "sum"}),
    ("huber_loss", {"delta": 0.3}),
    ("huber_loss", {"reduction": "sum"}),
    ("quadratic_loss", {}),
    ("binary_cross_entropy_with_logits", {}),
    ("binary_cross_entropy_with_logits", {"reduction": "sum"}),
    ("binary_cross_entropy_with_logits", {"weight": WEIGHT, "pos_weight": 1 + WEIGHT}),
    ("binary_cross_entropy_per_sample", {}),
    ("cross_entropy", {}),
    ("cross_entropy", {"reduction": "sum"}),
    ("cross_entropy", {"ignore_index": 2}),
    ("cross_entropy", {"label_smoothing": 0.2}),
    ("cross_entropy", {"weight": WEIGHT}),
    ("cross_entropy", {"weight": WEIGHT, "label_smoothing": 0.2}),
    ("cross_entropy", {"weight": WEIGHT, "reduction": "sum", "label_smoothing": 0.1}),
    ("cross_entropy", {"weight": WEIGHT, "ignore_index": 1, "label_smoothing": 0.1}),
]


def reference(name: str, options: dict[str, Any], a: Tensor, y: Tensor) -> Tensor:
    """Return C computed by PyTorch."""
    functional = torch.nn.functional
    if name == "quadratic_loss":
        return functional.mse_loss(a, y, reduction="sum") / (2 * len(a))
    if name == "binary_cross_entropy_per_sample":
        return functional.binary_cross_entropy_with_logits(a, y, reduction="sum") / len(a)
    c: Tensor = getattr(functional, name)(a, y, **options)
    return c


def losses_of(name: str, options: dict[str, Any]) -> LossSpec:
    return parse_loss(partial(getattr(F, name), **options))


def compare(name: str, options: dict[str, Any], a: Tensor, y: Tensor) -> None:
    """Compare C and ∂C/∂a of each batch with PyTorch's; the targets are prepared for all batches at once."""
    loss = losses_of(name, options).on_targets(y)
    by_batch = zip(*[t.split(N) for t in loss.targets(y, torch.empty_like(a))], strict=True)
    for part, prepared, target in zip(a.split(N), by_batch, y.split(N), strict=True):
        part = part.clone().requires_grad_()
        expected = reference(name, options, part, target)
        c, saved = loss.forward(part.detach(), prepared[0])
        torch.testing.assert_close(c, expected.detach(), rtol=1e-13, atol=1e-14)
        grad_a = loss.grad_input(saved, prepared)
        torch.testing.assert_close(grad_a, torch.autograd.grad(expected, part)[0], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_value_and_gradient_match_pytorch(name: str, options: dict[str, Any]):
    a = 3 * torch.randn(3 * N, OUTPUTS, dtype=F64)
    compare(name, options, a, targets(name, len(a), OUTPUTS))


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.2}, {"weight": WEIGHT}, {"reduction": "sum"}], ids=str)
def test_ignored_labels_do_not_count(options: dict[str, Any]):
    a = torch.randn(2 * N, OUTPUTS, dtype=F64)
    y = torch.tensor([0, -100, 2, 1, -100, 3, *[1, 2, 0, -100, -100, -100]])
    compare("cross_entropy", options, a, y)


def test_class_probabilities():
    a = torch.randn(2 * N, OUTPUTS, dtype=F64)
    y = torch.softmax(torch.randn_like(a), 1)
    for options in ({}, {"label_smoothing": 0.1, "weight": WEIGHT}, {"reduction": "sum"}):
        compare("cross_entropy", options, a, y)


def test_an_impossible_class_does_not_affect_the_others():
    """With a logit of −∞ for another class C is finite, as in PyTorch; 0 · (−∞) would be NaN."""
    z, y = torch.randn(2 * N, OUTPUTS, dtype=F64), torch.arange(2 * N) % 2
    z[:, 2] = -torch.inf
    compare("cross_entropy", {}, z, y)


def test_many_classes():
    compare("cross_entropy", {}, torch.randn(N, 300, dtype=F64), torch.randint(300, (N,)))


def test_logits_of_800_do_not_overflow():
    z, y = torch.tensor([[800.0, -800.0]], dtype=F64), torch.tensor([1])
    loss = parse_loss("cross_entropy")
    c, log_p = loss.forward(z, y)
    assert c == 1600  # log(1 + e^−1600) + 1600
    assert loss.grad_input(log_p, loss.targets(y, z)).tolist() == [[1, -1]]  # p − y


class Fixed:
    """A trainer with η = 0, so that the mean of C over an epoch is C of all rows at once."""

    def __init__(self, loss: Any, outputs: int = OUTPUTS, dtype: torch.dtype = F64) -> None:
        self.model = dp.MLP([5, outputs], dtype=dtype)
        self.trainer = dp.ExplicitTrainer(self.model, loss, dp.SGD(self.model.parameters(), lr=0.0))

    def assert_mean(self, expected: Tensor, x: Tensor, y: Tensor, batch_size: int = 8, **options: Any) -> None:
        mean = self.trainer.epoch(x, y, batch_size, **options)
        torch.testing.assert_close(mean, expected.detach(), rtol=1e-12, atol=0)


class TestEpochMean:
    """Each sample counts once, by its class weight, whatever its batch; ignored samples do not count."""

    @pytest.mark.parametrize("batch_size", [1, 8, 23, 40])
    @pytest.mark.parametrize(
        ("name", "options"), [case for case in CASES if case[1].get("reduction") != "sum"], ids=str
    )
    def test_the_mean_equals_the_loss_of_all_rows(self, name: str, options: dict[str, Any], batch_size: int):
        """23 rows; in batches of one row C is NaN if the class has weight 0 or the label is ignored.

        (With a weight of 0 and smoothing C would be infinite there, also in PyTorch, and the mean undefined.)
        """
        if {"weight", "label_smoothing"} <= options.keys():
            options = {**options, "weight": 0.25 + WEIGHT}
        net = Fixed(partial(getattr(F, name), **options))
        x, y = torch.randn(23, 5, dtype=F64), targets(name, 23, OUTPUTS)
        expected = reference(name, options, net.model(x), y)
        net.assert_mean(expected, x, y, batch_size)
        net.assert_mean(expected, x, y, batch_size, order=torch.randperm(23))

    def test_batches_with_more_and_fewer_ignored_labels(self):
        """4, 1, 0 and 3 of 4 labels count. With equal weights of the batches the mean would be different."""
        net = Fixed("cross_entropy")
        x = torch.randn(16, 5, dtype=F64)
        y = torch.tensor([0, 1, 2, 3, *[-100, -100, 2, -100], *[-100] * 4, *[1, -100, 0, 2]])
        a = net.model(x)
        expected = torch.nn.functional.cross_entropy(a, y)
        of_batches = [torch.nn.functional.cross_entropy(*batch) for batch in zip(a.split(4), y.split(4), strict=True)]
        assert not math.isclose(expected.item(), torch.stack(of_batches).nanmean().item(), rel_tol=1e-3)
        net.assert_mean(expected, x, y, 4)

    def test_the_mean_is_nan_if_every_label_is_ignored(self):
        net = Fixed("cross_entropy")
        assert net.trainer.epoch(torch.randn(4, 5, dtype=F64), torch.full((4,), -100), 2).isnan()

    def test_with_reduction_sum_it_is_the_mean_of_the_sums(self):
        """Sums over batches of 2, 2 and 1 rows, weighted by their rows."""
        net = Fixed(partial(F.mse_loss, reduction="sum"))
        x, y = torch.randn(5, 5, dtype=F64), torch.randn(5, OUTPUTS, dtype=F64)
        parts = zip(net.model(x).split(2), y.split(2), strict=True)
        expected = sum(len(a) * torch.nn.functional.mse_loss(a, b, reduction="sum") for a, b in parts) / 5
        net.assert_mean(expected, x, y, 2)

    def test_a_nan_step_makes_the_mean_nan(self):
        """Divergence shows in the mean; only a batch in which every label is ignored is left out."""
        net = Fixed("cross_entropy")
        x, y = torch.randn(8, 5, dtype=F64), torch.arange(8) % OUTPUTS
        x[3] = torch.nan
        assert net.trainer.epoch(x, y, 2).isnan()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_batch_of_ignored_labels_has_a_gradient_of_0(momentum: float):
    """C is NaN, as in PyTorch, but no parameter is; with momentum v decays and is applied as usual."""
    model = dp.MLP([5, 3, OUTPUTS], dtype=F64)
    sgd = dp.SGD(model.parameters(), lr=0.1, momentum=momentum)
    trainer = dp.ExplicitTrainer(model, "cross_entropy", sgd)
    x, ignored = torch.randn(4, 5, dtype=F64), torch.full((4,), -100)
    trainer.step(x, torch.arange(4))
    before = [p.detach().clone() for p in model.parameters()]
    velocities = [sgd.state[p]["momentum_buffer"].clone() if momentum else 0 * p for p in model.parameters()]
    assert trainer.step(x, ignored).isnan()
    for p, q, v in zip(model.parameters(), before, velocities, strict=True):
        torch.testing.assert_close(p.detach(), (q - 0.1 * momentum * v).detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("name", "options"), [case for case in CASES if case[0] != "l1_loss"], ids=str)
def test_the_number_of_targets_prepared_at_once_changes_no_bit(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    x, y, order = torch.randn(50, 5, dtype=F64), targets(name, 50, OUTPUTS), torch.randperm(50)
    start = dp.MLP([5, 7, OUTPUTS], "tanh", dtype=F64).state_dict()
    ends: list[tuple[Tensor, Tensor]] = []
    for at_once in (1, 7 * 2 * OUTPUTS, 2**16):  # a batch; two; all
        monkeypatch.setattr(batches, "TARGETS_AT_ONCE", at_once)
        model = dp.MLP([5, 7, OUTPUTS], "tanh", dtype=F64)
        model.load_state_dict(start)
        trainer = dp.ExplicitTrainer(model, partial(getattr(F, name), **options), dp.SGD(model.parameters(), lr=0.1))
        mean = trainer.epoch(x, y, 7, order=order)
        ends.append((mean, torch.nn.utils.parameters_to_vector(model.parameters())))
    for mean, weights in ends[1:]:
        assert torch.equal(mean, ends[0][0])
        assert torch.equal(weights, ends[0][1])


class TestInvalidOptions:
    """Options that would broadcast wrongly, or fail on the smaller last batch, are refused before any update."""

    @staticmethod
    def train(loss: str, options: dict[str, Any], y: Tensor) -> None:
        model = dp.MLP([2, 3])
        t = dp.ExplicitTrainer(model, partial(getattr(F, loss), **options), dp.SGD(model.parameters()))
        before = [p.clone() for p in model.parameters()]
        try:
            t.epoch(torch.ones(len(y), 2), y, 2)
        except UserError:
            assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
            raise

    @pytest.mark.parametrize("weight", [torch.ones(2), torch.ones(1, 3), torch.ones(3, dtype=F64)], ids=str)
    def test_class_weights(self, weight: Tensor):
        with pytest.raises(UserError, match=r"weight must hold one number a class, \[3\] of torch.float32, got"):
            self.train("cross_entropy", {"weight": weight}, torch.tensor([0, 1, 2]))

    @pytest.mark.parametrize(
        ("loss", "weight", "message"),
        [
            ("cross_entropy", [1.0, 2.0, 3.0], r"weight must hold one number a class, \[3\] of torch.float32, got \[1"),
            ("binary_cross_entropy_with_logits", 2.0, r"weight must be a tensor, \[3\], got 2\.0"),
        ],
    )
    def test_weights_that_are_not_a_tensor(self, loss: str, weight: Any, message: str):
        y = torch.arange(3) if loss == "cross_entropy" else torch.ones(5, 3)
        with pytest.raises(UserError, match=message):
            self.train(loss, {"weight": weight}, y)

    @pytest.mark.parametrize("name", ["weight", "pos_weight"])
    @pytest.mark.parametrize("shape", [(2, 3), (2,), (3, 1)])
    def test_entry_weights_that_differ_by_sample_are_refused(self, name: str, shape: tuple[int, ...]):
        with pytest.raises(UserError, match=rf"{name} must be one number an output, \[3\], got .*autograd"):
            self.train("binary_cross_entropy_with_logits", {name: torch.ones(shape)}, torch.ones(5, 3))

    @pytest.mark.parametrize("shape", [(), (1,), (3,), (1, 3)])
    def test_entry_weights_shared_by_all_samples_are_accepted(self, shape: tuple[int, ...]):
        self.train("binary_cross_entropy_with_logits", {"weight": torch.ones(shape)}, torch.ones(5, 3))

    def test_entry_weights_of_mse_are_refused(self):
        with pytest.raises(UserError, match=r"not support weights of the entries in mse_loss.*autograd"):
            self.train("mse_loss", {"weight": torch.ones(5, 3)}, torch.ones(5, 3))

    def test_ignore_index_with_probabilities_is_refused(self):
        with pytest.raises(UserError, match="ignore_index is for labels"):
            self.train("cross_entropy", {"ignore_index": 0}, torch.full((4, 3), 1 / 3))


@pytest.mark.parametrize(
    ("name", "options"), [case for case in CASES if not case[1].keys() & {"weight", "ignore_index"}], ids=str
)
def test_weights_of_samples_weight_their_losses(name: str, options: dict[str, Any]):
    """C = Σ w_n C_n / Σ w_n of each batch, with C_n PyTorch's loss of sample n, and its gradient by autograd."""
    torch.manual_seed(3)
    model, weights = dp.MLP([3, OUTPUTS], dtype=F64), torch.rand(N, dtype=F64) + 0.1
    x, y = torch.randn(N, 3, dtype=F64), targets(name, N, OUTPUTS)
    optimizer = dp.SGD(model.parameters(), lr=1.0)
    by_hand = dp.MLP([3, OUTPUTS], dtype=F64)
    by_hand.load_state_dict(model.state_dict())
    each = torch.stack([reference(name, options, by_hand(x[n : n + 1]), y[n : n + 1]) for n in range(N)])
    total = (weights * each).sum() if options.get("reduction") == "sum" else (weights * each).sum() / weights.sum()
    total.backward()
    trainer = dp.ExplicitTrainer(model, partial(getattr(F, name), **options), optimizer)
    mean = trainer.epoch(x, y, N, sample_weight=weights)
    expected = total / N * N if options.get("reduction") == "sum" else total
    torch.testing.assert_close(mean, expected.detach(), rtol=1e-12, atol=1e-14)
    for p, q in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(p.detach(), (q - q.grad).detach(), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(
    ("loss", "weights", "message"),
    [
        ("mse", torch.ones(N - 1, dtype=F64), r"sample_weight must be a tensor, \[6\], .* got \[5\]"),
        ("mse", [1.0] * N, "got list"),
        ("mse", torch.ones(N), "sample_weight must be of torch.float64 on cpu"),
        ("mse", torch.zeros(N, dtype=F64), "finite and above 0 for each row: leave rows of weight 0 out"),
        ("mse", torch.full((N,), math.inf, dtype=F64), "finite and above 0"),
        (partial(F.cross_entropy, weight=WEIGHT), torch.ones(N, dtype=F64), "multiply them into sample_weight"),
        (partial(F.cross_entropy, ignore_index=1), torch.ones(N, dtype=F64), "not supported where labels are ignored"),
    ],
    ids=["too few", "a list", "float32", "zeros", "infinity", "class weights", "ignored labels"],
)  # fmt: skip
def test_weights_that_do_not_fit_are_refused(loss: Any, weights: Any, message: str):
    model = dp.MLP([3, OUTPUTS], dtype=F64)
    trainer = dp.ExplicitTrainer(model, loss, dp.SGD(model.parameters(), lr=1.0))
    y = torch.zeros(N, OUTPUTS, dtype=F64) if loss == "mse" else torch.tensor([0, 1, 2, 3, 1, 0])
    before = model[0].weight.clone()
    with pytest.raises(UserError, match=message):
        trainer.epoch(torch.ones(N, 3, dtype=F64), y, 2, sample_weight=weights)
    assert torch.equal(model[0].weight, before)
