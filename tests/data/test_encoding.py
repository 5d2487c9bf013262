"""From a table to inputs and targets: how columns are encoded, fitted on training rows only, and summarised."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from deltaprop import UserError
from deltaprop.cli import main
from deltaprop.data import CacheConfig, Dataset, Encoding, Scaling, Source, TableOptions, load
from deltaprop.data.cells import Form
from deltaprop.data.columns import Column
from deltaprop.data.encoding import Encoder, Input, fit_encoding
from deltaprop.data.store import InMemory
from deltaprop.training.evaluate import evaluate
from deltaprop.training.objective import choose_objective


@pytest.fixture
def read(tmp_path: Path):
    """A function that writes a CSV, and optionally a test CSV, and loads it in float64."""

    def load_text(text: str, test: str | None = None, scaling: str = "standard", **options: Any) -> Dataset:
        (tmp_path / "t.csv").write_text(text)
        (tmp_path / "u.csv").write_text(test or "")
        source = Source(
            data=str(tmp_path / "t.csv"), test=None if test is None else str(tmp_path / "u.csv"),
            options=TableOptions(**options), cache=CacheConfig(1 << 40, tmp_path / "cache"),
        )  # fmt: skip
        return load(source, scaling=scaling, dtype=torch.float64, val_fraction=0.0)

    return load_text


def f64(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


TRAIN = "a,c,y\n1,red,no\n2,blue,no\n6,red,yes\n7,green,yes\n"  # a: mean 4, deviations −3 −2 2 3, √(26/4) = √6.5
TEST = "a,c,y\n4,red,no\n"  # all rows of TRAIN are training rows then

# By hand ------------------------------------------------------------------------------------------------------------


def test_numbers_are_standardised_and_categories_one_hot_by_hand(read):
    """Numbers first; then the sorted categories blue, green, red, each 0 or 1 and not scaled; 4 is the mean, so 0."""
    data = read(TRAIN, TEST, keep_column=("c",))
    d = math.sqrt(6.5)
    assert data.table.encoding.names == ["a", "c=blue", "c=green", "c=red"]
    assert_close(data.train.x, f64([-3 / d, 0, 0, 1], [-2 / d, 1, 0, 0], [2 / d, 0, 0, 1], [3 / d, 0, 1, 0]))
    assert_close(data.test.x, f64([0, 0, 0, 1]))
    assert_close(data.input_scaling.mean, torch.tensor([4.0, 0, 0, 0], dtype=torch.float64))
    assert_close(data.input_scaling.scale, torch.tensor([d, 1, 1, 1], dtype=torch.float64))
    assert data.train.y.tolist() == [0, 0, 1, 1]


def test_targets_are_standardised_by_hand(read):
    """5 and 9: mean 7, deviation 2; the test's 11 is 2 deviations above."""
    data = read("a,y\n1,5\n2,9\n", "a,y\n1,11\n", task="regression")
    assert_close(data.train.y, f64([-1], [1]))
    assert_close(data.test.y, f64([2]))
    assert (data.target_scaling.mean.item(), data.target_scaling.scale.item()) == (7.0, 2.0)


def test_targets_are_standardised_without_scaling_too(read):
    data = read("a,y\n1,5\n2,9\n", "a,y\n1,11\n", "none", task="regression")
    assert_close(data.train.x, f64([1], [2]))
    assert_close(data.train.y, f64([-1], [1]))


def test_a_constant_column_is_zero(read):
    """A test row with another value keeps its distance: (5 − 3)/1 = 2."""
    data = read("a,b,y\n3,1,0\n3,2,1\n3,3,0\n3,4,1\n", "a,b,y\n5,1,0\n")
    assert data.train.x[:, 0].tolist() == [0.0] * 4
    assert data.test.x[0, 0].item() == 2.0


