"""IDX files are found where torchvision, Kaggle or a person has put them; several data sets are listed."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from deltaprop.data import find_idx_files, load
from deltaprop.data.formats import open_source
from deltaprop.data.formats.idx import IdxFolder
from deltaprop.errors import UserError
from tests.data.conftest import encode_idx

MNIST_NAMES = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]
ROLES = ["train-images", "train-labels", "test-images", "test-labels"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


def touch(root: Path, names: Iterable[str]) -> None:
    """Make empty files: no file is opened to find them."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def each(pattern: Callable[[str], str]) -> list[str]:
    return [pattern(name) for name in MNIST_NAMES]


LAYOUTS = {
    "torchvision's root": each(lambda n: f"MNIST/raw/{n}"),
    "torchvision's root, with archives": each(lambda n: f"FashionMNIST/raw/{n}"),
    "a folder above that": each(lambda n: f"data/torch/KMNIST/raw/{n}"),
    "its folder": each(lambda n: f"raw/{n}"),
    "Kaggle: one folder per file": each(lambda n: f"{n}/{n}"),
    "one folder per file, points for dashes": each(lambda n: f"{n.replace('-idx', '.idx')}/{n}"),
    "one folder per file, further down": each(lambda n: f"archive/{n}/{n}.gz"),
    "upper case": each(str.upper),
    "points for every dash": each(lambda n: n.replace("-", ".")),
    "archives in upper case": each(lambda n: f"{n}.gz".upper()),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_files_are_found_in_every_layout(root: Path, layout: str):
    names = LAYOUTS[layout]
    touch(root, names)
    touch(root, [f"{name}.gz" for name in names if layout.endswith("with archives")])
    touch(root, [".git/train-images-idx3-ubyte", "notes/readme.txt", "MNIST/processed/training.pt"])
    assert find_idx_files(root) == dict(zip(ROLES, [root / name for name in names], strict=True))


def test_what_lies_in_the_folder_itself_is_taken_first(root: Path):
    """Kaggle's archive has each file twice; another set further down is another set."""
    names = each(lambda n: n.replace("-idx", ".idx"))
    touch(root, [*names, *each(lambda n: f"{n}/{n}"), *each(lambda n: f"other/{n}")])
    assert find_idx_files(root) == dict(zip(ROLES, [root / name for name in names], strict=True))


def test_several_folders_are_listed_and_each_of_them_works(root: Path):
    touch(root, [f"{name}/raw/{file}" for name in ("MNIST", "KMNIST") for file in MNIST_NAMES])
    with pytest.raises(UserError) as caught:
        find_idx_files(root)
    one, other = root / "KMNIST" / "raw", root / "MNIST" / "raw"
    assert str(caught.value) == f"{root}: more than one data set: {one}, {other}; give one of these folders"
    assert find_idx_files(other)["train-images"] == other / MNIST_NAMES[0]


def test_sets_that_differ_in_a_prefix_are_listed_and_each_of_them_works(root: Path):
    """EMNIST, as torchvision leaves it: six sets in one folder, here two."""
    raw = root / "EMNIST" / "raw"
    touch(
        raw, [f"emnist-{name}-{file.replace('t10k', 'test')}" for name in ("letters", "mnist") for file in MNIST_NAMES]
    )
    with pytest.raises(UserError) as caught:
        find_idx_files(root)
    assert str(caught.value) == (
        f"{raw}: more than one data set: emnist-letters-test-images-idx3-ubyte, emnist-mnist-test-images-idx3-ubyte; "
        f"give one of {raw / 'emnist-letters'}, {raw / 'emnist-mnist'}"
    )
    assert find_idx_files(raw / "emnist-mnist")["train-labels"] == raw / "emnist-mnist-train-labels-idx1-ubyte"
    with pytest.raises(UserError, match="no such folder"):
        find_idx_files(raw / "emnist-balanced")


def test_folders_too_deep_or_too_many_are_not_searched(root: Path, monkeypatch: pytest.MonkeyPatch):
    touch(root, each(lambda n: f"1/2/3/4/5/{n}"))
    with pytest.raises(UserError, match="no IDX files there; looked for"):
        find_idx_files(root)
    assert len(find_idx_files(root / "1")) == 4
    monkeypatch.setattr("deltaprop.data.formats.idx_files.MOST_FOLDERS", 3)
    with pytest.raises(UserError, match="no IDX files there; looked for"):
        find_idx_files(root / "1")


def test_a_set_named_by_its_prefix_is_loaded_and_evaluated(root: Path, monkeypatch: pytest.MonkeyPatch):
    raw = root / "EMNIST" / "raw"
    images, labels = np.arange(40 * 4, dtype=np.uint8).reshape(40, 2, 2), np.arange(40, dtype=np.uint8) % 2
    touch(raw, [f"emnist-letters-{name}" for name in MNIST_NAMES])
    for at, name in enumerate(MNIST_NAMES):
        (raw / f"emnist-digits-{name}.gz").write_bytes(gzip.compress(encode_idx(labels if at % 2 else images)))
    monkeypatch.chdir(root)
    data = str(Path("EMNIST", "raw", "emnist-digits"))
    assert load(data).name == "emnist-digits"
    opened = open_source(Path(data))
    assert isinstance(opened, IdxFolder)
    assert np.array_equal(opened.evaluation_part()[1], labels)
