"""The accepted forms of a loss, refused losses, the weights of batches, and training with new rows of the tables."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deltaprop as dp
from deltaprop import UserError, core
from deltaprop import functional as F
from deltaprop.core import LOSSES
from deltaprop.loss_spec import LossSpec, parse_loss, short_name
from deltaprop.nn.modules import activation_module
from tests.explicit.compare import assert_same, by_autograd, targets

F64 = torch.float64
WEIGHT = torch.tensor([0.5, 1.0, 2.0], dtype=F64)
OF_TORCH = [name for name in LOSSES if hasattr(nn.functional, name)]

# Every loss module of torch.nn that is supported, with each of its options.
MODULES: list[tuple[nn.Module, str, dict[str, Any]]] = [
    (nn.CrossEntropyLoss(), "cross_entropy", {}),
    (nn.CrossEntropyLoss(WEIGHT), "cross_entropy", {"weight": WEIGHT}),
    (nn.CrossEntropyLoss(ignore_index=1), "cross_entropy", {"ignore_index": 1}),
    (nn.CrossEntropyLoss(reduction="sum"), "cross_entropy", {"reduction": "sum"}),
    (nn.CrossEntropyLoss(label_smoothing=0.2), "cross_entropy", {"label_smoothing": 0.2}),
    (
        nn.CrossEntropyLoss(WEIGHT, ignore_index=2, reduction="sum", label_smoothing=0.1),
        "cross_entropy",
        {"weight": WEIGHT, "ignore_index": 2, "reduction": "sum", "label_smoothing": 0.1},
    ),
    (nn.BCEWithLogitsLoss(), "binary_cross_entropy_with_logits", {}),
    (nn.BCEWithLogitsLoss(WEIGHT), "binary_cross_entropy_with_logits", {"weight": WEIGHT}),
    (nn.BCEWithLogitsLoss(pos_weight=WEIGHT), "binary_cross_entropy_with_logits", {"pos_weight": WEIGHT}),
    (nn.BCEWithLogitsLoss(reduction="sum"), "binary_cross_entropy_with_logits", {"reduction": "sum"}),
    (nn.MSELoss(), "mse_loss", {}),
    (nn.MSELoss(reduction="sum"), "mse_loss", {"reduction": "sum"}),
    (nn.L1Loss(), "l1_loss", {}),
    (nn.L1Loss(reduction="sum"), "l1_loss", {"reduction": "sum"}),
    (nn.HuberLoss(), "huber_loss", {}),
    (nn.HuberLoss(delta=0.3), "huber_loss", {"delta": 0.3}),
    (nn.HuberLoss("sum", 0.3), "huber_loss", {"reduction": "sum", "delta": 0.3}),
]


def assert_is(loss: Any, name: str, **options: Any) -> None:
    """Assert that ``parse_loss`` gives this loss, with these options and defaults for the others."""
    spec = parse_loss(loss)
    assert spec.name == name
    assert spec.definition is LOSSES[name]
    for option, default in LOSSES[name].options().items():
        expected, actual = options.get(option, default), spec.options.get(option, default)
        assert actual is expected if isinstance(expected, Tensor) else actual == expected, option


class TestForms:
    """A function, PyTorch's function of the same name, a name, a partial and a module of torch.nn are equivalent."""

    @pytest.mark.parametrize("name", LOSSES)
    def test_a_function(self, name: str):
        assert_is(getattr(F, name), name)

    @pytest.mark.parametrize("name", OF_TORCH)
    def test_pytorchs_function_of_the_same_name(self, name: str):
        assert_is(getattr(nn.functional, name), name)

    @pytest.mark.parametrize("name", LOSSES)
    def test_a_python_name(self, name: str):
        assert_is(name, name)

    @pytest.mark.parametrize(
        ("name", "row"),
        [
            ("cross-entropy", "cross_entropy"),
            ("binary-cross-entropy", "binary_cross_entropy_per_sample"),
            ("binary-cross-entropy-with-logits", "binary_cross_entropy_with_logits"),
            ("mse", "mse_loss"),
            ("quadratic", "quadratic_loss"),
            ("huber", "huber_loss"),
            ("l1", "l1_loss"),
        ],
    )
    def test_a_command_line_name(self, name: str, row: str):
        assert_is(name, row)
        assert short_name(row) == name

    def test_command_line_names_are_unique(self):
        assert len({short_name(row) for row in LOSSES}) == len(LOSSES)

    @pytest.mark.parametrize("module", [F, nn.functional], ids=["ours", "PyTorch's"])
    def test_a_partial_with_options(self, module: Any):
        assert_is(partial(module.huber_loss, delta=0.3, reduction="sum"), "huber_loss", delta=0.3, reduction="sum")
        smoothed = partial(partial(module.cross_entropy, weight=WEIGHT), label_smoothing=0.1)
        assert_is(smoothed, "cross_entropy", weight=WEIGHT, label_smoothing=0.1)

    def test_an_option_of_none_is_the_default(self):
        assert_is(partial(F.cross_entropy, weight=None), "cross_entropy")

    @pytest.mark.parametrize(("module", "name", "options"), MODULES, ids=lambda value: repr(value)[:60])
    def test_a_module_with_its_options(self, module: nn.Module, name: str, options: dict[str, Any]):
        assert_is(module, name, **options)

    @pytest.mark.parametrize(("module", "name", "options"), MODULES, ids=lambda value: repr(value)[:60])
    def test_a_module_has_its_own_value_and_gradient(self, module: nn.Module, name: str, options: dict[str, Any]):
        a, y = torch.randn(6, 3, dtype=F64, requires_grad=True), targets(name, 6, 3)
        expected, spec = module(a, y), parse_loss(module)
        c, saved = spec.forward(a.detach(), y)
        torch.testing.assert_close(c, expected.detach(), rtol=1e-13, atol=1e-14)
        (gradient,) = torch.autograd.grad(expected, a)
        torch.testing.assert_close(spec.grad_input(saved, spec.targets(y, saved)), gradient, rtol=1e-13, atol=1e-14)

    def test_a_loss_spec_is_returned_unchanged(self):
        spec = parse_loss("mse")
        assert parse_loss(spec) is spec

    @pytest.mark.parametrize("name", LOSSES)
    def test_calling_it_equals_the_function(self, name: str):
        a, y = torch.randn(6, 3, dtype=F64, requires_grad=True), targets(name, 6, 3)
        c = parse_loss(name)(a, y)
        assert torch.equal(c, getattr(F, name)(a, y))
        assert c.requires_grad