def test_a_missing_number_is_filled_with_the_mean(read):
    """1, 3, 8 have the mean 4, so a missing cell is 0 after scaling; deviations −3 −1 4: √(26/3)."""
    data = read("a,b,y\n1,1,0\n,2,1\n3,3,0\n8,4,1\n", "a,b,y\nNA,1,0\n", missing="mean")
    d = math.sqrt(26 / 3)
    assert_close(data.train.x[:, 0], torch.tensor([-3 / d, 0, -1 / d, 4 / d], dtype=torch.float64))
    assert data.test.x[0, 0].item() == 0.0
    assert data.table.encoding.inputs[0].fill == 4.0


def test_a_missing_number_has_an_input_that_says_so(read):
    """One of 16 is missing, 6.25 %, more than a twentieth: 1 there, else 0, not scaled, after the numbers.

    15 cells of 1 and 3 in turn, 8 and 7 of them: the mean is 29/15.
    """
    rows = "".join(f"{'' if i == 5 else 1 + i % 2 * 2},{i / 2},{i % 2}\n" for i in range(16))
    data = read("a,b,y\n" + rows, "a,b,y\n,1.5,0\n1,1.5,0\n")
    assert data.table.encoding.names == ["a", "b", "a=(missing)"]
    assert data.train.x[:, 2].tolist() == [float(i == 5) for i in range(16)]
    assert data.train.x[5, 0].item() == pytest.approx(0.0, abs=1e-15)
    assert data.table.encoding.inputs[0].fill == pytest.approx((8 * 1 + 7 * 3) / 15)
    assert data.test.x[:, 2].tolist() == [1, 0]


def test_a_few_missing_numbers_have_no_input_of_their_own(read):
    """One of 20 is a twentieth, no more: the mean alone."""
    rows = "".join(f"{'' if i == 5 else i % 3},{i / 2},{i % 2}\n" for i in range(20))
    data = read("a,b,y\n" + rows, TEST.replace("c", "b").replace("red", "1").replace("no", "0"))
    assert data.table.encoding.names == ["a", "b"]
    assert data.table.gaps == 1


def test_a_missing_category_has_an_input_of_its_own(read):
    """Only where a training row has one: d has none, and a missing cell of the test is 0 there."""
    text = "c,d,y\n" + "u,p,0\n,p,1\nv,q,0\nu,q,1\n" * 3
    data = read(text, "c,d,y\n,,0\nu,q,1\n")
    assert data.table.encoding.names == ["c=u", "c=v", "c=(missing)", "d=p", "d=q"]
    assert data.train.x[:3].tolist() == [[1, 0, 0, 1, 0], [0, 0, 1, 1, 0], [0, 1, 0, 0, 1]]
    assert data.test.x.tolist() == [[0, 0, 1, 0, 0], [1, 0, 0, 0, 1]]


def test_a_missing_category_is_all_zeros_if_filled_by_the_mean(read):
    data = read("c,b,y\nu,1,0\n,3,1\nv,3,0\nu,4,1\n", "c,b,y\n,1,0\n", missing="mean")
    assert data.table.encoding.names == ["b", "c=u", "c=v"]
    assert data.train.x[:, 1:].tolist() == [[1, 0], [0, 0], [0, 1], [1, 0]]
    assert data.test.x[0, 1:].tolist() == [0, 0]


GAPS = "a,c,y\n1,u,0\n,u,0\n2,v,1\n3,,1\n3,u,0\n7,v,1\n5,v,\n"


def test_rows_with_missing_cells_are_dropped(read):
    """Three of seven rows: a number, a category, a target is missing; the result is that of a table without them."""
    data = read(GAPS, "a,c,y\n1,u,0\n1,,0\n", missing="drop")
    expected = read("a,c,y\n1,u,0\n2,v,1\n3,u,0\n7,v,1\n", "a,c,y\n1,u,0\n")
    assert torch.equal(data.train.x, expected.train.x)
    assert torch.equal(data.train.y, expected.train.y)
    assert torch.equal(data.test.x, expected.test.x)


