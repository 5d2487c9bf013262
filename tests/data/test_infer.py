"""Which columns of a table are used, and as what: decided from their cells, and told."""

from __future__ import annotations

import datetime
import math
import random
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

import deltaprop as dp
from deltaprop import UserError
from deltaprop.cli import main
from deltaprop.data import CacheConfig, Dataset, Source, TableOptions, load
from deltaprop.data.columns import Column
from deltaprop.data.formats import open_table
from deltaprop.data.profile import Profile
from deltaprop.data.table import ArrowTable
from tests.data.cases import SMALL
from tests.data.reading import ROWS, beside, columns_of, names_of, numbers_of, plan_of, repeated

LETTERS = [f"k{at}" for at in range(ROWS)]
NUMBERS = [str(at) for at in range(ROWS)]


def left_out(cells: Any, **options: Any) -> str:
    """Return why a column with these cells is left out; nothing if it is used."""
    return dict(plan_of(beside(cells), **options).left_out).get("a", "")


# --- row names, row numbers, identifiers ---


@pytest.mark.parametrize("cells", [NUMBERS, [f"Mazda {at}" for at in range(ROWS)], repeated(["u", "v"])],
                         ids=["numbers", "names", "classes"])  # fmt: skip
def test_a_first_column_without_a_name_is_left_out(cells: list[str]):
    plan = plan_of({"": cells, "b": repeated(["1.5", "2.5"]), "y": repeated(["u", "v"])})
    assert plan.left_out == (("", "row names"),)
    assert [column.name for column in plan.inputs] == ["b"]


ROW_NUMBERS = {
    "from 0": (range(ROWS), 0),
    "from 1": (range(1, ROWS + 1), 1),
    "as text": (NUMBERS, 0),
    "as floats": ([float(at) for at in range(ROWS)], 0),
    "as 1.0": ([f"{at + 1}.0" for at in range(ROWS)], 1),
}


@pytest.mark.parametrize(("cells", "first"), ROW_NUMBERS.values(), ids=ROW_NUMBERS)
def test_row_numbers_are_left_out(cells: Any, first: int):
    assert left_out([*cells]) == f"row numbers, {first} to {ROWS - 1 + first}"
    assert left_out([*cells], keep_column=("a",)) == ""
    assert left_out([*cells], categorical=("a",)) == ""


NO_ROW_NUMBERS: dict[str, list[Any]] = {
    "from 2": [*range(2, ROWS + 2)],
    "with a gap": [*range(ROWS - 1), ROWS],
    "with a missing cell": [None, *range(1, ROWS)],
    "fractions": [at / 2 for at in range(ROWS)],
    "by tens": [10 * at for at in range(ROWS)],
    "years": [*range(1990, 1990 + ROWS)],
}


def test_row_numbers_are_recognised_in_any_order_where_there_are_some():
    """Of five rows 1 to 5 may be anything."""
    assert left_out([*range(ROWS)][::-1]) == f"row numbers, 0 to {ROWS - 1}"
    table = {"a": [2, 1, 3, 5, 4], "b": [0.5, 0.1, 0.2, 0.7, 0.4], "y": [0.3, 0.1, 0.5, 0.9, 0.2]}
    assert plan_of(table).left_out == ()


@pytest.mark.parametrize("cells", NO_ROW_NUMBERS.values(), ids=NO_ROW_NUMBERS)
def test_other_numbers_are_used_though_all_are_different(cells: list[Any]):
    assert left_out(cells) == ""


def test_row_numbers_are_recognised_over_several_blocks():
    table = beside(pa.chunked_array([[*range(20)], [*range(20, 30)]]))
    assert len([*table.batches()]) == 2
    assert dict(plan_of(table).left_out)["a"] == "row numbers, 0 to 29"
    assert plan_of(beside(pa.chunked_array([[*range(20)], [*range(20)]]))).left_out == ()


IDENTIFIERS = {
    "all different": (LETTERS, "30 names, all different"),
    "codes": ([f"0{at + 1000}" for at in range(ROWS)], "30 names, all different"),
    "large integers": ([2**60 + at for at in range(ROWS)], "30 names, all different"),
    "hardly any twice": (["k1", *LETTERS[1:]], "29 names, none of them frequent"),
    "each twice": (repeated([f"k{at}" for at in range(16)]), "16 names, none of them frequent"),
}


@pytest.mark.parametrize(("cells", "reason"), IDENTIFIERS.values(), ids=IDENTIFIERS)
def test_identifiers_are_left_out(cells: list[Any], reason: str):
    assert left_out(cells) == reason
    for option in ("keep_column", "categorical"):
        (column,) = columns_of("a", plan_of(beside(cells), **{option: ("a",)}))
        assert column.kind == "categories"
        assert column.frequent is None