class TestRefusals:
    @pytest.mark.parametrize(
        ("loss", "message"),
        [
            ("cross_entrpy", r"unknown loss 'cross_entrpy': did you mean 'cross_entropy'\? \(known: cross_entropy, "),
            ("cross-entropi", r"unknown loss 'cross-entropi': did you mean 'cross_entropy'\?"),
            ("hinge", r"unknown loss 'hinge'.*known: cross_entropy, .*l1_loss\)"),
            (lambda a, y: a.sum(), r"no δ for the loss <lambda> here: take one of cross_entropy, .*l1_loss"),
            (nn.functional.nll_loss, "no δ for the loss nll_loss here: take one of"),
            (nn.NLLLoss(), "no δ for the loss NLLLoss here: take one of"),
            (nn.functional.smooth_l1_loss, "no δ for the loss smooth_l1_loss here"),
            (None, "the loss must be a function or its name, got NoneType"),
            (3, "the loss must be a function or its name, got int"),
        ],
        ids=lambda value: value if isinstance(value, str) else getattr(value, "__name__", repr(value)),
    )
    def test_an_unsupported_loss(self, loss: Any, message: str):
        with pytest.raises(UserError, match=message):
            parse_loss(loss)

    def test_a_subclass_of_a_pytorch_loss(self):
        """The changes of a subclass are unknown, so it is refused."""

        class Mine(nn.MSELoss):
            def forward(self, input: Tensor, target: Tensor) -> Tensor:
                return 2 * super().forward(input, target)

        with pytest.raises(UserError, match="no δ for the loss Mine here"):
            parse_loss(Mine())

    @pytest.mark.parametrize(
        ("loss", "message"),
        [
            (partial(F.mse_loss, smoothing=1), "mse_loss has no option 'smoothing'; it has reduction, weight"),
            (
                partial(F.cross_entropy, pos_weight=1),
                "has no option 'pos_weight'; it has ignore_index, label_smoothing, reduction, weight",
            ),
            (partial(F.quadratic_loss, reduction="sum"), "quadratic_loss has no option 'reduction'; it has none"),
            (partial(nn.functional.mse_loss, size_average=True), "mse_loss has no option 'size_average'"),
        ],
        ids=lambda value: value if isinstance(value, str) else value.func.__name__,
    )
    def test_an_unknown_option(self, loss: Any, message: str):
        with pytest.raises(UserError, match=message):
            parse_loss(loss)

    @pytest.mark.parametrize("reduction", ["none", None, "average"])
    def test_a_reduction_to_more_than_one_number(self, reduction: Any):
        with pytest.raises(UserError, match=f"must be one number: reduction 'mean' or 'sum', got {reduction!r}"):
            parse_loss(partial(F.mse_loss, reduction=reduction))

    def test_a_module_without_reduction(self):
        with pytest.raises(UserError, match="must be one number: reduction 'mean' or 'sum', got 'none'"):
            parse_loss(nn.CrossEntropyLoss(reduction="none"))

    def test_options_by_position(self):
        with pytest.raises(UserError, match="options of the loss must be given by keyword, got 1 by position"):
            parse_loss(partial(F.mse_loss, torch.ones(1)))

    @pytest.mark.parametrize("delta", [-1, 0, float("nan")])
    def test_a_huber_delta_that_is_not_positive(self, delta: float):
        for loss in (partial(F.huber_loss, delta=delta), nn.HuberLoss(delta=delta)):
            with pytest.raises(UserError, match=f"delta of huber_loss must be a number above 0, got {delta}"):
                parse_loss(loss)

    @pytest.mark.parametrize("smoothing", [-0.1, 1.5, float("nan")])
    def test_label_smoothing_out_of_range(self, smoothing: float):
        with pytest.raises(UserError, match=f"label_smoothing must be between 0 and 1, got {smoothing}"):
            parse_loss(partial(F.cross_entropy, label_smoothing=smoothing))

    def test_a_trainer_refuses_an_invalid_loss(self):
        model = dp.MLP([2, 2])
        for loss in ("cross_entrpy", nn.NLLLoss(), partial(F.huber_loss, delta=-1)):
            with pytest.raises(UserError):
                dp.ExplicitTrainer(model, loss, dp.SGD(model.parameters()))