@pytest.mark.parametrize("missing", ["auto", "mean", "drop"])
def test_rows_without_a_target_are_left_out_whatever_is_done_with_inputs(read, missing: str):
    """One row of the table, one of the test; a missing input in such a row is not counted."""
    data = read(GAPS + ",,\n", "a,c,y\n1,u,0\n1,u,NA\n", missing=missing)
    rows = 4 if missing == "drop" else 6
    assert (len(data.train), len(data.test), data.table.unlabelled) == (rows, 1, 2 + 1)
    assert (data.table.dropped, data.table.gaps) == ((2, 0) if missing == "drop" else (0, 2))


def test_dropped_rows_and_filled_cells_of_the_test_data_are_counted_too(read):
    """Dropped: two of seven training rows, one of two test rows. Filled: one cell of each table."""
    assert read(GAPS, "a,c,y\n1,u,0\n1,,0\n", missing="drop").table.dropped == 2 + 1
    assert read("a,b,y\n1,1,0\n,2,1\n3,3,0\n8,4,1\n", "a,b,y\n,1,0\n", missing="mean").table.gaps == 1 + 1


def test_an_unseen_category_is_all_zeros_and_reported(read):
    data = read(TRAIN, "a,c,y\n4,pink,no\n4,red,no\n", keep_column=("c",))
    assert data.test.x[:, 1:].tolist() == [[0, 0, 0], [0, 0, 1]]
    (warning,) = (text for text in data.table.warnings if "u.csv" in text)
    assert "u.csv: column 'c' has" in warning
    assert "'pink'" in warning


def test_no_warning_if_all_categories_are_known(read):
    assert read(TRAIN.replace("green", "blue") + TRAIN[6:] * 3, TEST).table.warnings == ()


def test_a_test_column_without_any_known_category_is_refused(read):
    """Its names are written in another way, which all rows being 0 would hide; a single row may have a new name."""
    text = TRAIN.replace("green", "blue") + TRAIN[6:] * 3
    with pytest.raises(UserError, match=r"u\.csv: column 'c': no training row has any of its names, such as 'Red'"):
        read(text, "a,c,y\n4,Red,no\n4,Blue,no\n")
    assert "'Red'" in read(text, "a,c,y\n4,Red,no\n").table.warnings[0]


# Fitted on training rows only ---------------------------------------------------------------------------------------


def test_encoding_and_scaling_do_not_depend_on_test_rows(read):
    """All test rows (a fifth) are replaced by other values: the training data has the same bits."""
    draw = random.Random(0)
    rows = [[draw.gauss(0, 1), draw.choice("uvw"), i + 2, draw.gauss(0, 1)] for i in range(100)]

    def text() -> str:
        return "a,c,n,y\n" + "".join(",".join(map(str, row)) + "\n" for row in rows)

    before = read(text())
    plain = read(text(), scaling="none")
    test_rows = (plain.test.x[:, 1].int() - 2).tolist()  # n is the second number, 2 more than the number of its row
    assert len(test_rows) == 20  # a fifth of 100
    for at in test_rows:
        rows[at] = [1e6, "strange", 1e6 + at, -1e6]
    after = read(text())
    assert before.table.encoding == after.table.encoding
    for scaling in ("input_scaling", "target_scaling"):
        for name in ("mean", "scale"):
            assert torch.equal(getattr(getattr(before, scaling), name), getattr(getattr(after, scaling), name))
    assert torch.equal(before.train.x, after.train.x)
    assert torch.equal(before.train.y, after.train.y)
    assert not torch.equal(before.test.x, after.test.x)
    assert after.test.x[:, 2:].abs().sum() == 0  # "strange" is in no training row, so all 0


def test_fitting_block_by_block_equals_fitting_all_rows():
    """Means and deviations from 7 blocks against NumPy's of all rows; both ignore missing cells."""
    raw = np.random.default_rng(0).normal(5, 3, size=(700, 2))
    raw[::9, 1] = np.nan
    columns = [Column("a", "numbers"), Column("b", "numbers")]
    encoding, scaling, _ = fit_encoding(columns, [Column("y")], np.split(raw, 7), missing="mean", where="t.csv")
    assert scaling.mean.numpy() == pytest.approx(np.nanmean(raw, axis=0), rel=1e-12)
    assert scaling.scale.numpy() == pytest.approx(np.nanstd(raw, axis=0), rel=1e-12)
    assert [c.fill for c in encoding.inputs] == pytest.approx(np.nanmean(raw, axis=0).tolist(), rel=1e-12)