@pytest.mark.parametrize("cells", [repeated(["u", "v"]), repeated([f"k{at}" for at in range(15)]), ["u", "v"] * 2],
                         ids=["two names", "half as many as rows", "few rows"])  # fmt: skip
def test_names_that_occur_again_are_used(cells: list[str]):
    assert left_out(cells) == ""


@pytest.mark.parametrize(
    "cells", [NUMBERS, LETTERS, ["k1", *LETTERS[1:]]], ids=["row numbers", "all different", "nearly"]
)
def test_the_only_input_is_used_whatever_it_looks_like(cells: list[str]):
    plan = plan_of({"a": cells, "y": repeated(["u", "v"])})
    assert [column.name for column in plan.inputs] == ["a"]
    assert plan.left_out == ()


def test_an_only_column_without_a_name_is_no_input():
    with pytest.raises(UserError, match=r"no column is left as an input beside the target 'y': .*row names"):
        plan_of({"": NUMBERS, "y": repeated(["u", "v"])})


# --- missing cells ---


@pytest.mark.parametrize("cells", [[""] * ROWS, ["-"] * ROWS, ["NA"] * ROWS, pa.nulls(ROWS), [math.nan] * ROWS],
                         ids=["empty", "signs", "NA", "nulls", "NaN"])  # fmt: skip
def test_a_column_without_a_value_is_left_out(cells: Any):
    assert left_out(cells, keep_column=()) in ("no value", "")
    assert [column.source for column in plan_of(beside(cells)).inputs] == ["b"]


NONES: dict[str, tuple[list[str], bool]] = {
    "the only word": (["red", "none", "blue"], True),
    "capital": (["red", "None", "blue"], True),
    "once in 30": (["none", *repeated(["red", "blue"], 29)], True),
    "frequent beside NA": (["red", "none", "NA", "blue"], True),
    "rare beside NA": (["none", "NA", *repeated(["red", "blue"], 28)], False),
    "rare beside an empty cell": (["none", "", *repeated(["red", "blue"], 28)], False),
}


@pytest.mark.parametrize(("cells", "is_name"), NONES.values(), ids=NONES)
def test_none_is_a_name_where_it_is_frequent_or_the_only_word(cells: list[str], is_name: bool):
    is_missing = {"NA", "", *(() if is_name else ("none", "None"))}
    assert names_of(repeated(cells)) == [None if cell in is_missing else cell for cell in repeated(cells)]
    assert any("None is a name" in note for note in plan_of(beside(repeated(cells))).notes) == is_name


def test_none_among_numbers_is_missing():
    cells = repeated(["1.5", "None", "2.5"])
    np.testing.assert_array_equal(numbers_of(beside(cells), plan_of(beside(cells)).inputs[0])[:3], [1.5, np.nan, 2.5])


@pytest.mark.parametrize("word", ["unknown", "UNKNOWN", "-99"])
def test_a_word_of_the_users_is_missing_in_all_columns(word: str):
    cells = repeated(["1.5", word, "2.5"])
    table = beside(cells)
    plan = plan_of(table, na_values=("Unknown", "-99"))
    assert np.isnan(numbers_of(table, plan.inputs[0])).tolist() == [cell == word for cell in cells]


# --- names among numbers, numbers among names ---

MOSTLY_TEXT = {
    "names": ["100", "2B", "00M", "171a", "5+"],
    "half": ["1", "x", "2", "y"],
    "one number": ["x", "y", "z", "7"],
    "a number with a mark": ["x", "y", "$7", "z"],
}


@pytest.mark.parametrize("cells", MOSTLY_TEXT.values(), ids=MOSTLY_TEXT)
@pytest.mark.parametrize("target", [False, True], ids=["input", "target"])
def test_text_with_some_numbers_is_names_and_it_is_told(cells: list[str], target: bool):
    options = {"target": ("a",)} if target else {}
    plan = plan_of(beside(repeated(cells)), **options)
    (column,) = columns_of("a", plan)
    assert column.kind == "categories"
    (note,) = plan.notes
    assert note.startswith("column 'a' is read as names, and ")
    assert note.endswith(" of 30 cells look like numbers")


@pytest.mark.parametrize("words", [["oops"], ["oops", "n.a."], ["a b", "it's", "x;y"], ["*oops*", "<LOD"]], ids=str)
def test_a_few_texts_among_numbers_are_refused_and_the_words_are_a_remedy(words: list[str]):
    cells = [*NUMBERS[1:], *words] * 2
    with pytest.raises(UserError, match="and the other cells are numbers") as error:
        plan_of(beside(cells))
    assert error.value.remedy == {"na_values": words}
    plan = plan_of(beside(cells), **{key: tuple(values) for key, values in error.value.remedy.items()})
    assert columns_of("a", plan)[0].kind == "numbers"


