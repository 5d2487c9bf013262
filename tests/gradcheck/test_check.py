"""``check_gradients`` detects every planted mistake with the expected check, and accepts correct code."""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Function

import deltaprop as dp
from deltaprop import Check, GradientReport, UserError, check_gradients
from deltaprop.gradcheck.check import CHECKS
from deltaprop.gradcheck.library import library_ops
from deltaprop.testing import assert_gradients
from tests.gradcheck.correct import CORRECT, Checkpointed, ComplexModulus, Correct
from tests.gradcheck.planted import AFFINE, BUGS, EDGE, Bug, SlopeOfZ, WritesInput, X, normal

pytestmark = [
    pytest.mark.filterwarnings("ignore:The use of `x.T` on tensors:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*functorch.*:UserWarning"),
]


def name_of(case: Bug | Correct) -> str:
    return getattr(case, "name", None) or case.op.__name__


@pytest.mark.parametrize("bug", BUGS, ids=name_of)
def test_a_planted_mistake_is_found_by_its_check(bug: Bug):
    report = check_gradients(bug.op, bug.inputs, fast=bug.check != "compile", deep=bug.check == "third")
    check = report[bug.check]
    assert (check.outcome, check.severity) == ("failed", bug.severity), str(report)
    assert check.detail
    assert not check.detail.startswith("it raises"), check.detail  # an accident of the check
    if bug.severity == "error":
        assert not report.ok


@pytest.mark.parametrize("correct", CORRECT, ids=name_of)
def test_correct_code_passes(correct: Correct):
    report = check_gradients(correct.op, correct.inputs, fast=True)
    assert {check.name for check in report.errors + report.warnings} == correct.expected_failures, str(report)


@pytest.mark.slow
@pytest.mark.parametrize("correct", CORRECT, ids=name_of)
def test_correct_code_passes_all_checks(correct: Correct):
    report = check_gradients(correct.op, correct.inputs)
    assert {check.name for check in report.errors + report.warnings} == correct.expected_failures, str(report)


def passes_gradcheck(bug: Bug) -> bool:
    op = bug.op.apply if isinstance(bug.op, type) else bug.op
    try:
        return bool(torch.autograd.gradcheck(op, [t.clone().requires_grad_() for t in bug.inputs]))
    except (RuntimeError, ValueError, AttributeError, TypeError):
        return False