# The order and the choice of columns --------------------------------------------------------------------------------


def test_the_column_order_of_test_data_does_not_matter(read):
    """Columns are matched by name, and categories too, although they first appear in another order."""
    data = read(TRAIN, "a,c,y\n1,red,no\n7,blue,yes\n")
    other = read(TRAIN, "y,c,a\nno,red,1\nyes,blue,7\n")
    reordered = read(TRAIN, "c,y,a\nblue,yes,7\nred,no,1\n")
    assert torch.equal(data.test.x, other.test.x)
    assert torch.equal(data.test.y, other.test.y)
    assert torch.equal(data.test.x, reordered.test.x.flip(0))


def test_the_last_column_that_is_not_dropped_is_the_target(read):
    text = "a,b,c,d\n" + "1,2,3,4\n2,3,1,5\n" * 10
    assert read(text).table.encoding.targets == ("d",)
    assert read(text, drop=("d",)).table.encoding.targets == ("c",)
    data = read(text, target=("b",), drop=("a",))
    assert data.table.encoding.targets == ("b",)
    assert data.table.encoding.names == ["c", "d"]
    assert data.table.left_out == (("a", ""),)


def test_several_targets_keep_the_given_order(read):
    """Each column is standardised by itself: b = 30, 10 → 1, −1 and a = 1, 3 → −1, 1."""
    data = read("a,b,c\n1,30,7\n3,10,7\n", "a,b,c\n5,50,7\n", target=("b", "a"))
    assert data.n_outputs == 2
    assert_close(data.train.y, f64([1, -1], [-1, 1]))
    assert_close(data.test.y, f64([3, 3]))
    assert data.target_scaling.mean.tolist() == [20.0, 2.0]


def test_an_encoding_can_be_saved_as_json():
    inputs = (
        Input("a", "numbers", fill=0.5, absent=True, form=Form(",", ".", "€")),
        Input("c", "categories", ("u", "v"), absent=True, others=True),
        Input("when", "numbers", fill=1.0, absent=True, part="day"),
        Input("when (month)", "numbers", fill=6.5, source="when", part="month"),
        Input("d", "categories", absent=True),
    )
    for encoding in (Encoding(inputs, ("y",), (Form(mark="%"),)), Encoding(inputs[:2], ("y",))):
        saved = json.loads(json.dumps(encoding.to_json()))
        assert Encoding.from_json(saved) == encoding


def test_an_encoding_of_plain_numbers_is_saved_as_version_0_1_did():
    encoding = Encoding((Input("a", "numbers", fill=0.5), Input("c", "categories", ("u",))), ("y",))
    inputs = [{"name": "a", "kind": "numbers", "fill": 0.5}, {"name": "c", "kind": "categories", "categories": ["u"]}]
    assert encoding.to_json() == {"inputs": inputs, "targets": ["y"]}


@pytest.mark.parametrize(
    "change",
    [{"targets": ["a"]}, {"inputs": [{"name": "a", "kind": "dates"}]}, {"inputs": 3}, {"targets": [1]},
     {"inputs": [{"name": "c", "kind": "categories", "categories": ["u", "u"]}]},
     {"inputs": [{"name": "c", "kind": "categories", "categories": []}]},
     {"inputs": [{"name": "a", "kind": "numbers", "fill": math.nan}]},
     {"inputs": [{"name": "a", "kind": "numbers", "absent": 1}]},
     {"inputs": [{"name": "a", "kind": "numbers", "part": "year"}]},
     {"inputs": [{"name": "a", "kind": "numbers", "source": 3}]},
     {"inputs": [{"name": "a", "kind": "numbers", "form": {"decimal": ";"}}]},
     {"inputs": [{"name": "a", "kind": "numbers", "form": {"dezimal": ","}}]},
     {"inputs": [{"name": "a", "kind": "numbers", "form": 3}]},
     {"target_forms": [{}, {}]}, {"target_forms": 3}],
    ids=["a column twice", "a kind", "no list", "a number for a name", "a category twice", "no category", "a fill",
         "absent", "a part", "a source", "a form", "a word in a form", "no form", "two forms", "no forms"],
)  # fmt: skip
def test_a_damaged_encoding_is_refused(change: dict[str, Any]):
    valid = Encoding((Input("a", "numbers"),), ("y",)).to_json()
    with pytest.raises(UserError, match="damaged"):
        Encoding.from_json({**valid, **change})


