"""``check_gradients`` on the Functions of packages that people install, with each verdict explained.

`pip install -e ".[compat]"` installs the packages: entmax 1.3, sparsemax 0.1.9, pytorch-revgrad 0.2, snntorch 1.0.
Tests of a missing package are skipped, or fail with DELTAPROP_COMPAT=1.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from deltaprop import check_gradients
from tests.gradcheck.planted import normal

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SCORES, LABELS = normal(4, 5), torch.tensor([0, 2, 1, 1])
ALPHA = torch.tensor(1.3, dtype=torch.float64)
TWO = torch.tensor(2.0, dtype=torch.float64)


@dataclass(frozen=True)
class Verdict:
    """What the checks find in a Function of a package.

    Attributes:
        path: Package, module and name of the Function.
        inputs: Its inputs.
        failed: The checks that fail, and why each is right about it.
    """

    path: str
    inputs: tuple[Any, ...]
    failed: dict[str, str]


SURROGATE = "forward is a step, whose derivative is 0; the gradient is another function's, on purpose"
GRAPH_LOST = "a softmax that is saved is neither an input nor an output, so its derivative is lost; nobody is warned"
NARROW = "the gradient is a clone of float32, made by .float()"

VERDICTS = [
    Verdict("entmax.activations.SparsemaxFunction", (SCORES, -1), {}),
    Verdict(
        "entmax.activations.Entmax15Function",
        (SCORES, -1),
        {"second": "it takes the root of the output, which is 0 outside the support: 0 · ∞ in the second backward"},
    ),
    Verdict(
        "entmax.root_finding.EntmaxBisectFunction",
        (SCORES, ALPHA, -1, 60),
        {
            "shapes": "∂C/∂α has a row for each sample; autograd sums it",
            "saved": "α is kept on ctx",
            "second": "a power of the output, which is 0 outside the support: 0 · ∞ in the second backward",
        },
    ),
    Verdict("entmax.root_finding.SparsemaxBisectFunction", (SCORES, -1, 60), {}),
    Verdict(
        "entmax.root_finding.NormmaxBisectFunction",
        (SCORES, TWO, -1, 60),
        {
            "missing": "α gets no gradient",
            "large": "α = 2000 overflows in backward alone",
            "saved": "α is kept on ctx",
            "second": "α is not a saved tensor, so the derivative by it is lost",
        },
    ),
    Verdict(
        "entmax.root_finding.BudgetBisectFunction", (SCORES, TWO, -1, 60), {"missing": "no gradient by the budget"}
    ),
    Verdict("entmax.losses.SparsemaxLossFunction", (SCORES, LABELS), {"second": GRAPH_LOST}),
    Verdict("entmax.losses.Entmax15LossFunction", (SCORES, LABELS), {"second": GRAPH_LOST}),
    Verdict("entmax.losses.EntmaxBisectLossFunction", (SCORES, LABELS, 1.5, 60), {"second": GRAPH_LOST}),
    Verdict("entmax.losses.NormmaxBisectLossFunction", (SCORES, LABELS, 2.0, 60), {"second": GRAPH_LOST}),
    Verdict("sparsemax.sparsemax.SparsemaxFunction", (SCORES, -1), {}),
    Verdict(
        "pytorch_revgrad.functional.RevGrad",
        (SCORES, torch.tensor(1.0)),
        {"values": "it reverses the gradient on purpose, and the checks say: wrong sign"},
    ),
    Verdict("snntorch.surrogate.FastSigmoid", (SCORES, 25), {"values": SURROGATE}),
    Verdict("snntorch.surrogate.ATan", (SCORES, 2.0), {"values": SURROGATE}),
    Verdict(
        "snntorch.surrogate.Sigmoid",
        (SCORES, 25),
        {
            "values": SURROGATE,
            "large": "exp(−25 x) overflows, and ∞ / ∞ is NaN",
            "half": "the same, much earlier, in float16",
        },
    ),
    Verdict("snntorch.surrogate.Triangular", (SCORES, 1.0), {"values": SURROGATE, "dtypes": NARROW}),
    Verdict("snntorch.surrogate.StraightThroughEstimator", (SCORES,), {"values": SURROGATE, "dtypes": NARROW}),
]


def load(verdict: Verdict) -> Any:
    """Return the Function; if its package is missing, skip the test, or fail it with DELTAPROP_COMPAT=1."""
    module, name = verdict.path.rsplit(".", 1)
    package = module.split(".")[0]
    if os.environ.get("DELTAPROP_COMPAT") != "1":
        pytest.importorskip(package, reason=f'no {package}: pip install -e ".[compat]"')
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("verdict", VERDICTS, ids=lambda verdict: verdict.path)
def test_what_fails_is_explained(verdict: Verdict):
    report = check_gradients(load(verdict), verdict.inputs)
    assert {check.name for check in report.errors + report.warnings} == set(verdict.failed), report


def test_on_purpose_means_one_skip():
    """A straight-through estimator or a reversed gradient has no other alarm once its values are skipped."""
    for path in ("snntorch.surrogate.FastSigmoid", "snntorch.surrogate.ATan", "pytorch_revgrad.functional.RevGrad"):
        (verdict,) = [verdict for verdict in VERDICTS if verdict.path == path]
        report = check_gradients(load(verdict), verdict.inputs, skip={"values"})
        assert report.errors == report.warnings == [], report