class TestCount:
    """The weight of a batch in the mean over batches: the number of samples in its own mean."""

    A = torch.zeros(4, 3, dtype=F64)
    Y = torch.tensor([0, 2, 2, -100])

    def count(self, loss: Any, y: Tensor) -> float:
        spec = parse_loss(loss)
        return float(spec.count(self.A, spec.targets(y, self.A)))

    @pytest.mark.parametrize("loss", [name for name in LOSSES if name != "cross_entropy"])
    def test_regression_targets_count_as_rows(self, loss: str):
        """Although the mean of mse is over 12 entries."""
        assert self.count(loss, self.A) == 4

    def test_class_probabilities_count_as_rows(self):
        assert self.count(partial(F.cross_entropy, weight=WEIGHT), self.A + 1 / 3) == 4

    def test_ignored_labels_do_not_count(self):
        assert self.count("cross_entropy", self.Y) == 3
        assert self.count(partial(F.cross_entropy, ignore_index=2), self.Y.clamp(min=0)) == 2
        assert self.count("cross_entropy", torch.full((4,), -100)) == 0

    def test_labels_count_by_class_weight(self):
        """Classes 0, 2 and 2: 0.5 + 2 + 2."""
        assert self.count(partial(F.cross_entropy, weight=WEIGHT), self.Y) == 4.5

    def test_with_reduction_sum_rows_count(self):
        assert self.count(partial(F.cross_entropy, weight=WEIGHT, reduction="sum"), self.Y) == 4
        assert self.count(partial(F.mse_loss, reduction="sum"), self.A) == 4


