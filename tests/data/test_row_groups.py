"""A folder of Parquet parts too large for memory: its rows stay in their row groups."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from sklearn.preprocessing import StandardScaler

from deltaprop import UserError
from deltaprop.data import CacheConfig, Dataset, Fold, GroupedRows, Source, TableOptions, load
from deltaprop.data.columns import Column
from deltaprop.data.encoding import InputStatistics, encoding_of
from deltaprop.data.formats import open_table
from deltaprop.data.formats.parquet import ParquetTable
from deltaprop.data.row_groups import PARTS, Division, deal, row_groups
from deltaprop.data.scaling import Moments

GROUPS = [(500, 40), (311, 25), (77, 100), (1, 10), (409, 64)]  # rows of a file, and of its row groups
TOWNS = np.array([*"abcdefgh"])


def columns(rows: int, seed: int, **further: Any) -> dict[str, Any]:
    """Return the columns of a part: numbers of several sizes with gaps, names, and a class that follows from them."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(rows, 3)) * [0.01, 1, 100] + 1e4
    x[draw.random(x.shape) < 0.02] = np.nan
    town = draw.choice(TOWNS[: 4 + seed], rows)
    score = np.nan_to_num(x[:, 1] - 1e4) + (town == "a")
    found = {"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "town": town}
    return {**found, "y": np.where(score > 0.5, "high", "low"), "price": score * 50 + draw.normal(size=rows), **further}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of five parts, 1298 rows in 34 row groups."""
    return write(tmp_path / "parts", columns)


def write(folder: Path, make: Callable[..., dict[str, Any]], groups: list[tuple[int, int]] | None = None) -> Path:
    folder.mkdir()
    first = 0
    for part, (rows, size) in enumerate(groups or GROUPS):
        table = pa.table({"id": np.arange(rows) + first, **make(rows, part)})
        parquet.write_table(table, folder / f"part-{part}.parquet", row_group_size=size)
        first += rows
    return folder


def source(folder: Path, memory: int = 1000, **options: Any) -> Source:
    chosen: dict[str, Any] = {"target": ("y",), "drop": ("price",), **options}
    test = chosen.pop("test", None)
    cache = CacheConfig(memory, folder.parent / "cache")
    return Source(data=str(folder), options=TableOptions(**chosen), cache=cache, test=test)


def grouped(dataset: Dataset) -> GroupedRows:
    assert dataset.grouped is not None
    return dataset.grouped


def rows_of(dataset: Dataset, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x and y of all rows of a part, in the order of the table."""
    rows = grouped(dataset)
    windows = [window for at in range(len(rows.groups)) for window in rows.windows(at, (part,), 50)]
    return torch.cat([window.x for window in windows]), torch.cat([window.y for window in windows])


NUMBERS: dict[str, Any] = {"target": ("price",), "drop": ("y",)}


@pytest.mark.parametrize("options", [{}, NUMBERS], ids=["classes", "numbers"])
def test_every_row_is_in_one_part_and_they_have_the_shares_that_were_asked_for(options: dict[str, Any], folder: Path):
    dataset = load(source(folder, **options), test_fraction=0.25, val_fraction=0.2)
    assert sum(dataset.rows.values()) == 1298
    assert [dataset.rows[part] / 1298 for part in PARTS] == pytest.approx([0.6, 0.15, 0.25], abs=0.04)
    for part in PARTS:
        x, y = rows_of(dataset, part)
        assert len(x) == len(y) == dataset.rows[part]
        if dataset.class_names:
            assert torch.bincount(y, minlength=2).tolist() == dataset.class_counts(part)


def test_inputs_and_targets_are_those_of_the_same_table_in_memory(folder: Path):
    """But for the statistics of the training rows, which are others: both are undone here."""
    whole = pa.concat_tables([parquet.read_table(path) for path in sorted(folder.iterdir())]).to_pandas()
    dataset = load(source(folder, **NUMBERS), dtype=torch.float64)
    division = grouped(dataset).reading.division.parts(np.arange(1298))
    for number, part in enumerate(PARTS):
        x, y = rows_of(dataset, part)
        expected = whole[division == number]
        raw = dataset.input_scaling.invert(x).numpy()
        for at, name in enumerate("abc"):
            filled = expected[name].fillna(float(dataset.input_scaling.mean[at]))
            np.testing.assert_allclose(raw[:, at], filled, rtol=1e-12)
        assert dataset.table is not None
        towns = dataset.table.encoding.inputs[3].categories
        assert (np.array(towns)[raw[:, 3:].argmax(axis=1)] == expected["town"]).all()
        np.testing.assert_allclose(dataset.target_scaling.invert(y).squeeze(1), expected["price"], rtol=1e-12)


def test_statistics_are_those_of_scikit_learn_on_all_training_rows_at_once(folder: Path):
    whole = pa.concat_tables([parquet.read_table(path) for path in sorted(folder.iterdir())]).to_pandas()
    dataset = load(source(folder, **NUMBERS))
    trained = whole[grouped(dataset).reading.division.parts(np.arange(1298)) == 0]
    fitted = StandardScaler().fit(trained[["a", "b", "c"]].to_numpy())
    np.testing.assert_allclose(dataset.input_scaling.mean[:3], fitted.mean_, rtol=1e-13)
    np.testing.assert_allclose(dataset.input_scaling.scale[:3], fitted.scale_, rtol=1e-9)
    np.testing.assert_allclose(dataset.target_scaling.scale, trained[["price"]].std(ddof=0), rtol=1e-12)


def test_what_is_told_of_a_table_is_what_is_told_of_it_in_memory(folder: Path):
    dataset, of_memory = load(source(folder)), load(source(folder, memory=10**9))
    assert of_memory.grouped is None
    assert dataset.table is not None
    assert of_memory.table is not None
    assert dataset.class_names == of_memory.class_names
    for name in ("left_out", "gaps", "dropped", "unlabelled", "warnings", "notes"):
        assert getattr(dataset.table, name) == getattr(of_memory.table, name)
    assert dataset.table.encoding.names == of_memory.table.encoding.names
    assert (dataset.table.storage, of_memory.table.storage) == ("groups", "memory")


def test_a_single_file_and_a_run_that_began_with_a_cache_use_the_cache(folder: Path, tmp_path: Path):
    alone = source(folder)
    alone = dataclasses.replace(alone, data=str(folder / "part-0.parquet"))
    for asked in (alone, dataclasses.replace(source(folder), storage="disk")):
        dataset = load(asked)
        assert dataset.grouped is None
        assert dataset.table is not None
        assert dataset.table.storage == "disk"


def test_missing_cells_and_targets(tmp_path: Path):
    """Rows 3 and 60 have no target; ten others have a missing cell, and are dropped if that is asked."""

    def make(rows: int, part: int) -> dict[str, Any]:
        found = columns(rows, part)
        found["a"] = np.where(np.arange(rows) % 20 == 5, np.nan, 1.0 + np.arange(rows))
        found["y"] = np.where(np.isin(np.arange(rows), [3, 60]), None, found["y"])
        return {name: found[name] for name in ("a", "y")}

    parts = write(tmp_path / "gaps", make, [(200, 30)])
    for missing, dropped, gaps in (("auto", 0, 10), ("drop", 10, 0)):
        dataset = load(source(parts, drop=(), missing=missing))
        assert dataset.table is not None
        assert (dataset.table.dropped, dataset.table.unlabelled, dataset.table.gaps) == (dropped, 2, gaps)
        assert sum(dataset.rows.values()) == 198 - dropped
        assert sum(len(rows_of(dataset, part)[0]) for part in PARTS) == 198 - dropped
    with pytest.raises(UserError, match=r"part-0.parquet: row 6, column 'a': nan means a missing value"):
        load(source(parts, drop=(), missing="refuse"))


def test_a_class_that_was_drawn_for_no_training_row_is_trained_on(tmp_path: Path):
    """Else nothing could be learned of it; a class of a single row is left out, as ever."""

    def make(rows: int, part: int) -> dict[str, Any]:
        y = np.where(np.arange(rows) % 2, "even", "odd").astype(object)
        tested = np.flatnonzero(Division(0, 0.2, 0.1, "random", rows).parts(np.arange(rows)))
        y[tested[:2]], y[tested[5]] = "rare", "single"
        return {"a": np.arange(rows) * 1.5, "y": y}

    dataset = load(source(write(tmp_path / "rare", make, [(300, 20)]), drop=()))
    assert dataset.class_names == ("even", "odd", "rare")
    assert dataset.classes_left_out == ("single",)
    assert [dataset.class_counts(part)[2] for part in PARTS] == [2, 0, 0]
    assert int((rows_of(dataset, "train")[1] == 2).sum()) == 2
    assert sum(dataset.rows.values()) == 299


def odd_or(rows: int, names: dict[int, str]) -> dict[str, Any]:
    y = np.where(np.arange(rows) % 2, "even", "odd").astype(object)
    for row, name in names.items():
        y[row] = name
    return {"a": np.arange(rows) * 1.5, "y": y}


@pytest.mark.parametrize("rows", [{3: "new"}, {3: "new", 4: "new"}], ids=["one row", "two rows"])
def test_a_class_that_only_the_table_to_test_on_has_is_refused(rows: dict[int, str], tmp_path: Path):
    parts = write(tmp_path / "parts", lambda n, part: odd_or(n, {}), [(300, 20)])
    test = write(tmp_path / "test", lambda n, part: odd_or(n, rows), [(30, 20)])
    with pytest.raises(UserError, match="test: a row, column 'y': class 'new' is in no training row"):
        load(source(parts, drop=(), test=str(test)))


def test_the_table_to_test_on_does_not_decide_what_the_targets_are(tmp_path: Path):
    """Neither does it make a class of a single row one of two, nor whole numbers fractions, nor a constant vary."""
    single = write(tmp_path / "single", lambda n, part: odd_or(n, {3: "rare"}), [(300, 20)])
    test = write(tmp_path / "test", lambda n, part: odd_or(n, {5: "rare"}), [(30, 20)])
    for rare, names, tested in (("drop", ("even", "odd"), 29), ("keep", ("even", "odd", "rare"), 30)):
        dataset = load(source(single, drop=(), test=str(test), rare_classes=rare))
        assert (dataset.class_names, dataset.rows["test"]) == (names, tested)

    def numbers(values: list[float]) -> Callable[..., dict[str, Any]]:
        return lambda n, part: {"a": np.arange(n) * 1.5, "y": np.array(values)[np.arange(n) % len(values)]}

    fractions = write(tmp_path / "fractions", numbers([0.5, 1.0, 2.0]), [(30, 20)])
    whole = write(tmp_path / "whole", numbers([0.0, 1.0, 2.0]), [(300, 20)])
    with pytest.raises(UserError, match=r"class '0\.5' is in no training row"):
        load(source(whole, drop=(), test=str(fractions)))
    constant = write(tmp_path / "constant", numbers([7.5]), [(300, 20)])
    with pytest.raises(UserError, match=r"the target 'y' is 7\.5 in every row: nothing to learn"):
        load(source(constant, drop=(), test=str(fractions)))


def test_beside_a_table_to_test_on_a_class_drawn_for_validation_alone_is_trained_on(tmp_path: Path):
    validated = np.flatnonzero(Division(0, 0.0, 0.1, "random", 300).parts(np.arange(300)))[:2].tolist()
    parts = write(tmp_path / "parts", lambda n, part: odd_or(n, dict.fromkeys(validated, "rare")), [(300, 20)])
    test = write(tmp_path / "test", lambda n, part: odd_or(n, {5: "rare"}), [(30, 20)])
    dataset = load(source(parts, drop=(), test=str(test)))
    assert [dataset.class_counts(part)[2] for part in PARTS] == [2, 0, 1]
    assert dataset.rows["test"] == 30


def test_a_target_that_float64_cannot_square_is_refused(tmp_path: Path):
    def make(rows: int, part: int) -> dict[str, Any]:
        return {"a": np.arange(rows) * 1.5, "y": np.random.default_rng(0).normal(size=rows) * 1e-200}

    with pytest.raises(UserError, match="float64 cannot hold the square of that"):
        load(source(write(tmp_path / "tiny", make, [(300, 20)]), drop=()))


def test_a_column_does_not_become_constant_by_many_rows():
    """1.7e9 ± 60, in 2·10⁸ rows: the rounding of their mean could be larger than that, and is not."""
    statistics = InputStatistics([Column("a")])
    statistics.add(np.array([[1.7e9 - 60], [1.7e9 + 60]]))
    statistics.rows, statistics.moments.count = 2 * 10**8, np.array([2e8])
    _, scaling, _ = encoding_of(statistics, [Column("y")], missing="auto", where="t")
    assert scaling.scale[0] == 60.0


def test_an_empty_table_to_test_on_is_refused(folder: Path, tmp_path: Path):
    empty = write(tmp_path / "empty", lambda rows, part: columns(rows, 0), [(0, 1)])
    with pytest.raises(UserError, match="empty: there is a header, and no row below it"):
        load(source(folder, test=str(empty)))


def test_statistics_are_of_the_rows_that_are_trained_on(tmp_path: Path):
    """Without those of a class that is left out, and with those of one that was drawn for other parts alone."""
    parts_of = Division(0, 0.2, 0.1, "random", 300).parts(np.arange(300))
    trained, tested = np.flatnonzero(parts_of == 0), np.flatnonzero(parts_of == 2)
    rare = {int(trained[0]): "single", **dict.fromkeys(tested[:2].tolist(), "rare")}

    def make(rows: int, part: int) -> dict[str, Any]:
        found = odd_or(rows, rare)
        found["a"] = np.where(np.isin(np.arange(rows), [*rare]), 1e6 + np.arange(rows), found["a"])
        return {
            **found,
            "town": np.where(found["y"] == "single", "Rome", np.where(found["y"] == "rare", "Oslo", "Bern")),
        }

    dataset = load(source(write(tmp_path / "rare", make, [(300, 20)]), drop=()))
    expected = make(300, 0)["a"][sorted({*trained[1:].tolist(), *tested[:2].tolist()})]
    assert float(dataset.input_scaling.mean[0]) == pytest.approx(expected.mean(), rel=1e-12)
    assert float(dataset.input_scaling.scale[0]) == pytest.approx(expected.std(), rel=1e-12)
    assert dataset.table is not None
    assert dataset.table.encoding.inputs[1].categories == ("Bern", "Oslo")
    assert grouped(dataset).farthest == pytest.approx((expected.max() - expected.mean()) / expected.std())


def test_the_digest_covers_numbers_names_and_columns(tmp_path: Path):
    """Other names of categories, in the same places, are other data; another order of row groups too."""

    def make(rows: int, part: int, names: str = "ab", column: str = "t") -> dict[str, Any]:
        return {
            column: np.array([*names])[np.arange(rows) % 2],
            "a": np.arange(rows) * 1.5,
            "y": np.arange(rows) % 3 % 2,
        }

    kinds: list[dict[str, Any]] = [{}, {"names": "xb"}, {"column": "u"}]
    digests = [
        load(source(write(tmp_path / f"{at}", functools.partial(make, **kind), [(90, 20)]), drop=())).digest
        for at, kind in enumerate(kinds)
    ]
    digests.append(load(source(write(tmp_path / "blocks", make, [(90, 30)]), drop=())).digest)
    assert len({*digests}) == 4
    assert load(source(tmp_path / "0", drop=())).digest == digests[0]


def test_minus_zero_is_zero(tmp_path: Path):
    def make(rows: int, part: int) -> dict[str, Any]:
        return {"a": np.arange(rows) * 1.5, "y": np.array([0.0, 1.0, -0.0])[np.arange(rows) % 3]}

    assert load(source(write(tmp_path / "zero", make, [(90, 20)]), drop=())).class_names == ("0", "1")


@pytest.mark.parametrize(("least", "is_class"), [(3, True), (40, False)])
def test_whole_numbers_are_classes_if_they_are_few(least: int, is_class: bool, tmp_path: Path):
    def make(rows: int, part: int) -> dict[str, Any]:
        return {"a": np.arange(rows) * 1.5, "y": np.arange(rows) % least}

    parts = write(tmp_path / "whole", make, [(400, 60)])
    dataset = load(source(parts, drop=()))
    assert dataset.task == ("classification" if is_class else "regression")
    assert len(load(source(parts, drop=(), task="classification")).class_names) == least
    assert load(source(parts, drop=(), task="regression")).task == "regression"


def test_a_column_that_is_constant_in_the_first_rows_alone_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """And one that numbers all rows is left out, though some of them alone are looked at."""
    monkeypatch.setattr("deltaprop.data.first_look.FIRST_ROWS", 100)

    def make(rows: int, part: int) -> dict[str, Any]:
        draw = np.random.default_rng(part)
        return {"year": np.full(rows, 2000.5 + part), "a": draw.normal(size=rows), "y": np.arange(rows) % 2}

    dataset = load(source(write(tmp_path / "years", make, [(500, 20), (500, 20)]), drop=()))
    assert dataset.table is not None
    assert dataset.table.encoding.names == ["year", "a"]
    assert dataset.table.left_out == (("id", "row numbers, 0 to 999"),)
    assert dataset.table.notes == ("columns are inferred from 420 of 1000 rows",)  # of 5 and 16 row groups


def test_numbers_that_begin_anew_in_each_file_are_no_row_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In memory they are an input too; those of the first file alone could be of its rows."""
    monkeypatch.setattr("deltaprop.data.first_look.FIRST_ROWS", 100)

    def make(rows: int, part: int) -> dict[str, Any]:
        draw = np.random.default_rng(part)
        return {"at": np.arange(rows), "a": draw.normal(size=rows), "y": np.arange(rows) % 2}

    parts = write(tmp_path / "anew", make, [(500, 20), (500, 20)])
    for memory in (1000, 10**9):
        dataset = load(source(parts, memory=memory, drop=()))
        assert dataset.table is not None
        assert dataset.table.encoding.names == ["at", "a"]
        assert dataset.table.left_out == (("id", "row numbers, 0 to 999"),)


def test_a_table_to_test_on_is_read_by_its_row_groups_too(folder: Path, tmp_path: Path):
    test = write(tmp_path / "test", lambda rows, part: columns(rows, 3 + part), [(90, 40)])
    dataset = load(source(folder, test=str(test)), val_fraction=0.2)
    assert dataset.rows["test"] == 90
    assert dataset.rows["train"] + dataset.rows["val"] == 1298
    x, y = rows_of(dataset, "test")
    raw = parquet.read_table(test).to_pandas()
    assert [dataset.class_names[label] for label in y.tolist()] == raw["y"].tolist()
    middle = dataset.input_scaling.invert(x)[:, 1]
    np.testing.assert_allclose(middle, raw["b"].fillna(float(dataset.input_scaling.mean[1])), rtol=1e-6)


def test_names_that_only_the_test_table_has_are_told(folder: Path, tmp_path: Path):
    def make(rows: int, part: int) -> dict[str, Any]:
        found = columns(rows, 0)
        found["town"] = np.where(np.arange(rows) == 3, "Rome", found["town"])
        return found

    dataset = load(source(folder, test=str(write(tmp_path / "test", make, [(90, 40)]))))
    assert dataset.table is not None
    assert "column 'town' has a name not seen in training, such as 'Rome'" in dataset.table.warnings[0]


def test_the_tail_is_validated_on(folder: Path):
    dataset = load(source(folder), val_fraction=0.3, val_split="tail")
    division = grouped(dataset).reading.division.parts(np.arange(1298))
    assert (division[-389:] != 0).all()
    assert (division[:-390] != 1).all()


def test_a_sample_of_each_part_is_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of few rows it has all; of many it has rows from all over the table, about as many as are wanted."""
    parts = write(
        tmp_path / "parts", lambda n, part: {"a": np.arange(n) * 1.0 + 0.5, "y": np.arange(n) % 2}, [(4000, 500)]
    )
    dataset = load(source(parts, drop=("id",)))
    assert {part: len(getattr(dataset, part)) for part in PARTS} == dataset.rows
    monkeypatch.setattr("deltaprop.data.grouped.SAMPLE_ROWS", 100)
    dataset = load(source(parts, drop=("id",)))
    for part in PARTS:
        x = dataset.input_scaling.invert(getattr(dataset, part).inputs(slice(None)).double())[:, 0]
        assert 60 < len(x) < 140
        assert x.mean() == pytest.approx(2000, abs=500)
        within = x % 500
        assert within.mean() == pytest.approx(250, abs=60)  # not only from the beginning of row groups


def test_a_data_set_moves_with_all_its_rows(folder: Path):
    """Every machine has the meta device as a second one."""
    moved = load(source(folder)).to("meta")
    assert grouped(moved).device.type == moved.train.y.device.type == "meta"


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        ({}, {"scaling": "pixel"}, "holds no pictures"),
        ({"task": "regression"}, {}, "the target 'y' has text such as"),
        ({**NUMBERS, "task": "classification"}, {}, "the target 'price': .* classes have one row"),
    ],
)
def test_what_is_refused(options: dict[str, Any], arguments: dict[str, Any], message: str, folder: Path):
    with pytest.raises(UserError, match=message):
        load(source(folder, **options), **arguments)


