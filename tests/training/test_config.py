"""TrainConfig: invalid values, TOML files, learning rate schedules, settings missing in old files."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, ClassVar

import pytest

from deltaprop import UserError
from deltaprop.training.checkpoint import Checkpoint
from deltaprop.training.config import WHEN_ABSENT, TrainConfig, from_json, read_toml
from deltaprop.training.resume import saved_config

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"lr": 0.0}, "`lr` must be auto or a number above 0, got 0.0"),
    ({"lr": -1.0}, "`lr` must be auto or a number above 0, got -1.0"),
    ({"lr": math.nan}, "`lr` must be auto or a number above 0, got nan"),
    ({"lr": math.inf}, "`lr` must be auto or a number above 0, got inf"),
    ({"momentum": 1.0}, r"`momentum` must be in \[0, 1\), got 1.0"),
    ({"nesterov": True, "momentum": 0.0}, "`nesterov` must be used with a `momentum` above 0"),
    ({"weight_decay": -0.1}, "`weight_decay` must be auto or at least 0"),
    ({"hidden": (0,)}, "`hidden` must be positive whole numbers, got 0"),
    ({"hidden": (8, -1)}, "`hidden` must be positive whole numbers, got -1"),
    ({"activation": ("sigmiod",)}, "unknown activation 'sigmiod': did you mean 'sigmoid'"),
    ({"activation": ("relu", "tanh", "relu")}, r"one per hidden layer \(2\), got relu tanh relu"),
    ({"activation": ()}, "`activation` must be one name"),
    ({"output_activation": "softmx"}, "unknown output activation 'softmx': did you mean 'softmax'"),
    ({"loss": "crossentropy"}, "unknown loss 'crossentropy': did you mean 'cross-entropy'"),
    ({"init": "he"}, "unknown initialisation 'he'"),
    ({"lr_schedule": "cosin"}, "unknown lr schedule 'cosin': did you mean 'cosine'"),
    ({"lr_gamma": 0.0}, r"`lr_gamma` must be in \(0, 1\]"),
    ({"lr_step": 0}, "`lr_step` must be a whole number, at least 1"),
    ({"lr_warmup": -1}, "`lr_warmup` must be a whole number, at least 0"),
    ({"epochs": 0}, "`epochs` must be auto or a whole number, at least 1"),
    ({"epochs": 1.5}, "`epochs` must be auto or a whole number"),
    ({"batch_size": 0}, "`batch_size` must be a whole number, at least 1"),
    ({"val_fraction": 1.0}, r"`val_fraction` must be in \[0, 1\)"),
    ({"test_fraction": 0.0}, r"`test_fraction` must be in \(0, 1\)"),
    ({"val_split": "head"}, "unknown val split 'head'"),
    ({"scaling": "minmax"}, "unknown scaling 'minmax'"),
    ({"pixel_scale": 0.0}, "`pixel_scale` must be above 0"),
    ({"patience": -1}, "`patience` must be a whole number, at least 0"),
    ({"patience": 3, "val_fraction": 0.0}, "`patience` must be used with a `val_fraction` above 0"),
    ({"seed": -1}, "`seed` must be a whole number, at least 0"),
    ({"seed": 2**32}, r"`seed` must be below 2\^32"),
    ({"dtype": "float16"}, "unknown dtype 'float16'"),
    ({"threads": "0"}, "`threads` must be auto, tune or a number from 1"),
    ({"threads": "many"}, "`threads` must be auto, tune or a number from 1"),
    ({"log_every": -1}, "`log_every` must be auto or a whole number, at least 0"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_an_invalid_value_is_refused_in_one_line(settings: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message) as caught:
        TrainConfig(**settings).validate()
    assert "\n" not in str(caught.value)


def test_one_activation_applies_to_every_hidden_layer():
    assert TrainConfig(hidden=(3, 2), activation=("tanh",)).activations == ["tanh", "tanh"]
    assert TrainConfig(hidden=(3, 2), activation=("tanh", "relu")).activations == ["tanh", "relu"]
    assert TrainConfig(hidden=()).activations == []


def test_lr_factor_by_hand():
    """Warm-up over 2 epochs: ½, 1; then each schedule starts at 1."""
    factors = {
        "constant": [0.5, 1.0, 1.0, 1.0, 1.0, 1.0],
        "step": [0.5, 1.0, 1.0, 1.0, 0.1, 0.1],  # γ = 0.1 every 2 epochs after the warm-up
        "cosine": [0.5, 1.0, 1.0, 0.5 * (1 + math.cos(math.pi / 4)), 0.5, 0.5 * (1 + math.cos(3 * math.pi / 4))],
    }
    for schedule, expected in factors.items():
        config = TrainConfig(lr_schedule=schedule, lr_warmup=2, lr_step=2, lr_gamma=0.1, epochs=6)
        assert [config.lr_factor(epoch) for epoch in range(6)] == pytest.approx(expected)


class TestToml:
    """A TOML file may hold any setting, under the name of the flag or of the field."""

    def read(self, tmp_path: Path, text: str) -> dict[str, Any]:
        file = tmp_path / "recipe.toml"
        file.write_text(text)
        return read_toml(file)

    def test_it_gives_settings_by_field_name(self, tmp_path: Path):
        text = 'lr = 3\nbatch-size = 10\nhidden = [30]\nactivation = "sigmoid"\nthreads = 2\nrun-dir = "a/b"'
        config = TrainConfig(**self.read(tmp_path, text))
        assert (config.lr, config.batch_size, config.hidden) == (3.0, 10, (30,))
        assert (config.activation, config.threads, config.run_dir) == (("sigmoid",), "2", Path("a/b"))

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("batchsize = 3", "unknown setting 'batchsize': did you mean 'batch-size'?"),
            ("lr = 'fast'", "lr must be auto or a number, got 'fast'"),
            ("epochs = 1.5", "epochs must be auto or a whole number, got 1.5"),
            ("epochs = true", "epochs must be auto or a whole number, got True"),
            ("hidden = 30", "hidden must be a list of whole numbers, got 30"),
            ("nesterov = 1", "nesterov must be true or false, got 1"),
            ("config = 'other.toml'", "unknown setting 'config'"),
            ("lr = = 3", "not TOML"),
        ],
    )
    def test_an_invalid_file_is_refused_with_its_name(self, tmp_path: Path, text: str, message: str):
        with pytest.raises(UserError) as caught:
            self.read(tmp_path, text)
        assert message in str(caught.value)
        assert "recipe.toml" in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_missing_file_is_refused_with_its_name(self, tmp_path: Path):
        with pytest.raises(UserError, match=r"nowhere.toml'`: there is no such file"):
            read_toml(tmp_path / "nowhere.toml")


class TestAbsentSettings:
    """The config file of a run may lack settings: those added by a later version, or removed by hand."""

    OTHERS: ClassVar[dict[str, Any]] = {  # possible future defaults
        "activation": ("gelu",), "momentum": 0.5, "nesterov": True, "lr": 0.3, "batch_size": 64, "val_fraction": 0.3,
        "one_logit": True, "engine": "explicit", "missing": "mean", "pixel_scale": 16.0, "test": "test.csv",
    }  # fmt: skip

    @pytest.fixture
    def other_defaults(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Give TrainConfig other defaults than the current ones."""
        for name, value in self.OTHERS.items():
            monkeypatch.setitem(TrainConfig.__init__.__kwdefaults__, name, value)
        assert TrainConfig() == TrainConfig(**self.OTHERS)

    def test_each_setting_has_a_value_when_absent(self):
        """A new setting needs a row in WHEN_ABSENT: the behaviour of the versions before it."""
        assert set(WHEN_ABSENT) == {field.name for field in dataclasses.fields(TrainConfig)}

    def test_an_absent_setting_has_the_default_of_version_0_1(self):
        """defaults.json holds the defaults that version 0.1 wrote."""
        path = Path(__file__).parents[1] / "fixtures" / "runs-0.1" / "defaults.json"
        actual = json.loads(json.dumps(from_json("config.json", {}).to_json()))
        expected = json.loads(path.read_text())
        assert {name: actual[name] for name in expected} == expected

    @pytest.mark.usefixtures("other_defaults")
    def test_new_defaults_do_not_change_an_old_config_file(self):
        expected = TrainConfig(**{**WHEN_ABSENT, "hidden": (3,)})
        assert from_json("config.json", {"hidden": [3]}) == expected
        nulls = {"hidden": [3], "pixel_scale": None, "test": None}
        assert from_json("config.json", nulls) == expected

    @pytest.mark.usefixtures("other_defaults")
    def test_new_defaults_do_not_change_an_old_checkpoint(self):
        checkpoint = Checkpoint({}, {"config": {"hidden": [3]}})
        expected = TrainConfig(**{**WHEN_ABSENT, "hidden": (3,), "run_dir": Path("run")})
        assert saved_config(checkpoint, Path("run")) == expected

    def test_settings_in_the_file_are_used(self):
        config = TrainConfig(hidden=(3,), lr=0.1, pixel_scale=16.0, run_dir=Path("a"), nesterov=True, seed=7)
        assert from_json("config.json", json.loads(json.dumps(config.to_json()))) == config