class TestOnTargets:
    """If no label is ignored, steps need not check for ignored labels."""

    def test_without_ignored_labels_ignore_index_is_dropped(self):
        spec = parse_loss(partial(F.cross_entropy, weight=WEIGHT, label_smoothing=0.1))
        on = spec.on_targets(torch.tensor([0, 2, 1]))
        assert on.options == {**spec.options, "ignore_index": None}

    @pytest.mark.parametrize("ignored", [-100, 1])
    def test_with_ignored_labels_the_loss_is_unchanged(self, ignored: int):
        spec = parse_loss(partial(F.cross_entropy, ignore_index=ignored))
        assert spec.on_targets(torch.tensor([0, 2, ignored])) is spec

    def test_for_other_targets_the_loss_is_unchanged(self):
        for spec, y in ((parse_loss("mse"), torch.ones(3, 2)), (parse_loss("cross_entropy"), torch.ones(3, 2) / 2)):
            assert spec.on_targets(y) is spec

    @pytest.mark.parametrize(
        "options", [{}, {"weight": WEIGHT}, {"label_smoothing": 0.1}, {"reduction": "sum"}], ids=str
    )
    def test_values_and_gradients_are_the_same(self, options: dict[str, Any]):
        spec = parse_loss(partial(F.cross_entropy, **options))
        a, y = torch.randn(5, 3, dtype=F64), torch.tensor([0, 2, 1, 1, 0])

        def results(loss: LossSpec) -> list[Any]:
            c, saved = loss.forward(a, y)
            return [
                c,
                loss.grad_input(saved, loss.targets(y, saved)),
                torch.as_tensor(loss.count(a, loss.targets(y, a))).to(F64),
            ]

        torch.testing.assert_close(results(spec.on_targets(y)), results(spec), rtol=1e-14, atol=1e-15)


# --- new rows ---


class Softsign(core.Elementwise):
    """a = z / (1 + |z|);  σ'(z) = 1 / (1 + |z|)² = (1 − |a|)², computed from a."""

    from_output = True

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return z / (1 + z.abs())

    @staticmethod
    def derivative(a: Tensor) -> Tensor:
        return (1 - a.abs()) ** 2


class Cauchy(core.Elementwise):
    """a = c / (c² + z²);  σ'(z) = −2 c z / (c² + z²)²."""

    @staticmethod
    def forward(z: Tensor, c: float = 1.0) -> Tensor:
        return c / (c * c + z * z)

    @staticmethod
    def derivative(z: Tensor, c: float = 1.0) -> Tensor:
        return -2 * c * z / (c * c + z * z) ** 2


class Normalised(core.Activation):
    """a = z / ‖z‖;  ∂a/∂z = (1 − a aᵀ) / ‖z‖, a symmetric matrix."""

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return z / z.norm(dim=-1, keepdim=True)

    @classmethod
    def delta(cls, grad_a: Tensor, z: Tensor) -> Tensor:
        norm = z.norm(dim=-1, keepdim=True)
        a = z / norm
        return (grad_a - a * (grad_a * a).sum(-1, keepdim=True)) / norm