def test_categories_are_renumbered_to_the_encoding():
    """In the file v=0, u=1; in the encoding u=0, v=1: 0 → 1, 1 → 0; missing and unseen categories become all 0."""
    encoding = Encoding((Input("c", "categories", ("u", "v")),), ("y",))
    read = {"v": 0, "u": 1, "strange": 2}
    assert encoding.indices(0, read).tolist() == [1, 0, -1, -1, -1]  # the last are for an unknown and a missing cell
    encode = Encoder(encoding, [Column("c", "categories", names=read)], Scaling.identity(2), torch.float64, "t.csv")
    x = torch.empty(4, 2, dtype=torch.float64)
    encode(InMemory(np.array([[0.0], [1.0], [2.0], [np.nan]])), np.arange(4), x)
    assert x.tolist() == [[0, 1], [1, 0], [0, 0], [0, 0]]


def test_other_and_missing_categories_are_inputs_of_their_own():
    """u, v, all others, missing; −1 in what was read is an unknown one too."""
    encoding = Encoding((Input("c", "categories", ("u", "v"), absent=True, others=True),), ("y",))
    assert encoding.names == ["c=u", "c=v", "c=(others)", "c=(missing)"]
    read = {"v": 0, "u": 1, "strange": 2}
    assert encoding.indices(0, read).tolist() == [1, 0, 2, 2, 3]
    encode = Encoder(encoding, [Column("c", "categories", names=read)], Scaling.identity(4), torch.float64, "t.csv")
    x = torch.empty(5, 4, dtype=torch.float64)
    encode(InMemory(np.array([[0.0], [1.0], [2.0], [np.nan], [-1.0]])), np.arange(5), x)
    assert x.argmax(dim=1).tolist() == [1, 0, 2, 3, 2]
    assert x.sum(dim=1).tolist() == [1.0] * 5


# Classes or numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "options", "names"),
    [
        (["b", "a"], {}, ("a", "b")),
        (["10", "9"], {}, ("9", "10")),
        (["1.0", "0.0"], {}, ("0", "1")),
        (["-1", "1"], {}, ("-1", "1")),
        ([str(i) for i in range(20)], {}, tuple(str(i) for i in range(20))),
        ([str(i) for i in range(21)], {}, ()),
        (["0.5", "1"], {}, ()),
        (["0.5", "1"], {"task": "classification"}, ("0.5", "1")),
        (["0", "1"], {"task": "regression"}, ()),
        (["10", "9"], {"categorical": ("y",)}, ("10", "9")),
        (["01", "1"], {"categorical": ("y",)}, ("01", "1")),
        ([" b ", "a", "b"], {}, ("a", "b")),
        (["Äpfel", "äpfel", "Zebra"], {}, ("Zebra", "Äpfel", "äpfel")),
    ],
    ids=["text", "by size", "whole", "negative", "20", "21", "fractions", "fractions as classes", "0 and 1 as numbers",
         "by name", "a leading zero", "blanks around", "as Unicode sorts"],
)  # fmt: skip
def test_which_targets_are_classes(read, values: list[str], options: dict[str, Any], names: tuple[str, ...]):
    """Text, or whole numbers with at most 20 different values; sorted as text or by size, named as in the file."""
    data = read("a,y\n" + "".join(f"{i},{value}\n" for i in range(10) for value in values), **options)
    assert data.class_names == names
    assert data.task == ("classification" if names else "regression")