def test_many_words_are_not_asked_to_be_typed():
    """8 of 108 cells: the column is left out by the hint."""
    with pytest.raises(UserError, match=r"row 101 is 'p', row 102 is 'q', row 103 is 'r', …, and") as error:
        plan_of(beside([*map(str, range(5, 105)), *"pqrstuvw"]))
    assert error.value.remedy == {"drop": ["a"]} or error.value.remedy == {"drop": ("a",)}


def write(path: Path, columns: dict[str, Any]) -> None:
    """Write a CSV of these columns."""
    rows = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
    path.write_text("\n".join(rows) + "\n")


PROBLEMS: dict[str, dict[str, list[Any]]] = {
    "a text": {"a": [*range(2, 40), "oops", "4"]},
    "texts in three columns": {
        "a": [*range(2, 40), "oops", "4"], "b": [*range(3, 42), "what?"], "c": ["n a", *range(39)],
    },
    "text and infinity": {"a": [*range(2, 40), "oops", "4"], "b": [*range(39), "inf"], "d": [*range(40)]},
    "a comma and a text": {"a": ['"1,234"', '"2,345"'] * 20, "b": [*range(39), "oops"]},
    "a flag": {"a": [*range(2, 40), "--oops", "4"], "b": [*range(39), "it's"]},
    "a date": {"a": [f"2020-01-{at % 28 + 1:02}" for at in range(39)] + ["soon"]},
}  # fmt: skip