class LogCosh(core.ElementwiseLoss):
    """C = Σ log cosh(s (a − y)) / s / D;  ∂c/∂a = tanh(s (a − y))."""

    @staticmethod
    def value(a: Tensor, y: Tensor, sharpness: float = 1.0) -> Tensor:
        return torch.log(torch.cosh(sharpness * (a - y))) / sharpness

    @staticmethod
    def derivative(a: Tensor, y: Tensor, sharpness: float = 1.0) -> Tensor:
        return torch.tanh(sharpness * (a - y))


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add three activations and a loss, one row each."""
    for name, definition in (("softsign", Softsign), ("cauchy", Cauchy), ("normalised", Normalised)):
        monkeypatch.setitem(core.ACTIVATIONS, name, definition)
    monkeypatch.setitem(core.LOSSES, "log_cosh", LogCosh)


@pytest.mark.usefixtures("rows")
class TestNewRows:
    """A engine needs only a class and a row of the table."""

    @pytest.mark.parametrize("activation", ["softsign", "cauchy", "normalised"])
    @pytest.mark.parametrize(
        ("loss", "options"),
        [("log_cosh", {}), ("log_cosh", {"reduction": "sum", "sharpness": 2.0}), ("cross_entropy", {})],
        ids=str,
    )
    def test_new_rows_train_with_both_engines(self, activation: str, loss: str, options: dict[str, Any]):
        """They agree with PyTorch's derivatives of the same formulas to 10⁻¹² in float64."""
        x, y = torch.randn(23, 5, dtype=F64), targets(loss, 23, 3)
        ours = dp.MLP([5, 7, 6, 3], activation, dtype=F64)
        tape, theirs = copy.deepcopy(ours), copy.deepcopy(ours)
        sgds = [dp.SGD(model.parameters(), lr=0.05, momentum=0.9) for model in (ours, tape, theirs)]
        by_name = LossSpec(loss, options)
        trainer = dp.ExplicitTrainer(ours, by_name if options else loss, sgds[0])
        sigma = core.ACTIVATIONS[activation].forward

        def by_pytorch(x: Tensor) -> Tensor:
            for layer in list(theirs)[:-1:2]:
                x = sigma(nn.functional.linear(x, layer.weight, layer.bias))
            return nn.functional.linear(x, theirs[-1].weight, theirs[-1].bias)

        for _ in range(2):
            mean = float(trainer.epoch(x, y, 8))
            assert mean == pytest.approx(by_autograd(tape, by_name, sgds[1], x, y, 8), rel=1e-11)
            assert mean == pytest.approx(by_autograd(by_pytorch, reference(loss, options), sgds[2], x, y, 8), rel=1e-11)
        assert_same(ours, tape, sgds[0], sgds[1])
        assert_same(ours, theirs, sgds[0], sgds[2])

    def test_the_activation_has_a_module_with_its_constants(self):
        model = dp.MLP([5, 7, 3], activation_module("cauchy")(c=0.5), dtype=F64)
        twin = copy.deepcopy(model)
        assert model[1].c == 0.5
        ours, tape = (dp.SGD(m.parameters(), lr=0.1) for m in (model, twin))
        trainer = dp.ExplicitTrainer(model, "log_cosh", ours)
        x, y = torch.randn(23, 5, dtype=F64), torch.randn(23, 3, dtype=F64)
        for c in (0.5, 2.0):  # and it may be changed
            model[1].c = twin[1].c = c
            trainer.epoch(x, y, 8)
            by_autograd(twin, parse_loss("log_cosh"), tape, x, y, 8)
        assert_same(model, twin, ours, tape)

    def test_pytorchs_module_of_the_same_name_is_supported(self):
        """torch.nn.Softsign is now supported and trains; PyTorch's autograd is the reference."""
        model = nn.Sequential(nn.Linear(5, 7), nn.Softsign(), nn.Linear(7, 3)).to(F64)
        twin = copy.deepcopy(model)
        ours, tape = (dp.SGD(m.parameters(), lr=0.1) for m in (model, twin))
        x, y = torch.randn(23, 5, dtype=F64), torch.randn(23, 3, dtype=F64)
        dp.ExplicitTrainer(model, "log_cosh", ours).epoch(x, y, 8)
        by_autograd(twin, reference("log_cosh", {}), tape, x, y, 8)
        assert_same(model, twin, ours, tape)

    def test_the_loss_is_found_by_its_command_line_name(self):
        assert_is("log-cosh", "log_cosh")

    def test_its_function_is_the_loss(self):
        assert_is(F.log_cosh, "log_cosh")
        assert_is(partial(F.log_cosh, sharpness=2.0), "log_cosh", sharpness=2.0)

    def test_an_unknown_option_is_refused(self):
        with pytest.raises(UserError, match="log_cosh has no option 'shapness'; it has reduction, sharpness, weight"):
            parse_loss(partial(F.log_cosh, shapness=2.0))

    def test_an_output_activation_that_it_contains_is_refused(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(LogCosh, "contains", ("softsign",))
        model = dp.MLP([2, 2], output_activation="softsign")
        with pytest.raises(UserError, match="log_cosh already contains Softsign"):
            dp.ExplicitTrainer(model, "log_cosh", dp.SGD(model.parameters()))


def test_a_removed_row_is_unknown_again():
    with pytest.raises(UserError, match="unknown loss 'log_cosh'"):
        parse_loss("log_cosh")
    with pytest.raises(UserError, match="unknown activation 'softsign'"):
        dp.MLP([2, 2, 2], "softsign")


def reference(loss: str, options: dict[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a loss of PyTorch operations, as a partial with its options."""

    def log_cosh(a: Tensor, y: Tensor, *, sharpness: float = 1.0, reduction: str = "mean") -> Tensor:
        entries = LogCosh.value(a, y, sharpness)
        return entries.mean() if reduction == "mean" else entries.sum()

    return partial(log_cosh if loss == "log_cosh" else nn.functional.cross_entropy, **options)