def test_labels_are_indices_into_the_class_names(read):
    data = read("a,y\n1,u\n2,w\n3,v\n4,u\n5,w\n6,v\n", "a,y\n1,w\n2,u\n")
    assert data.class_names == ("u", "v", "w")
    assert data.train.y.tolist() == [0, 2, 1, 0, 2, 1]
    assert data.test.y.tolist() == [2, 0]


# The printed summary ------------------------------------------------------------------------------------------------


def test_the_summary_describes_the_data(tmp_path: Path, monkeypatch, capsys):
    """40 rows less one dropped: 13 of 39 are of class no, 33.3 %; 8 test rows, 3 of the other 31 for validation."""
    rows = "".join(f"{i},k{i},{'pqr'[i % 3]},{'yes' if i % 3 else 'no'}\n" for i in range(1, 40))
    (tmp_path / "t.csv").write_text("a,id,c,y\n" + rows + ",k,p,no\n")
    monkeypatch.chdir(tmp_path)
    flags = ["--hidden", "4", "--epochs", "1", "--log-every", "0", "--device", "cpu"]
    assert main(["train", "--data", "t.csv", "--drop", "id", "--missing", "drop", *flags]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.splitlines()[:6] == [
        "data    t.csv: 1 column of numbers and 1 column of categories (3 names, one-hot)",
        "        target y: 2 classes: no 33.3 %, yes 66.7 %",
        "        1 column left out: id",
        "        1 row dropped because of missing cells",
        "        28 rows to train, 3 to validate, 8 to test",
        "model   4 → 4 relu → 2",
    ]


def test_metrics_are_in_the_targets_units(read):
    """A network that outputs 0 predicts the mean, 1000: errors 200 and 100, rmse √((200² + 100²)/2), mse its square."""
    data = read("a,y\n1,900\n2,1100\n", "a,y\n1,1200\n2,900\n", task="regression")
    model = torch.nn.Linear(1, 1, dtype=torch.float64)
    torch.nn.init.zeros_(model.weight)
    torch.nn.init.zeros_(model.bias)
    evaluation = evaluate(model, choose_objective("mse", "regression", 0, "none"), data.test, data.target_scaling)
    assert evaluation.rmse == pytest.approx(math.sqrt(25000))
    assert evaluation.loss == pytest.approx(25000)


def test_the_summary_gives_a_targets_mean_and_deviation(tmp_path: Path, monkeypatch, capsys):
    """900 and 1100 in turn, with the same file as test data: 1000 ± 100."""
    (tmp_path / "t.csv").write_text("a,y\n" + "1,900\n2,1100\n" * 20)
    monkeypatch.chdir(tmp_path)
    flags = ["--task", "regression", "--test", "t.csv", "--val-fraction", "0", "--hidden", "4", "--epochs", "1"]
    assert main(["train", "--data", "t.csv", *flags, "--log-every", "0", "--device", "cpu"]) == 0
    assert "        target y: 1000 ± 100 (mean ± standard deviation of the training rows)\n" in capsys.readouterr().out


def test_a_name_none_is_one_of_the_others_again(read):
    """None is a name in training, and shares the input of the rare names: so it must afterwards."""
    shops = ["a"] * 20 + ["b"] * 20 + [f"s{at}" for at in range(100)] + ["None"] * 2
    rows = "".join(f"{shop},{at % 7},{'uv'[at % 2]}\n" for at, shop in enumerate(shops))
    data = read(f"shop,x,y\n{rows}")
    assert data.table is not None
    saved = Encoding.from_json(json.loads(json.dumps(data.table.encoding.to_json())))
    assert saved == data.table.encoding
    (column,) = [column for column in saved.columns() if column.name == "shop"]
    assert column.present == ("none",)
    with pytest.raises(UserError, match="the words"):
        Encoding.from_json({"inputs": [{"name": "a", "kind": "numbers", "present": ["x"]}], "targets": ["y"]})
