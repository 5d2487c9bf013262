"""Loading a run from disk, and the refusal of damaged runs in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from deltaprop import UserError
from deltaprop.training import Result
from deltaprop.training.evaluate import evaluate
from deltaprop.training.load_run import load_run
from tests.training.conftest import starter

Run = Callable[..., Result]


@pytest.mark.parametrize(
    "settings", [{}, {"data": "sine"}, {"loss": "binary-cross-entropy", "dtype": "float64"}], ids=str
)
def test_a_run_loads_with_its_data_weights_and_loss(run: Run, settings: dict[str, Any]):
    """The test loss equals the one that the run recorded."""
    result = run(**settings)
    setup = load_run(result.folder)
    for name, value in load_file(result.folder / "model.safetensors").items():
        assert torch.equal(setup.model.state_dict()[name], value)
    evaluation = evaluate(setup.model, setup.objective, setup.dataset.test, setup.dataset.target_scaling)
    assert evaluation is not None
    assert_close(evaluation.loss, result.metrics["test_loss"])


def test_the_best_weights_are_those_of_the_lowest_validation_loss(run: Run):
    result = run(epochs=5)
    setup = load_run(result.folder, "best")
    evaluation = evaluate(setup.model, setup.objective, setup.dataset.val, setup.dataset.target_scaling)
    assert evaluation is not None
    assert_close(evaluation.loss, result.best["val_loss"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one epoch."""
    return starter(tmp_path_factory.mktemp("trained"))(epochs=1).folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be damaged."""
    return shutil.copytree(trained, tmp_path / "run")


def edit_config(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    config = json.loads((path / "config.json").read_text())
    change(config)
    (path / "config.json").write_text(json.dumps(config))


def flip_a_bit(path: Path) -> None:
    """Flip one bit of the exponent of a weight, which safetensors accepts."""
    content = bytearray((path / "model.safetensors").read_bytes())
    content[-1] ^= 0x40
    (path / "model.safetensors").write_bytes(bytes(content))


def change_dtype(path: Path) -> None:
    state = load_file(path / "model.safetensors")
    save_file({name: value.long() for name, value in state.items()}, path / "model.safetensors")


def change_shape(path: Path) -> None:
    state = load_file(path / "model.safetensors")
    save_file({**state, "0.weight": torch.zeros(8, 3)}, path / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "config.json").unlink(), r"this is not a run: there is no config\.json in it"),
        (lambda path: (path / "config.json").write_text("{"), r"config\.json: damaged: "),
        (lambda path: (path / "config.json").write_bytes(b"\xff\xfe"), r"config\.json: damaged: "),
        (lambda path: (path / "config.json").write_text("[]"), r"config\.json: damaged: it has no 'resolved'"),
        (lambda path: edit_config(path, lambda c: c.pop("resolved")), r"damaged: it has no 'resolved'"),
        (lambda path: edit_config(path, lambda c: c.update(hidden="many")), r"hidden must be a list of whole numbers"),
        (lambda path: edit_config(path, lambda c: c.update(hidden=[-1])), r"hidden must be positive whole numbers"),
        (lambda path: edit_config(path, lambda c: c.update(activation=["mish"])), r"unknown activation 'mish'"),
        (
            lambda path: edit_config(path, lambda c: c["resolved"].update(split_seed=7)),
            r"loss or split differ from the last checkpoint",
        ),
        (
            lambda path: edit_config(path, lambda c: c.update(data="/gone")),
            r"its data: .*; `data` says where they are now",
        ),
        (lambda path: (path / "model.safetensors").unlink(), "there is no such file: take `weights='best'`"),
        (lambda path: (path / "model.safetensors").write_bytes(b""), "damaged: "),
        (lambda path: (path / "model.safetensors").write_bytes(b"x" * 1000), "damaged: "),
        (
            lambda path: edit_config(path, lambda c: c.update(hidden=[8, 8])),
            r"hidden layers \(8, 8\) cannot be \[2, 8, 2\]",
        ),
        (flip_a_bit, "model.safetensors: damaged: the run's last checkpoint has other weights"),
        (change_dtype, r"of torch\.int64, in the run's model \[8, 2\] of torch\.float32"),
        (lambda path: edit_config(path, lambda c: c.update(lr=10**400)), "lr must be auto or a number"),
        (lambda path: (path / "config.json").write_text("[" * 100_000), "damaged: "),
        (
            lambda path: edit_config(
                path, lambda c: (c.update(hidden=[10**9]), c["resolved"].update(sizes=[2, 10**9, 2]))
            ),
            r"in the run's model \[1000000000, 2\]",
        ),
        (
            lambda path: (
                shutil.rmtree(path / "checkpoints"),
                edit_config(path, lambda c: c["resolved"].update(split_seed="7")),
            ),
            "its split_seed is '7'",
        ),
        (change_shape, r"0\.weight is \[8, 3\] of torch\.float32, in the run's model \[8, 2\]"),
    ],
    ids=range(21),
)
def test_a_damaged_run_is_refused_in_one_line(folder: Path, damage: Callable[[Path], Any], message: str):
    damage(folder)
    with pytest.raises(UserError, match=message) as error:
        load_run(folder)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


def test_a_missing_folder_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="there is no such folder"):
        load_run(tmp_path / "none")


def test_moved_data_is_loaded_from_the_given_path(folder: Path):
    edit_config(folder, lambda config: config.update(data="/gone"))
    assert load_run(folder, data="moons").dataset.name == "moons"


def test_nothing_is_unpickled(folder: Path, tmp_path: Path):
    """A pickle under the name of the weights is damaged, not run."""

    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "sprung",))

    torch.save(Trap(), folder / "model.safetensors")
    with pytest.raises(UserError, match="damaged"):
        load_run(folder)
    assert not (tmp_path / "sprung").exists()