@pytest.mark.parametrize("columns", PROBLEMS.values(), ids=PROBLEMS)
def test_all_problems_are_told_at_once_and_the_command_works(
    columns: dict[str, Any], tmp_path: Path, monkeypatch, capsys
):
    """Pasted as it is printed, it trains."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "my table.csv", {**columns, "z": [at / 7 for at in range(40)], "y": [*"uv"] * 20})
    assert main(["train", "--data", "my table.csv", *SMALL]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    wrong = [name for name, cells in columns.items() if cells != [*range(40)]]
    assert all(f"column {name!r}" in line for name in wrong)
    assert ("2 columns cannot" in line or "3 columns cannot" in line) == (len(wrong) > 1)
    program, *words = shlex.split(line[line.index(": deltaprop train") + 2 :])
    assert program == "deltaprop"
    assert main(words) == 0


# --- what else a table may have ---


def test_a_point_separates_thousands_where_another_column_has_decimal_commas():
    """2.392 in Germany; a table of points alone has decimals."""
    pieces, prices = repeated(["2.392", "876", "19.330.001"]), repeated(["19,33", "5", "1.234,5"])
    table = {"pieces": pieces, "price": prices, "y": repeated(["u", "v"])}
    plan = plan_of(table)
    assert read_column(table, columns_of("pieces", plan)[0])[:3] == [2392, 876, 19330001]
    assert (
        "column 'pieces' is read as numbers written with a decimal comma, thousands separated by points" in plan.notes
    )
    plain = {"pieces": repeated(["2.392", "876"]), "price": repeated(["19.33", "5"]), "y": repeated(["u", "v"])}
    assert read_column(plain, columns_of("pieces", plan_of(plain))[0])[:2] == [2.392, 876]
    millions = {**table, "pieces": repeated(["3.201", "1.123.646", "8.090", "666"])}
    read_millions = read_column(millions, columns_of("pieces", plan_of(millions))[0])
    assert read_millions[:4] == [3201, 1123646, 8090, 666]
    beside_points = {**table, "points": repeated(["0.25", "1.5"])}
    assert read_column(beside_points, columns_of("pieces", plan_of(beside_points))[0])[2] == 19330001
    beside_points["pieces"] = repeated(["2.392", "876"])
    assert read_column(beside_points, columns_of("pieces", plan_of(beside_points))[0])[:2] == [2.392, 876]
    mixed = {"pieces": repeated(["2.392", "0.5"]), "price": repeated(["19,33", "5"]), "y": repeated(["u", "v"])}
    assert read_column(mixed, columns_of("pieces", plan_of(mixed))[0])[:2] == [2.392, 0.5]


def read_column(table: dict[str, Any], column: Column) -> list[float]:
    return numbers_of(ArrowTable(pa.table(table)), column).tolist()


def test_names_that_differ_in_capitals_alone_are_told():
    plan = plan_of(beside(repeated(["Yes", "yes", "No", "A", "a"])))
    assert "column 'a' has names that differ in capitals alone, such as 'Yes' and 'yes': each is another" in plan.notes
    assert not any("capitals" in note for note in plan_of(beside(repeated(["Yes", "No", "A", "a"]))).notes)


@pytest.mark.parametrize("cells", [["x"], ["5"], [7.5]], ids=["a name", "a number", "a number of Arrow's"])
def test_a_column_that_is_the_same_in_every_row_is_left_out(cells: list[Any]):
    plan = plan_of(beside(repeated(cells)))
    assert plan.left_out == (("a", "the same in every row"),)
    assert columns_of("a", plan_of(beside(repeated(cells)), keep_column=("a",)))
    assert columns_of("a", plan_of(beside(repeated([*cells, None]))))  # whether it is there tells something


def test_a_code_among_numbers_is_no_missing_value():
    with pytest.raises(UserError, match=r"row 30 is '136A', and the other cells are numbers") as error:
        plan_of(beside([*map(str, range(100, 129)), "136A"] * 2))
    assert error.value.remedy == {"categorical": ["a"]}


def test_a_target_most_of_whose_names_have_one_row_is_refused_and_another_named():
    table = {
        "a": repeated(["1.5", "2.5"], 60),
        "b": repeated([*"uv"], 60),
        "y": [f"n{max(at - 10, 0)}" for at in range(60)],
    }
    with pytest.raises(UserError, match=r"target 'y': 49 of its 50 names have one row") as error:
        plan_of(table)
    assert error.value.remedy == {"target": ["b"]}


def test_a_target_that_is_no_input_either_is_left_out_by_the_same_hint():
    table = {
        "a": repeated(["1.5", "2.5", "4"]),
        "b": repeated(["0.5", "0.75"]),
        "y": [*repeated(["1", "2"], ROWS - 1), "inf"],
    }
    with pytest.raises(UserError, match=r"target 'y': row .* is infinite") as error:
        plan_of(table)
    assert error.value.remedy == {"target": ["b"], "drop": ["y"]}
    assert plan_of(table, target=("b",), drop=("y",)).targets[0].name == "b"


def test_a_first_column_without_a_name_can_be_used_once_it_has_one():
    table = pa.table({"": repeated(["1821", "1825"]), "y": repeated(["1.5", "2.5"])})
    with pytest.raises(UserError, match=r"the first \(row names\); write a name for it into the header to use it"):
        plan_of(ArrowTable(table))


@pytest.mark.parametrize("last", ["Total,300,{a},{b}", ",300,{a},{b}", "x,300,{a},"], ids=["a word", "blank", "a part"])
def test_a_last_row_with_the_sums_of_the_others_is_told(tmp_path: Path, last: str):
    rng = np.random.default_rng(0)
    a, b = rng.integers(1, 99, 60), rng.integers(1, 9999, 60) / 100
    rows = [f"{'pqr'[at % 3]},5,{a[at]},{b[at]:.2f}" for at in range(60)]
    text = "\n".join(["name,five,a,b", *rows, last.format(a=a.sum(), b=f"{b.sum():.2f}"), ""])
    assert sums_are_told(tmp_path, text)
    assert not sums_are_told(tmp_path, text.replace(str(a.sum()), str(a.sum() + 1)))


def sums_are_told(folder: Path, text: str) -> bool:
    (folder / "t.csv").write_text(text)
    found = load(Source(data=str(folder / "t.csv"), options=TableOptions(target=("a",), missing="mean")))
    assert found.table is not None
    return any("the last row has the sums of the others" in note for note in found.table.notes)


# --- many names ---


def many(frequent: int, rare: int, each: int = 10) -> list[str]:
    """Return names: some of ten rows each, others of one."""
    return [f"f{at}" for at in range(frequent) for _ in range(each)] + [f"r{at}" for at in range(rare)]


@pytest.mark.parametrize(
    ("cells", "frequent"),
    [
        (many(3, 200), 3),
        (many(12, 300), 12),
        (many(320, 30), 300),
        (many(2, 30), 2),
        (many(100, 0), None),
        (many(3, 20), None),
    ],
    ids=["3 of 203", "12 of 312", "the 300 most frequent of 350", "2 of 32 in 50 rows", "100", "23 in 50 rows"],
)
def test_rare_ones_of_very_many_names_share_an_input(cells: list[str], frequent: int | None):
    plan = plan_of(beside(cells))
    (column,) = columns_of("a", plan)
    assert (column.frequent and len(column.frequent)) == frequent
    told = [note for note in plan.notes if "column 'a' has" in note]
    assert told == ([] if frequent is None else [
        f"column 'a' has {len({*cells})} names: the {frequent} most frequent have inputs of their own, the others "
        "share one"
    ])  # fmt: skip


def test_a_column_with_more_names_than_are_counted_is_left_out(monkeypatch: pytest.MonkeyPatch):
    """Counting ends there, to bound the memory."""
    for module in ("profile", "infer"):
        monkeypatch.setattr(f"deltaprop.data.{module}.MOST_COUNTED", 20)
    assert left_out([f"k{at % 25}" for at in range(50)]) == "more than 20 names, none of them frequent"


# --- targets ---


@pytest.mark.parametrize(
    ("cells", "problem"),
    [
        ([""] * ROWS, "it has no value"),
        (["2020-01-01", "2020-01-02"] * 15, "it has dates, which cannot be predicted"),
        ([*NUMBERS[1:], "oops"], "row 30 is 'oops', and the other cells are numbers"),
        ([*NUMBERS[1:], "inf"], "row 30 is infinite, or too large for a number"),
    ],
    ids=["nothing", "dates", "text", "infinity"],
)
def test_a_target_that_cannot_be_predicted_is_refused(cells: list[str], problem: str):
    with pytest.raises(UserError, match=f"target 'a': {problem}"):
        plan_of(beside(cells), target=("a",))


def test_another_target_is_suggested_for_a_default_that_cannot_be_one_and_the_suggestion_works():
    """The last column that can: not a constant, a date, an identifier or a column with a problem of its own."""
    table = {
        "a": repeated(["1.5", "2.5"]), "b": [str(at * 7 % 11) for at in range(ROWS)], "constant": ["7"] * ROWS,
        "word": ["x"] * ROWS, "when": repeated(["2020-01-01", "2020-01-02"]), "id": LETTERS, "y": [""] * ROWS,
    }  # fmt: skip
    with pytest.raises(UserError, match="target 'y': it has no value: correct the file, or take `target='b'`") as error:
        plan_of(table)
    assert error.value.remedy == {"target": ["b"]}
    assert [column.name for column in plan_of(table, target=("b",)).targets] == ["b"]


def test_a_target_is_neither_a_row_number_nor_an_identifier():
    """They are predicted if they are named; the last column is a default, and another is suggested there."""
    assert columns_of("a", plan_of(beside(NUMBERS), target=("a",)))[0].kind == "numbers"


# --- a table from different containers ---


@pytest.fixture
def loaded(tmp_path: Path) -> Callable[..., Dataset]:
    """A function that loads a file in float64."""

    def load_file(path: Path, memory: int = 1 << 40, **options: Any) -> Dataset:
        source = Source(data=str(path), options=TableOptions(**options), cache=CacheConfig(memory, tmp_path / "cache"))
        return load(source, dtype=torch.float64, seed=1)

    return load_file


def inputs_of(data: Dataset) -> torch.Tensor:
    """Return all inputs."""
    return torch.cat([part.inputs(slice(None)) for part in (data.train, data.val, data.test)])


def random_table(seed: int, rows: int = 50) -> dict[str, list[Any]]:
    """Return columns of random kinds, with missing cells."""
    draw = random.Random(seed)
    kinds: list[Callable[[int], Any]] = [
        lambda at: draw.gauss(0, 1) * 10.0 ** draw.randrange(-5, 6),
        lambda at: draw.randrange(-50, 50),
        lambda at: float(draw.randrange(3)),
        lambda at: draw.choice(["Rome", "Oslo", "Bern", "x y"]),
        lambda at: draw.choice(["a", "b"]) if draw.random() < 0.7 else f"rare{at}",
        lambda at: draw.random() < 0.5,
        lambda at: datetime.datetime(2020, draw.randrange(1, 13), draw.randrange(1, 29), draw.randrange(24)),
        lambda at: datetime.datetime(2020, draw.randrange(1, 13), draw.randrange(1, 29)),
        lambda at: at + 1,
        lambda at: f"id{at}",
        lambda at: 2**60 + draw.randrange(3),
    ]
    chosen = draw.sample(kinds, 5)
    columns = {}
    for number, kind in enumerate(chosen):
        gaps = draw.choice([0.0, 0.0, 0.03, 0.2])
        columns[f"c{number}"] = [None if draw.random() < gaps else kind(at) for at in range(rows)]
    return {**columns, "x": [draw.gauss(0, 1) for _ in range(rows)], "y": [draw.choice("uvw") for _ in range(rows)]}


@pytest.mark.parametrize("seed", range(12))
def test_a_table_is_the_same_from_csv_parquet_and_pandas(seed: int, tmp_path: Path, loaded: Callable[..., Dataset]):
    """The same columns, notes and inputs to the bit, however the cells are held."""
    pd = pytest.importorskip("pandas", reason="needs pandas")
    columns = random_table(seed)
    table = pa.table(columns)
    frame = pd.DataFrame({name: table[name].to_pandas(integer_object_nulls=True) for name in table.column_names})
    parquet.write_table(table, tmp_path / "t.parquet")
    frame.to_csv(tmp_path / "t.csv", index=False)
    one, other = loaded(tmp_path / "t.csv"), loaded(tmp_path / "t.parquet")
    assert one.table is not None
    assert other.table is not None
    assert one.table.encoding == other.table.encoding
    assert (one.table.left_out, one.table.gaps) == (other.table.left_out, other.table.gaps)
    assert torch.equal(inputs_of(one), inputs_of(other))
    assert torch.equal(one.train.y, other.train.y)


@pytest.mark.parametrize("seed", range(3))
def test_a_table_on_disk_is_the_same_as_in_memory(seed: int, tmp_path: Path, loaded: Callable[..., Dataset]):
    """Dates, missing cells and shared inputs; to the rounding of float32 of each column."""
    parquet.write_table(pa.table(random_table(seed, rows=300)), tmp_path / "t.parquet")
    one, other = loaded(tmp_path / "t.parquet"), loaded(tmp_path / "t.parquet", memory=1024)
    assert other.is_streamed
    assert one.table is not None
    assert other.table is not None
    assert (one.table.encoding.names, one.table.notes, one.table.left_out) == (
        other.table.encoding.names, other.table.notes, other.table.left_out
    )  # fmt: skip
    assert (one.digest, one.table.gaps) == (other.digest, other.table.gaps)
    torch.testing.assert_close(inputs_of(one), inputs_of(other), rtol=0, atol=1e-5)
    again = loaded(tmp_path / "t.parquet", memory=1024)
    assert torch.equal(inputs_of(again), inputs_of(other))
    assert again.table == other.table


# --- trained, evaluated, predicted ---


MESSY = {
    "": [*range(1, 61)],
    "id": [f"r{at}" for at in range(60)],
    "x": ["" if at % 9 == 0 else f"{at * 37 % 60},5" for at in range(60)],
    "share": ["NA" if at == 7 else f"{at * 7 % 50} %" for at in range(60)],
    "when": [f"{at % 28 + 1}.{at % 12 + 1}.2020" for at in range(60)],
    "city": ["" if at % 11 == 0 else ("Rome", "Oslo", "none")[at % 3] for at in range(60)],
    "code": [f"00{at % 4}" for at in range(60)],
    "grade": ["" if at == 13 else "rare" if at == 5 else ("100", "2B", "00M")[at * 37 % 60 // 20] for at in range(60)],
}


def write_messy(path: Path, rows: slice = slice(None), without: tuple[str, ...] = ()) -> Path:
    """Write rows of that table with semicolons."""
    columns = {name: cells[rows] for name, cells in MESSY.items() if name not in without}
    lines = [";".join(columns), *(";".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def messy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """That table, and a run that was trained on it."""
    folder = tmp_path_factory.mktemp("messy")
    path = write_messy(folder / "messy.csv")
    assert main(["train", "--data", str(path), "--run-dir", str(folder / "run"), *SMALL]) == 0
    return path, folder / "run"


def test_what_is_done_with_a_messy_table_is_told(messy: tuple[Path, Path], tmp_path: Path, capsys):
    path, _ = messy
    assert main(["train", "--data", str(path), "--run-dir", str(tmp_path / "run"), *SMALL]) == 0
    out = capsys.readouterr().out
    for line in [
        "target grade: 3 classes: ", "target 'grade': 1 class of a single row ('rare') left out",
        "column 'grade' is read as names, and 18 of 59 cells look like numbers",
        "column 'x' is read as numbers written with a decimal comma",
        "column 'share' is read as numbers written with %",
        "column 'when' has dates: day, month and weekday are numbers",
        "column 'city': None is a name (18 rows), not a missing value",
        "column 'code' has codes such as 000, which are read as names",
        "2 columns left out: row names, id (60 names, all different)", "1 row left out: the target is missing",
        "14 missing cells filled",
    ]:  # fmt: skip
        assert line in out, out


@pytest.mark.parametrize(
    "without", [(), ("grade",), ("", "id", "grade")], ids=["as it is", "no target", "inputs alone"]
)
def test_predict_takes_the_file_that_was_trained_on(messy: tuple[Path, Path], tmp_path: Path, without: tuple[str, ...]):
    """Rows without a target, missing cells, and all its ways to write numbers included."""
    path = write_messy(tmp_path / "t.csv", without=without)
    assert main(["predict", str(messy[1]), "--data", str(path), "--out", str(tmp_path / "p.csv")]) == 0
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 1 + 60


def test_evaluate_leaves_out_and_counts_what_training_did(messy: tuple[Path, Path], tmp_path: Path, capsys):
    path, run = messy
    assert main(["evaluate", str(run), "--data", str(path), "--json", str(tmp_path / "e.json")]) == 0
    report = dp.inference.evaluation.evaluate_file(dp.load(run), path)
    assert (report.rows, report.unlabelled, report.rare, report.dropped) == (58, 1, 1, 0)


@pytest.mark.parametrize("size", [1, 7])
def test_a_row_has_the_same_prediction_alone_and_in_the_file(messy: tuple[Path, Path], tmp_path: Path, size: int):
    """The form of a column is that of training, also where a few rows do not show it."""
    model = dp.load(messy[1])
    whole = model.predict_proba(messy[0])
    for start in (0, 13, 40):
        part = model.predict_proba(write_messy(tmp_path / "part.csv", slice(start, start + size)))
        np.testing.assert_allclose(part, whole[start : start + size], rtol=0, atol=1e-6)


@pytest.mark.parametrize("rare", ["drop", "keep", "merge"])
def test_a_class_of_a_single_row_stops_neither_training_nor_evaluation(rare: str, tmp_path: Path):
    classes = ["once", "alone", *("uv"[at % 2] for at in range(38))]
    write(tmp_path / "t.csv", {"a": [at / 3 for at in range(40)], "y": classes})
    words = ["--data", str(tmp_path / "t.csv"), "--run-dir", str(tmp_path / "run"), "--rare-classes", rare]
    assert main(["train", *words, *SMALL]) == 0
    model = dp.load(tmp_path / "run")
    expected = {"drop": ("u", "v"), "keep": ("alone", "once", "u", "v"), "merge": ("(other)", "u", "v")}[rare]
    assert model.class_names == expected
    report = dp.inference.evaluation.evaluate_file(model, tmp_path / "t.csv")
    assert (report.rows, report.rare) == ((38, 2) if rare == "drop" else (40, 0))


def test_merged_classes_join_a_class_of_that_name(tmp_path: Path):
    classes = ["once", "alone", "(other)", "(other)", *("uv"[at % 2] for at in range(36))]
    write(tmp_path / "t.csv", {"a": [at / 3 for at in range(40)], "y": classes})
    words = ["--data", str(tmp_path / "t.csv"), "--run-dir", str(tmp_path / "run"), "--rare-classes", "merge"]
    assert main(["train", *words, *SMALL]) == 0
    report = dp.inference.evaluation.evaluate_file(dp.load(tmp_path / "run"), tmp_path / "t.csv")
    assert {name: row["rows"] for name, row in report.by_class.items()} == {"(other)": 4, "u": 18, "v": 18}


def test_65_rows_of_6_classes_are_trained_on(loaded: Callable[..., Dataset], tmp_path: Path):
    """A fifth to test, a tenth of the rest to validate; each class has rows to train on."""
    classes = [name for name, count in zip("abcdef", (25, 15, 12, 8, 3, 2), strict=True) for _ in range(count)]
    write(tmp_path / "t.csv", {"a": [at * 37 % 65 / 3 for at in range(65)], "y": classes})
    data = loaded(tmp_path / "t.csv")
    assert (len(data.train), len(data.val), len(data.test)) == (47, 5, 13)
    assert {*data.train.y.tolist()} == {*range(6)}


# --- the identity of categories over containers ---

CODES = ["1.0", "2.0", "3.5"]
CONTAINERS: dict[str, Callable[[list[str]], Any]] = {
    "floats": lambda cells: [float(cell) for cell in cells],
    "a dictionary": lambda cells: pa.array([float(cell) for cell in cells]).dictionary_encode(),
    "decimals": lambda cells: pa.array([float(cell) for cell in cells]).cast(pa.decimal128(5, 2)),
    "text": lambda cells: cells,
    "other text": lambda cells: [cell.replace(".0", "") for cell in cells],
    "large text": lambda cells: pa.array(cells, pa.large_string()),
    "float32": lambda cells: pa.array([float(cell) for cell in cells], pa.float32()),
}


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> dp.Model:
    """A model that was trained on a CSV with a column of codes such as 1.0."""
    folder = tmp_path_factory.mktemp("coded")
    write(folder / "t.csv", {"a": repeated(CODES, 60), "b": [at / 7 for at in range(60)], "y": repeated("uvw", 60)})
    words = ["--data", str(folder / "t.csv"), "--run-dir", str(folder / "run"), "--categorical", "a"]
    assert main(["train", *words, *SMALL]) == 0
    return dp.load(folder / "run")


@pytest.mark.parametrize("container", CONTAINERS.values(), ids=CONTAINERS)
def test_a_code_is_the_same_category_from_every_container(coded: dp.Model, container: Callable[[list[str]], Any]):
    b = [0.5, 1.5, 2.5]
    expected = coded.outputs({"a": CODES, "b": b})
    assert torch.equal(coded.outputs(pa.table({"a": container(CODES), "b": b})), expected)
    assert len({tuple(row) for row in expected.tolist()}) == 3


def test_a_code_is_the_same_category_from_pandas(coded: dp.Model):
    pd = pytest.importorskip("pandas", reason="needs pandas")
    frame = pd.DataFrame({"a": [1.0, 2.0, 3.5], "b": [0.5, 1.5, 2.5]})
    expected = coded.outputs({"a": CODES, "b": [0.5, 1.5, 2.5]})
    for other in (frame, frame.astype({"a": "category"}), frame.astype({"a": "Float64"}), frame.astype({"a": object})):
        assert torch.equal(coded.outputs(other), expected)


def test_names_that_are_all_unseen_are_an_error_and_a_warning_for_a_single_row(coded: dp.Model):
    with pytest.raises(UserError, match=r"column 'a': no training row has any of its names, such as '7'"):
        coded.predict({"a": ["7", "8"], "b": [0.5, 1.5]})
    with pytest.warns(UserWarning, match="has 1|a name not seen in training, such as '7'"):
        coded.predict({"a": ["7"], "b": [0.5]})
    with pytest.warns(UserWarning, match="a name not seen in training, such as '7'"):
        coded.predict({"a": ["7", "1"], "b": [0.5, 1.5]})


def test_integers_beyond_2_to_the_53_are_classes_and_kept_by_predict(tmp_path: Path):
    """9007199254740992 and …993 are one number in float64."""
    ids = [2**53 + at for at in range(40)]
    classes = [9007199254740992 + at % 2 for at in range(40)]
    table = pa.table({"id": pa.array(ids, pa.int64()), "a": [float(at % 2) for at in range(40)], "y": classes})
    parquet.write_table(table, tmp_path / "t.parquet")
    words = ["--data", str(tmp_path / "t.parquet"), "--run-dir", str(tmp_path / "run")]
    assert main(["train", *words, *SMALL[:2], "--epochs", "20", "--log-every", "0", "--lr", "0.5"]) == 0
    model = dp.load(tmp_path / "run")
    assert model.class_names == ("9007199254740992", "9007199254740993")
    keep = ["--keep", "id", "--out", str(tmp_path / "p.parquet")]
    assert main(["predict", str(tmp_path / "run"), "--data", str(tmp_path / "t.parquet"), *keep]) == 0
    kept = parquet.read_table(tmp_path / "p.parquet")
    assert kept["id"].cast(pa.int64()).to_pylist() == ids
    assert [int(value) for value in kept["prediction"].to_pylist()] == classes


def test_na_values_of_training_are_missing_when_predicting(tmp_path: Path):
    cells = ["unknown" if at % 8 == 0 else f"{at / 3:.2f}" for at in range(40)]
    write(tmp_path / "t.csv", {"a": cells, "b": [at / 7 for at in range(40)], "y": [*"uv"] * 20})
    words = ["--data", str(tmp_path / "t.csv"), "--run-dir", str(tmp_path / "run"), "--na-values", "Unknown"]
    assert main(["train", *words, *SMALL]) == 0
    model = dp.load(tmp_path / "run")
    one, other = ({"a": [cell, "1.5"], "b": [1.0, 2.0]} for cell in ("UNKNOWN", ""))
    assert torch.equal(model.outputs(one), model.outputs(other))


def test_the_names_of_pandas_and_r_for_rows_are_left_out_of_files(tmp_path: Path):
    pd = pytest.importorskip("pandas", reason="needs pandas")
    frame = pd.DataFrame({"a": [1.5, 2.5] * 2, "y": ["u", "v"] * 2}, index=["Mazda", "Fiat", "Opel", "VW"])
    frame.to_csv(tmp_path / "t.csv")
    frame.to_parquet(tmp_path / "t.parquet")
    assert plan_of(open_table(tmp_path / "t.csv")).left_out == (("", "row names"),)
    assert open_table(tmp_path / "t.parquet").names == ["a", "y"]


def test_the_first_row_of_each_text_is_told_over_all_blocks():
    """Counted from 1; b appears in the second block alone."""
    found = Profile("a")
    for block in (["1", "x", "x", "2"], ["3", "b", "x"]):
        found.add(pa.array(block), ())
    assert found.first == {"x": 2, "b": 6}
    assert (found.numbers, found.texts, found.codes, found.points) == (3, 4, 0, 0)
