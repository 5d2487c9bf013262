"""What else the explicit engine promises, promised by the compiled one: its own tests, with the other trainer.

Every loss, sequences of epochs and changes, resumed epochs, parameters that stay ordinary, and what is refused.
"""

from __future__ import annotations

import pytest

import deltaprop as dp
from tests.compiled.shared import compiled_trainer
from tests.explicit import test_parameters
from tests.explicit.conftest import trainer as trainer
from tests.explicit.test_equality import TestEquality as TestEquality
from tests.explicit.test_losses import TestEpochMean as TestEpochMean
from tests.explicit.test_losses import (
    test_weights_of_samples_weight_their_losses as test_weights_of_samples_weight_their_losses,
)
from tests.explicit.test_parameters import (
    test_a_trainer_can_be_copied_and_pickled_at_any_time as test_a_trainer_can_be_copied_and_pickled_at_any_time,
)
from tests.explicit.test_refusals import *  # noqa: F403
from tests.explicit.test_resume import *  # noqa: F403
from tests.explicit.test_sequences import *  # noqa: F403

pytestmark = pytest.mark.slow


class TestParameters(test_parameters.TestParameters):
    test_memory_depends_on_the_number_of_rows = None  # the memory of a batch is not kept from call to call


@pytest.fixture(autouse=True)
def _compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dp, "ExplicitTrainer", compiled_trainer)