def test_folds_are_drawn_from_all_rows_which_the_cache_has(folder: Path):
    dataset = load(source(folder), test_fraction=Fold(1, 3))
    assert dataset.grouped is None
    assert dataset.table is not None
    assert dataset.table.storage == "disk"
    with pytest.raises(UserError, match="`folds=3`: the run was trained on the row groups"):
        load(dataclasses.replace(source(folder), storage="groups"), test_fraction=Fold(1, 3))


def test_a_csv_table_to_test_on_is_refused(folder: Path, tmp_path: Path):
    path = tmp_path / "t.csv"
    path.write_text("id,a,b,c,town,y,price\n1,1,1,1,a,low,3\n")
    with pytest.raises(UserError, match=r"it must be Parquet as .* is, whose rows stay in their row groups"):
        load(source(folder, test=str(path)))


def test_a_run_that_began_with_row_groups_needs_them(tmp_path: Path):
    path = tmp_path / "t.csv"
    path.write_text("a,y\n1,0\n2,1\n")
    with pytest.raises(UserError, match="the run was trained on a folder of Parquet parts"):
        load(Source(data=str(path), storage="groups"))


@pytest.mark.parametrize(
    ("further", "message"),
    [
        (1, "part-0.parquet: row 178, column 'a': 'many' is text"),
        (16, "column 'a': row 178 is 'many', and the other cells are numbers"),
    ],
    ids=["not looked at", "looked at"],
)
def test_a_cell_that_does_not_fit_is_named_by_its_row(
    further: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Whether or not the columns were inferred from its row group too."""
    monkeypatch.setattr("deltaprop.data.first_look.FIRST_ROWS", 50)
    monkeypatch.setattr("deltaprop.data.first_look.FURTHER_GROUPS", further)

    def make(rows: int, part: int) -> dict[str, Any]:
        a = np.arange(rows).astype(str).astype(object)
        a[177] = "many"
        return {"a": a, "y": np.arange(rows) % 2}

    with pytest.raises(UserError, match=message):
        load(source(write(tmp_path / "text", make, [(200, 20)]), drop=()))


def test_changes_are_told(folder: Path):
    """A file that was written anew, or is gone, is not read as the one from before; nor is one cut short."""
    rows, path = grouped(load(source(folder))), folder / "part-2.parquet"
    at = next(at for at, group in enumerate(rows.groups) if group.path == path)
    content = path.read_bytes()
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"part-2.parquet: it has changed since its footer was read"):
        [*rows.windows(at, PARTS, 100)]
    path.unlink()
    with pytest.raises(UserError, match=r"part-2.parquet: there is no such file any more"):
        [*rows.windows(at, PARTS, 100)]
    path.write_bytes(content[:-500])
    with pytest.raises(UserError, match="not a sound Parquet file"):
        load(source(folder))


def test_an_empty_folder_of_parts_and_one_without_targets_are_refused(tmp_path: Path):
    empty = write(tmp_path / "empty", lambda rows, part: {"a": np.arange(0.0), "y": np.arange(0)}, [(0, 1)])
    with pytest.raises(UserError, match="no row below it"):
        load(dataclasses.replace(source(empty, drop=()), storage="groups"))

    def unlabelled(rows: int, part: int) -> dict[str, Any]:
        return {"a": np.arange(rows) * 1.0, "y": pa.array([None] * rows, pa.float64())}

    with pytest.raises(UserError, match="target 'y': it has no value"):
        load(source(write(tmp_path / "none", unlabelled, [(100, 20)]), drop=()))


def test_row_groups_are_dealt_evenly_in_the_order_of_the_table(folder: Path):
    table = open_table(folder)
    assert isinstance(table, ParquetTable)
    groups = row_groups(table.files)
    assert sum(group.rows for group in groups) == 1298
    assert [group.first for group in groups] == np.cumsum([0, *(group.rows for group in groups[:-1])]).tolist()
    assert groups[15].place(3) == f"{folder / 'part-1.parquet'}: row {groups[15].first_in_file + 3}"
    big = [dataclasses.replace(groups[0], rows=10 + at % 7) for at in range(1000)]
    rows = [sum(big[at].rows for at in stream) for stream in deal(big)]
    assert len(rows) == 64
    assert max(rows) - min(rows) <= 16
    assert sorted(at for stream in deal(big) for at in stream) == [*range(1000)]


def test_the_draw_of_parts_has_no_pattern():
    """The share of neighbours that are both tested is that of independent draws; another seed draws others."""
    rows = np.arange(200_000)
    tested = [Division(seed, 0.2, 0.1, "random", 200_000).parts(rows) == 2 for seed in (0, 1)]
    for own in tested:
        assert own.mean() == pytest.approx(0.2, abs=0.004)
        assert (own[1:] & own[:-1]).mean() == pytest.approx(0.04, abs=0.003)
    assert (tested[0] & tested[1]).mean() == pytest.approx(0.04, abs=0.003)


def test_merged_statistics_are_those_of_all_rows():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(500, 2)) * [1, 1e-3] + [0, 1e6]
    x[draw.random(x.shape) < 0.1] = np.nan
    whole, merged = Moments(2), Moments(2)
    whole.add(x)
    for part in np.array_split(x, [0, 1, 90, 400]):
        own = Moments(2)
        own.add(part)
        merged.merge(Moments.from_json(own.to_json()))
    for name in ("count", "mean", "variance"):
        np.testing.assert_allclose(getattr(merged, name), getattr(whole, name), rtol=1e-7)
    assert InputStatistics.from_json([], InputStatistics([]).to_json()).rows == 0
