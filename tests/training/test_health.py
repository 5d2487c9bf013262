"""The line about a layer that learns little: planted faults are found, healthy networks get none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from deltaprop.data import BUILTIN
from deltaprop.training.config import TrainConfig
from deltaprop.training.health import health_note
from deltaprop.training.setup import Setup, prepare
from tests.training.conftest import starter


def moons(**settings: Any) -> Setup:
    """Return an untrained run on moons, with two hidden layers of 20."""
    return prepare(TrainConfig(**{"data": "moons", "hidden": (20, 20), "lr": 0.05, "seed": 0, **settings}))


@torch.no_grad()
def change(setup: Setup, layer: int, *, bias: float = 0.0, factor: float = 1.0, units: int = 20) -> None:
    """Add to the biases and multiply the weights of the first units of a hidden layer, 1 or 2."""
    module = setup.model[2 * (layer - 1)]
    module.bias[:units] += bias
    module.weight[:units] *= factor


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid", "gelu", "leaky_relu", "elu", "silu", "softplus"])
def test_an_untrained_network_is_healthy(activation: str):
    assert health_note(moons(activation=activation)) is None


@pytest.mark.parametrize(("units", "is_told"), [(18, True), (17, False)])
def test_dead_units_are_told_from_nine_tenths_on(units: int, is_told: bool):
    """A bias of −100 keeps relu at 0 on all rows; a unit that was dead before would be the nineteenth."""
    setup = moons(activation="relu", init="kaiming")
    change(setup, 2, bias=-100.0, units=units)
    note = health_note(setup)
    assert (note is not None) == is_told
    if note is not None:
        assert note == (
            "layer 2 learns little: 18 of its 20 relu units are positive on none of 720 training rows (dead); "
            "try a lower `lr` (it is 0.05), `init='kaiming'`, or `activation='leaky_relu'`"
        )


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_saturated_units_are_told(activation: str):
    """At z = ±100 σ' is 0."""
    setup = moons(activation=activation)
    change(setup, 1, bias=100.0)
    note = health_note(setup)
    assert note is not None
    assert note.startswith(f"layer 1 learns little: 100 % of the values of its {activation} units are where σ' is near")
    assert note.endswith("or `activation='relu'`")


def test_a_vanishing_delta_is_told():
    """δ^1 has W^2 as a factor: 1e-7 of it is 1e-7 of the norm, for weights of layer 2 that are otherwise about 0.1."""
    setup = moons(activation="tanh")
    change(setup, 2, factor=1e-7)
    note = health_note(setup)
    assert note is not None
    assert note.startswith("layer 1 learns little: the norm of its δ is ")
    assert "of the output layer's" in note


def test_the_step_function_gets_no_second_note():
    """It is said at the start that layers before it are not trained."""
    assert health_note(moons(activation="step")) is None


def test_the_result_of_a_run_has_the_note(tmp_path: Path):
    """At η = 5 relu dies at once."""
    result = starter(tmp_path)(data="sine", hidden=(8, 8), loss="huber", lr=5.0, epochs=1, engine="explicit")
    assert result.health is not None
    assert "(dead)" in result.health
    assert starter(tmp_path / "other")(epochs=1).health is None


@pytest.mark.slow
@pytest.mark.parametrize("data", BUILTIN)
def test_the_defaults_are_healthy_on_every_built_in_set(data: str, tmp_path: Path):
    start = starter(tmp_path)
    for seed in range(5):
        assert start(data=data, hidden=(128, 64), epochs=30, engine="explicit", seed=seed).health is None


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "gelu"])
@pytest.mark.parametrize("data", ["digits", "moons", "spirals"])
def test_other_activations_that_learn_are_healthy(data: str, activation: str, tmp_path: Path):
    result = starter(tmp_path)(data=data, hidden=(128, 64), epochs=30, engine="explicit", activation=activation)
    assert result.health is None
