"""The table of published results: recipes, reported numbers, and the benchmark's result file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import deltaprop as dp
from benchmarks import literature
from benchmarks.literature import BOOK, MNIST, PUBLISHED, RECIPES, SPEEDS, Published, shown, shown_speeds
from deltaprop.training.config import WHEN_ABSENT, TrainConfig, read_toml
from deltaprop.training.setup import prepare
from tests.data.conftest import MNIST as MNIST_FOLDER
from tests.data.conftest import idx_folder as idx_folder  # a fixture


def test_every_recipe_is_in_the_table_and_every_row_has_one():
    recipes = [*(row.recipe for row in PUBLISHED), *SPEEDS]
    assert sorted(path.stem for path in RECIPES.glob("*.toml")) == sorted(recipes)


@pytest.mark.parametrize("name", [*(row.recipe for row in PUBLISHED), *SPEEDS])
def test_a_recipe_is_a_valid_configuration(name: str):
    TrainConfig(**read_toml(RECIPES / f"{name}.toml")).validate()


def test_a_changed_default_does_not_change_a_recipe(idx_folder: Callable[..., Path]):
    """Each resolves, on images of MNIST's size, to the settings in fixtures/recipes.json.

    The file has those that differ from version 0.1's defaults, so a setting added later must mean what 0.1 did.
    """
    labels = np.arange(60, dtype=np.uint8) % 10
    images = np.zeros((60, 28, 28), dtype=np.uint8)
    folder = idx_folder({
        f"{part}-{kind}-ubyte": array
        for part in ("train", "t10k")
        for kind, array in (("images-idx3", images), ("labels-idx1", labels))
    })  # fmt: skip
    stored = json.loads((Path(__file__).parent / "fixtures" / "recipes.json").read_text())
    assert sorted(path.stem for path in RECIPES.glob("*.toml")) == sorted(stored)
    here = {"data": str(folder), "device": "cpu"}
    absent = {name: [*value] if isinstance(value, tuple) else value for name, value in WHEN_ABSENT.items()}
    absent |= {"missing": "auto", "columns": "infer"}  # of tables, without an effect on images
    for name, settings in stored.items():
        config = prepare(TrainConfig(**{**read_toml(RECIPES / f"{name}.toml"), **here})).config  # type: ignore[arg-type]
        assert json.loads(json.dumps(config.to_json())) == {**absent, **settings, **here}, name


@pytest.mark.parametrize("name", [*(row.recipe for row in PUBLISHED), *SPEEDS])
def test_a_recipe_names_the_published_result_and_its_source(name: str):
    """The comment has the numbers of its row in the table, and their source."""
    comment = (RECIPES / f"{name}.toml").read_text().split("\nhidden")[0]
    published = {row.recipe: ((f"{row.figure:g}",), row.source) for row in PUBLISHED}
    figures, source = published[name] if name in published else (SPEEDS[name], "chapter 5")
    assert comment.startswith("# ")
    for word in (*figures, *source.partition(",")[0].split()):
        assert word in comment, word


def test_the_table_shows_mean_range_and_time_to_accuracy():
    """Two runs of three epochs of 2 s: one reaches 95 % after 4 s, the other never."""
    runs: list[dict[str, Any]] = [
        {"val_accuracy": [0.5] * 3, "test_accuracy": [0.9, 0.95, 0.96], "seconds": [2.0] * 3},
        {"val_accuracy": [0.5] * 3, "test_accuracy": [0.9, 0.91, 0.92], "seconds": [2.0] * 3},
    ]
    right, wrong = Published("r", "net", 95.42, "page 1", BOOK), Published("w", "net", 4.7, "LeCun", MNIST)
    runs_of = {right: runs, wrong: runs}
    (row,) = shown(runs_of, BOOK).rows
    assert row == ["r", "net", "95.42, page 1", "94.00 (92.00 to 96.00)", "2", "4.0 (1 of 2)", "never", "6.0"]
    (row,) = shown(runs_of, MNIST).rows
    assert row[2:4] == ["4.7, LeCun", "6.00 (4.00 to 8.00)"]
    (row,) = shown({Published("r", "net", 51, "page 1", BOOK, "val"): runs}, BOOK).rows
    assert row[2:4] == ["51 (validation), page 1", "50.00 (50.00 to 50.00)"]


def test_the_speed_table_summarizes_all_draws():
    rows = shown_speeds({"nielsen-2-hidden": [[0.05, 0.2], [0.07, 0.4]]}).rows
    assert rows == [
        ["nielsen-2-hidden", "1", "0.0657", "0.06 (0.05 to 0.07)", "2"],
        ["nielsen-2-hidden", "2", "0.309", "0.3 (0.2 to 0.4)", "2"],
    ]


def test_a_speed_is_the_norm_of_the_bias_gradient(monkeypatch: pytest.MonkeyPatch):
    """Compared with autograd and PyTorch's own modules, on 50 training images."""
    if not MNIST_FOLDER.is_dir():
        pytest.skip("needs the MNIST files in ../shared/data/mnist")
    monkeypatch.setattr(literature, "DRAWS", 1)
    monkeypatch.setattr(literature, "IMAGES", 50)
    ((first, second),) = literature.speeds("nielsen-2-hidden", str(MNIST_FOLDER))
    settings = {**read_toml(RECIPES / "nielsen-2-hidden.toml"), "data": str(MNIST_FOLDER), "seed": 0}
    setup = prepare(TrainConfig(**settings))
    twin = dp.to_torch(setup.model)
    x, y = setup.dataset.train.inputs(slice(50)), torch.nn.functional.one_hot(setup.dataset.train.y[:50], 10)
    z = twin(x)
    (torch.nn.functional.binary_cross_entropy_with_logits(z, y.to(z), reduction="sum") / 50).backward()
    norms = [float(twin[place].bias.grad.norm()) for place in (0, 2)]  # type: ignore[index, union-attr]
    assert [first, second] == pytest.approx(norms, rel=1e-5)
    assert first < second  # the gradient vanishes


