"""The compiled engine takes the same steps as the others, to 1e-12 in float64: the explicit engine's own tests of that.

``dp.ExplicitTrainer`` is replaced by the compiled one in them.
"""

from __future__ import annotations

from typing import Any

import pytest

import deltaprop as dp
from deltaprop.core import ACTIVATIONS
from tests.compiled.shared import compiled_trainer
from tests.explicit import test_equality, test_losses
from tests.explicit.conftest import trainer as trainer
from tests.explicit.test_equality import test_class_probabilities as test_class_probabilities
from tests.explicit.test_losses import CASES
from tests.explicit.test_losses import (
    test_a_batch_of_ignored_labels_has_a_gradient_of_0 as test_a_batch_of_ignored_labels_has_a_gradient_of_0,
)
from tests.explicit.test_trainer import TestEpoch as TestEpoch
from tests.explicit.test_trainer import TestOnPaper as TestOnPaper

# A library for each takes four seconds to build: the other losses are among the slow tests.
QUICK = ("cross_entropy", "mse_loss")
QUICK_CASES = [(name, options) for name, options in CASES if name in QUICK]
MEANS = [(name, options) for name, options in QUICK_CASES if options.get("reduction") != "sum"]


class TestEquality(test_equality.TestEquality):
    test_any_sizes_batches_and_options = None

    @pytest.mark.parametrize("loss", QUICK)
    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_every_activation_with_every_loss(self, activation: str, loss: str):
        super().test_every_activation_with_every_loss(activation, loss)

    @pytest.mark.parametrize(("loss", "options"), QUICK_CASES, ids=str)
    def test_every_option_of_every_loss(self, loss: str, options: dict[str, Any]):
        super().test_every_option_of_every_loss(loss, options)


class TestEpochMean(test_losses.TestEpochMean):
    @pytest.mark.parametrize(("name", "options"), MEANS, ids=str)
    @pytest.mark.parametrize("batch_size", [1, 8, 23, 40])
    def test_the_mean_equals_the_loss_of_all_rows(self, name: str, options: dict[str, Any], batch_size: int):
        super().test_the_mean_equals_the_loss_of_all_rows(name, options, batch_size)


@pytest.fixture(autouse=True)
def _compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dp, "ExplicitTrainer", compiled_trainer)