@pytest.mark.filterwarnings("ignore")
def test_gradcheck_passes_the_number_of_mistakes_in_the_docs():
    passed = {bug.op.__name__ for bug in BUGS if passes_gradcheck(bug)}
    assert len(passed) == sum(bug.op.__name__ in passed for bug in BUGS)
    page = (Path(__file__).parents[2] / "docs" / "gradcheck.md").read_text()
    assert f"passes {len(passed)} of the {len(BUGS)} mistakes" in page
    assert f"about {len(CORRECT)} right functions" in page
    for check in CHECKS:
        own = [bug for bug in BUGS if bug.check == check]
        found = sum(bug.op.__name__ not in passed for bug in own)
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{check}` |")]
        assert row.endswith(f"| {found} of {len(own)} |"), row
    assert {"BiasNeverSummed", "WritesGradOutput", "KeepsOutput"} <= passed


def test_every_check_has_a_mistake_that_it_finds():
    assert {bug.check for bug in BUGS} == set(CHECKS)
    assert len(BUGS) >= 80
    assert len(CORRECT) >= 60


@pytest.mark.parametrize(("op", "inputs"), [pytest.param(*case, id=case[0].__name__) for case in library_ops()])
def test_every_op_of_the_library_passes(op: Any, inputs: tuple[Any, ...]):
    report = check_gradients(op, inputs, fast=True)
    assert report.errors == report.warnings == [], str(report)


# PyTorch's own examples with wrong gradients, some intended, and the checks that fail.
EXPLAINED = {
    # Its backward ignores grad_output, and reads its input from ctx.
    "NumpyCubeNotComposableAutogradFunction": {"values", "grad_output", "linear", "parts", "saved"},
    "CubeGenVmapAutogradFunction": {"values", "linear", "parts", "second"},  # adds 6 dx without grad_saved
    "ScaleGradGenVmapAutogradFunction": {"values", "jvp"},  # scales the gradient, intended
    "ZeroGradientsGenVmapAutogradFunction": {"values", "jvp", "one_sample", "shapes"},  # is 0, intended
    "NumpySortAutogradFunction": {"values", "jvp", "one_sample", "three_dimensions"},  # forward returns x unsorted
    # These return gradients that are broadcast.
    "NumpyMulAutogradFunction": {"shapes"},
    "MulGenVmapAutogradFunction": {"shapes"},
}
IN_NUMPY = {"vmap"}  # vmap does not work with NumPy, which is a warning


@pytest.mark.parametrize(
    "most", [1, pytest.param(None, marks=pytest.mark.slow)], ids=["on a sample of each", "on all samples"]
)
def test_pytorchs_own_examples(most: int | None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.backends, "disable_global_flags", lambda: None)  # it would affect all later tests
    db = pytest.importorskip("torch.testing._internal.autograd_function_db", exc_type=ImportError)
    for op in db.autograd_function_db:
        for sample in itertools.islice(op.sample_inputs("cpu", torch.float64, requires_grad=True), most):
            report = check_gradients(op.op, (sample.input, *sample.args), fast=True)
            failed = {check.name for check in report.errors + report.warnings}
            allowed = EXPLAINED.get(op.name, set()) | (IN_NUMPY if "Numpy" in op.name else set())
            assert failed <= allowed, f"{op.name}: {failed}\n{report}"
            assert EXPLAINED.get(op.name, set()) & failed or op.name not in EXPLAINED, op.name


class Straight(Function):
    """A straight-through estimator: its gradient is wrong intentionally."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return grad_output


class Single(Function):
    """A kernel that supports float32 only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            raise RuntimeError("float32 only")
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return grad_output * ctx.saved_tensors[0].cos()


ALSO_IN_FLOAT32 = {"grad_output", "linear", "parts", "subsets", "saved", "thread", "in_place", "expanded", "leak"}


class TestOptions:
    def test_intended_deviations_can_be_skipped(self):
        assert not check_gradients(Straight, X, fast=True).ok
        report = check_gradients(Straight, X, fast=True, skip={"values"})
        assert report.ok
        assert (report["values"].outcome, report["values"].detail) == ("skipped", "as requested")
        for name in ("kink", "missing", "scalar", "one_sample", "one_dimension", "three_dimensions", "jvp"):
            detail = 'it compares with differences, as the check "values", which is skipped'
            assert (report[name].outcome, report[name].detail) == ("skipped", detail)

    def test_a_backward_that_raises_is_reported_once(self):
        class Raises(Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor) -> Tensor:
                return 2 * x

            @staticmethod
            def backward(ctx: Any, grad_output: Tensor) -> Tensor:
                raise ValueError("no backward yet")

        report = check_gradients(Raises, X)
        (error,) = report.errors
        assert (error.name, error.detail) == ("values", "backward raises ValueError: no backward yet")
        assert {check.detail for check in report if check.name != "values"} == {'nothing can be checked: see "values"'}
        assert not report.warnings

    @pytest.mark.parametrize(
        ("f", "x", "detail"),
        [
            (lambda x: x.detach().sin(), X[0], "no output requires grad"),
            (torch.log, -X[0].abs(), "f is not finite at these inputs"),
        ],
    )
    def test_nothing_checked_is_never_ok(self, f: Any, x: Tensor, detail: str):
        """Also where the check that reports it was to be skipped."""
        report = check_gradients(f, (x,), fast=True, skip={"values"})
        assert not report.ok
        assert report["values"].detail.startswith(detail)

    def test_what_could_not_be_judged_in_any_entry_is_a_warning(self):
        (warning,) = check_gradients(torch.sqrt, (torch.zeros(3),), fast=True).warnings
        assert warning.detail.startswith("no entry could be judged: ")

    def test_an_error_too_small_for_differences_is_not_passed(self):
        class Large(Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor) -> Tensor:
                return x + 1e10

            @staticmethod
            def backward(ctx: Any, grad_output: Tensor) -> Tensor:
                return 3 * grad_output

        (warning,) = check_gradients(Large, X, fast=True).warnings
        assert warning.detail == "no entry could be judged: there f has no finite slope, or rounding hides it"

    def test_randomness_out_of_reach_is_reported_once(self):
        numbers = itertools.count()
        report = check_gradients(lambda x: x * next(numbers), X)
        (error,) = report.errors
        assert error.detail == "f differs from call to call: torch.manual_seed does not reach its randomness"
        assert {check.outcome for check in report if check != error} == {"skipped"}

    def test_a_narrower_dtype_is_reported_and_a_wrong_gradient_in_it_found(self):
        right = check_gradients(lambda x: x.float().sin(), X, fast=True)
        assert right["values"].detail == "f computes in a narrower dtype: compared with wider steps and tolerances"

        class WrongInFloat32(Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor) -> Tensor:
                ctx.save_for_backward(x)
                return x.float().sin()

            @staticmethod
            def backward(ctx: Any, grad_output: Tensor) -> Tensor:
                return 1.05 * grad_output.double() * ctx.saved_tensors[0].cos()

        assert check_gradients(WrongInFloat32, X, fast=True)["values"].outcome == "failed"

    def test_a_reference_replaces_finite_differences(self):
        right = check_gradients(Single, X, reference=torch.sin, dtype=torch.float32, fast=True)
        assert right["values"].outcome == "passed"
        wrong = check_gradients(Single, X, reference=torch.cos, dtype=torch.float32, fast=True)
        assert "compared with the reference: at [" in wrong["values"].detail
        other = check_gradients(Straight, X, reference=lambda x: 1 * x, fast=True)
        assert (other["values"].outcome, other["values"].detail) == (
            "passed",
            "the values of the reference are others than those of f",
        )
        with pytest.raises(UserError, match="the reference raises on these inputs"):
            check_gradients(Single, X, reference=lambda x: 1 / 0)

    @pytest.mark.parametrize("bug", [bug for bug in BUGS if bug.check in ALSO_IN_FLOAT32], ids=name_of)
    def test_planted_mistakes_are_found_in_float32_too(self, bug: Bug):
        """Against any reference: these checks compare a Function with itself."""
        report = check_gradients(bug.op, bug.inputs, dtype=torch.float32, fast=True, skip={"values"})
        assert report[bug.check].outcome == "failed", report

    def test_a_tolerance(self):
        class Off(Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor) -> Tensor:
                return x * 1

            @staticmethod
            def backward(ctx: Any, grad_output: Tensor) -> Tensor:
                return grad_output * (1 + 1e-4)

        assert check_gradients(Off, X, fast=True)["values"].outcome == "failed"
        assert check_gradients(Off, X, fast=True, rtol=1e-3)["values"].outcome == "passed"

    def test_only_inputs_that_require_grad_are_differentiated(self):
        x, y = normal(4, 3).requires_grad_(), normal(4, 3)
        report = check_gradients(lambda x, y: x * y.detach(), (x, y), fast=True)
        assert report.ok
        assert report["subsets"].detail == "there is one input"

    def test_parameters_of_a_module_are_inputs(self):
        class Wrong(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.scale = nn.Parameter(torch.ones(3))

            def forward(self, x: Tensor) -> Tensor:
                return x * self.scale + (self.scale - self.scale.detach()) ** 2 + self.scale.detach()

        report = check_gradients(Wrong(), X, fast=True)
        assert "∂C/∂scale" in report["values"].detail

    def test_the_callers_tensors_and_random_state_are_unchanged(self):
        model, x = dp.MLP([3, 4, 2]), torch.randn(4, 3)
        before, state = x.clone(), torch.get_rng_state()
        check_gradients(model, (x,), fast=True)
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(x, before)
        assert all(p.grad is None and p.dtype == torch.float32 for p in model.parameters())

    @pytest.mark.parametrize("shape", [(4, 3), (60, 70)])
    @pytest.mark.parametrize("layout", [lambda t: t, lambda t: t.T, lambda t: t[:1].expand_as(t)])
    def test_inputs_that_forward_writes_to_are_unchanged(self, shape: tuple[int, int], layout: Any):
        def writes(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
            with torch.no_grad():
                for t in (x, w):
                    if 0 not in t.stride():
                        t.mul_(2)
            return x + y + w

        inputs = [layout(normal(*shape)) for _ in range(3)]
        check_gradients(writes, inputs, fast=True)
        check_gradients(WritesInput, inputs[:1], fast=True)
        assert all(torch.equal(t, layout(normal(*shape))) for t in inputs)

    def test_constants_and_buffers_are_unchanged(self):
        x = normal(4, 3).requires_grad_()
        mean, var, norm = torch.zeros(3), torch.ones(3), nn.BatchNorm1d(3)
        check_gradients(lambda x, m, v: nn.functional.batch_norm(x, m, v, training=True), (x, mean, var), fast=True)
        check_gradients(norm, (x,), fast=True)
        assert not mean.any()
        assert not norm.running_mean.any()

    MODES = (
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu"),
        lambda: torch.device("meta"),
        torch.autograd.detect_anomaly,
    )

    @pytest.mark.filterwarnings("ignore:Anomaly Detection")
    @pytest.mark.parametrize("mode", MODES)
    def test_the_callers_modes_do_not_matter(self, mode: Any):
        with mode():
            report = check_gradients(torch.sin, [normal(4, 3) if mode is torch.inference_mode else X[0]], fast=True)
            assert not report.errors + report.warnings, report

    def test_the_seed_determines_all_that_is_drawn(self):
        drawn = []

        def noisy(x: Tensor) -> Tensor:
            drawn.append(torch.rand(()).item())
            return x * 3

        same, other = (check_gradients(SlopeOfZ, X, fast=True, seed=seed) for seed in (0, 1))
        assert check_gradients(SlopeOfZ, X, fast=True) == same
        assert other["values"].detail != same["values"].detail
        check_gradients(noisy, X, fast=True, skip=set(CHECKS) - {"values"})
        first = set(drawn)
        check_gradients(noisy, X, fast=True, skip=set(CHECKS) - {"values"}, seed=5)
        assert not first & (set(drawn) - first)
        assert set(drawn) - first


class TestUnusualInputs:
    def test_an_entry_that_cannot_be_judged_is_named_and_the_others_are_judged(self):
        report = check_gradients(torch.sqrt, EDGE, fast=True)
        why = "there f has no finite slope, or rounding hides it"
        detail = f"2 of 6 entries could not be judged, input 0[0, 0], input 0[1, 1]: {why}"
        assert (report["values"].outcome, report["values"].detail) == ("passed", detail)

    def test_what_could_not_be_judged_at_all_is_not_passed(self):
        report = check_gradients(torch.log, (-EDGE[0] - 1,), fast=True)
        (error,) = report.errors
        assert (error.name, error.detail) == ("values", "f is not finite at these inputs: nothing can be checked")
        assert {check.outcome for check in report if check != error} == {"skipped"}

    def test_an_entry_on_which_a_nan_depends_is_not_passed(self):
        x = torch.tensor([[-1.0, 2.0, 3.0]], dtype=torch.float64)
        detail = "1 of 3 entries could not be judged, input 0[0, 0]: "
        assert check_gradients(torch.log, (x,), fast=True)["values"].detail.startswith(detail)

    def test_where_one_side_exists_it_counts(self):
        right = check_gradients(lambda x: x**1.5, EDGE, fast=True)
        assert (right["values"].outcome, right["values"].detail) == ("passed", "")

    def test_a_nan_gradient_is_one_error_that_names_the_entry(self):
        x = torch.zeros(40, 60, dtype=torch.float64) + 2
        x[31, 7] = 0
        (nan,) = [bug for bug in BUGS if bug.op.__name__ == "NanAtTheEdge"]
        (error,) = check_gradients(nan.op, (x,), fast=True).errors
        assert error.name == "values"
        assert "∂C/∂x: at [31, 7] expected 0" in error.detail
        assert ", got nan (1 of " in error.detail

    def test_an_overflow_beside_the_inputs_hides_no_mistake(self):
        """1/x is infinite at 0: one such entry must not make any number acceptable for the others."""

        class Reciprocal(Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor) -> Tensor:
                ctx.save_for_backward(x)
                return 1 / x

            @staticmethod
            def backward(ctx: Any, grad_output: Tensor) -> Tensor:
                (x,) = ctx.saved_tensors
                return grad_output / x**2  # the sign is wrong

        assert (
            "-1 times what it should be (wrong sign)" in check_gradients(Reciprocal, (EDGE[0] + 0.5,))["values"].detail
        )
        assert check_gradients(Reciprocal, EDGE)["values"].outcome == "failed"

    def test_a_gradient_beyond_the_slopes_at_a_kink_is_an_error(self):
        class WrongAtTheKink(Function):
            @staticmethod
            def forward(ctx: Any, z: Tensor) -> Tensor:
                ctx.save_for_backward(z)
                return z.clamp(min=0)

            @staticmethod
            def backward(ctx: Any, grad_output: Tensor) -> Tensor:
                (z,) = ctx.saved_tensors
                return grad_output * torch.where(z == 0, 3.0, (z > 0).to(z.dtype))

        (error,) = check_gradients(WrongAtTheKink, EDGE, fast=True).errors
        assert error.name == "values"

    def test_the_parts_of_complex_numbers_are_named(self):
        class Conjugate(ComplexModulus):
            @staticmethod
            def backward(ctx: Any, grad_output: Tensor) -> Tensor:
                return ComplexModulus.backward(ctx, grad_output).conj()

        detail = check_gradients(Conjugate, (torch.view_as_complex(normal(4, 2)),), fast=True)["values"].detail
        assert "∂C/∂view_as_real(z): at [" in detail
        assert ": the complex conjugate of what it should be" in detail

    def test_a_gradient_for_symmetric_matrices_is_explained(self):
        x = torch.eye(3, dtype=torch.float64) * 2 + 0.1
        (warning,) = check_gradients(torch.linalg.cholesky, (x,), fast=True).warnings
        assert "it is the gradient for symmetric matrices, right along symmetric changes alone" in warning.detail

    def test_a_square_matrix_is_not_cut(self):
        report = check_gradients(torch.linalg.inv, (normal(3, 3),), fast=True)
        for name in ("zero_size", "one_sample", "odd_size", "size_one"):
            assert report[name].detail.startswith("an input is a square matrix, which is not cut"), name
        assert report["three_dimensions"].outcome == "passed"

    def test_labels_are_never_out_of_range(self):
        """On CUDA an index out of range ends the process."""
        calls = []

        def picked(x: Tensor, index: Tensor) -> Tensor:
            calls.append(index.numel() == 0 or int(index.max()) < x.shape[0])
            return x.index_select(0, index)

        check_gradients(picked, (normal(4, 3), torch.tensor([3, 0, 2])), fast=True)
        assert all(calls)
        assert len(calls) > 100

    def test_outputs_are_numbered_as_they_are_returned(self):
        (both,) = [bug for bug in BUGS if bug.op.__name__ == "NeedsBothOutputs"]
        report = check_gradients(lambda x: ("text", x > 0, *both.op.apply(x)), X, fast=True)
        assert report["outputs"].detail.startswith("backward from output 2 alone")

    def test_a_known_cause_of_a_wrong_second_derivative_is_named_and_an_unknown_is_not_guessed(self):
        (saved,) = [bug for bug in BUGS if bug.op.__name__ == "SavesIntermediate"]
        detail = check_gradients(saved.op, X, fast=True)["second"].detail
        assert "a saved tensor of shape [4, 3] is neither an input nor an output" in detail
        assert detail.endswith("; correct it, or mark backward @once_differentiable")

        class Other(Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor) -> Tensor:
                ctx.save_for_backward(x)
                return x.sin()

            @staticmethod
            def backward(ctx: Any, grad_output: Tensor) -> Tensor:
                (x,) = ctx.saved_tensors
                return grad_output * (x.cos() + x - x.detach())

        detail = check_gradients(Other, X, fast=True)["second"].detail
        assert "saved" not in detail
        assert detail.endswith("; correct it, or mark backward @once_differentiable")


class TestReport:
    def test_the_worst_entry_and_the_likely_cause_are_named(self):
        (missing_mean,) = [bug for bug in BUGS if bug.op.__name__ == "MissingMean"]
        detail = check_gradients(missing_mean.op, missing_mean.inputs, fast=True)["values"].detail
        assert "∂C/∂x: at [" in detail
        assert "4 times what it should be (a missing 1/N, N = 4)" in detail

    def test_one_wrong_entry_of_thousands_is_found_and_named(self):
        """Of 4200 entries 12 are compared one by one, and the last one is wrong."""
        (planted,) = [bug for bug in BUGS if bug.op.__name__ == "OneEntryOfThousandsWrong"]
        detail = check_gradients(planted.op, planted.inputs, fast=True)["values"].detail
        assert "∂C/∂x: at [59, 69] expected " in detail
        assert ", got 0 (difference " in detail
        assert "found by the slope along all entries" in detail

    @pytest.mark.parametrize("op", [torch.relu, torch.abs, nn.functional.gelu, nn.functional.leaky_relu])
    def test_kinks_among_thousands_of_entries_raise_no_alarm(self, op: Any):
        for seed in range(4):
            x = torch.randn(60, 70, generator=torch.Generator().manual_seed(seed))
            assert check_gradients(op, (x,), fast=True)["values"].outcome == "passed"

    def test_a_missing_division_by_the_number_of_entries_is_named(self):
        """A mean over 12 entries whose backward forgets it; 4 rows, so it is no 1/N."""
        (missing_mean,) = [bug for bug in BUGS if bug.op.__name__ == "MissingMean"]

        class MissingMeanOfAll(missing_mean.op):
            @staticmethod
            def forward(ctx, x):
                ctx.save_for_backward(x)
                return x.square().mean()

        detail = check_gradients(MissingMeanOfAll, torch.rand(4, 3) + 0.5, fast=True)["values"].detail
        assert "12 times what it should be (a missing 1/12, the number of entries)" in detail

    def test_errors_warnings_and_passed_checks_are_apart(self):
        checks = (Check("a", "passed"), Check("b", "failed"), Check("c", "failed", "warning"), Check("d", "skipped"))
        report = GradientReport("f", checks)
        assert (report.errors, report.warnings) == ([checks[1]], [checks[2]])
        assert report.summary().splitlines()[0] == "f: 1 error: b; 1 warning: c; 1 passed"
        assert GradientReport("f", checks[2:]).summary().splitlines()[0] == "f: ok; 1 warning: c; 0 passed"

    def test_the_summary_has_a_line_for_each_failure_and_for_what_was_skipped_and_why(self):
        checks = (
            Check("a", "passed"),
            Check("b", "failed", detail="wrong"),
            Check("c", "skipped", detail="no reason"),
            Check("d", "skipped", detail="no reason"),
            Check("e", "passed", detail="2 entries could not be judged"),
        )
        assert GradientReport("f", checks).summary().splitlines() == [
            "f: 1 error: b; 2 passed",
            "  error: b: wrong",
            "  passed: e: 2 entries could not be judged",
            "  skipped: c, d: no reason",
        ]

    def test_a_notebook_shows_a_table_in_which_nothing_is_markup(self):
        page = GradientReport("f<b>", (Check("a", "failed", detail="<script>1 & 2</script>"),))._repr_html_()
        assert "f&lt;b&gt;: 1 error: a" in page
        assert "&lt;script&gt;1 &amp; 2&lt;/script&gt;" in page
        assert "<script>" not in page

    def test_a_terminal_shows_which_check_runs_once_it_takes_long(self, monkeypatch: pytest.MonkeyPatch):
        screen = io.StringIO()
        screen.isatty = lambda: True  # type: ignore[method-assign]
        monkeypatch.setattr("sys.stderr", screen)
        check_gradients(torch.sin, X, fast=True)
        quick = screen.getvalue()
        seconds = itertools.count()
        monkeypatch.setattr("deltaprop.gradcheck.check.time.monotonic", lambda: float(next(seconds)))
        check_gradients(torch.sin, X, fast=True)
        slow = screen.getvalue().removeprefix(quick)
        assert f"gradients of sin: compile, {len(CHECKS)} of {len(CHECKS)}" in slow
        assert slow.endswith("\r\x1b[K")
        assert "\n" not in slow

    def test_a_report_is_a_table_and_json(self):
        report = check_gradients(SlopeOfZ, X, fast=True)
        text = str(report)
        assert "gradients of SlopeOfZ" in text
        assert text.startswith("SlopeOfZ: ")
        assert json.loads(json.dumps(report.to_json()))["ok"] is False
        assert [check.name for check in report] == list(CHECKS)

    def test_assert_gradients(self):
        assert assert_gradients(torch.sigmoid, X, fast=True).ok
        with pytest.raises(AssertionError, match=r"\ASlopeOfZ: \d errors?: values[^\n]*\n  error: values: ∂C/∂z"):
            assert_gradients(SlopeOfZ, X, fast=True)
        (unsummed,) = [bug for bug in BUGS if bug.check == "shapes"]
        only_shapes = set(CHECKS) - {"shapes"}
        assert_gradients(unsummed.op, AFFINE, skip=only_shapes)
        for no_warnings in ({"allow_warnings": False}, {"warnings": False}):  # the latter is the name of version 0.1
            with pytest.raises(AssertionError, match="direct calls of backward do not"):
                assert_gradients(unsummed.op, AFFINE, skip=only_shapes, **no_warnings)

    def test_the_repr_is_one_line(self):
        report = check_gradients(torch.sigmoid, X, fast=True)
        assert repr(report) == f"<GradientReport of {report.summary().splitlines()[0]}>"


def test_a_sparse_gradient_is_treated_as_dense():
    report = check_gradients(nn.Embedding(7, 3, sparse=True), (torch.tensor([1, 4, 1]),))
    assert report.ok, report
    assert report["values"].outcome == "passed"


class ComplexParameter(nn.Module):
    """A module with a complex parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(3, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.w).real


class TestRefusals:
    @pytest.mark.parametrize(
        ("fn", "inputs", "options", "message"),
        [
            (torch.sin, (torch.arange(3),), {}, "sin has no input to differentiate"),
            (torch.mm, (normal(4, 3), normal(4, 3)), {}, "mm raises on these inputs in torch.float64: RuntimeError"),
            (Single, X, {}, "Single raises on these inputs in torch.float64: RuntimeError: float32 only"),
            (nn.LazyLinear(3), X, {}, "LazyLinear has lazy layers without a shape: call it once on an input before"),
            (Checkpointed(use_reentrant=True), X, {}, "take use_reentrant=False"),
            (ComplexParameter(), X, {}, "ComplexParameter has complex parameters: hold them as torch.view_as_real"),
            (torch.sin, X, {"skip": {"valeus"}}, "unknown check 'valeus': did you mean 'values'"),
            (torch.sin, X, {"dtype": torch.float32}, "differences in torch.float32 are too inaccurate"),
        ],
    )
    def test_errors_are_one_line(self, fn: Any, inputs: Any, options: Any, message: str):
        with pytest.raises(UserError, match=message) as error:
            check_gradients(fn, inputs, **options)
        assert "\n" not in str(error.value)