def test_the_page_keeps_the_text_around_the_table(tmp_path: Any, monkeypatch: pytest.MonkeyPatch):
    """Table, command and picture replace the old ones."""
    page, picture = tmp_path / "results.md", tmp_path / "results.png"
    page.write_text("before\n<!-- table -->\nold\n<!-- end of table -->\nafter\n")
    monkeypatch.setattr(literature, "PAGE", page)
    monkeypatch.setattr(literature, "PICTURE", picture)
    run = {"val_accuracy": [0.5] * 2, "test_accuracy": [0.9, 0.96], "seconds": [1.0] * 2, "versions": "a version"}
    for _ in range(2):
        runs = {PUBLISHED[0]: [run]}
        literature._write([shown(runs, BOOK)], runs, "python -m benchmarks.literature path/to/mnist")
        text = page.read_text()
        assert text.startswith("before\n<!-- table -->\n")
        assert text.endswith("<!-- end of table -->\nafter\n")
        assert "old" not in text
        assert text.count("| 96.00 (96.00 to 96.00) |") == text.count("`python -m benchmarks.literature") == 1
        assert "a version." in text  # the version that trained the runs, not the one that writes the page
    assert picture.read_bytes().startswith(b"\x89PNG")


class Trained:
    """A stand-in for training: records the seeds, and fails for one of them."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path, self.seeds, self.fails = path, [], -1
        monkeypatch.setattr(literature, "_train", self.train)
        monkeypatch.setattr(literature, "digest", lambda folder: folder)

    seeds: list[int]

    def train(self, published: Published, seed: int, data: str) -> dict[str, Any]:
        self.seeds.append(seed)
        if seed == self.fails:
            raise SystemExit("no")
        return {"val_accuracy": [0.5], "test_accuracy": [0.9], "seconds": [1.0]}

    def __call__(self, *more: str, data: str = "one") -> list[int]:
        """Run the benchmark; return the seeds that it trains."""
        self.seeds.clear()
        words = [data, "--recipes", PUBLISHED[0].recipe, "--results", str(self.path), *more]
        assert literature.main(words) == 0
        return self.seeds


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trained:
    return Trained(tmp_path / "results.jsonl", monkeypatch)


def test_finished_seeds_are_not_trained_again(trained: Trained):
    assert trained("--seeds", "2") == [0, 1]
    assert trained("--seeds", "3") == [2]


def test_seeds_with_other_data_or_jobs_are_trained_again(trained: Trained):
    trained("--seeds", "2")
    assert trained("--seeds", "2", data="another") == [0, 1]
    assert sorted(trained("--seeds", "2", "--jobs", "2")) == [0, 1]
    assert trained("--seeds", "2") == []


def test_other_data_are_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        literature.main(["digits"])
    assert caught.value.code == 2
    assert "digits: this is not MNIST: 1438 + 359 rows of 64 inputs" in capsys.readouterr().err


def test_results_of_other_seeds_are_kept_if_one_fails(trained: Trained):
    trained.fails = 0
    with pytest.raises(SystemExit, match="no"):
        trained("--seeds", "2", "--jobs", "2")
    trained.fails = -1
    assert 0 in trained("--seeds", "2", "--jobs", "2")
    assert trained("--seeds", "2", "--jobs", "2") == []


def test_a_truncated_line_is_trained_again(trained: Trained):
    trained("--seeds", "2")
    trained.path.write_text(trained.path.read_text()[:-20])
    assert trained("--seeds", "2") == [1]
    assert trained("--seeds", "2") == []


def test_write_is_refused_for_some_recipes(trained: Trained, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        trained("--write")
    assert "--write is for all recipes: leave --recipes out" in capsys.readouterr().err
