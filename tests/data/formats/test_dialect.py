"""Text tables as programs write them: Excel's sep=, R's row names, blanks between cells, no header, titles above it."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sklearn.datasets

from deltaprop import UserError
from deltaprop.data.formats import open_table
from deltaprop.data.formats.csv import CsvTable
from deltaprop.data.loading import load
from deltaprop.data.table import ReadOptions, Table

Read = tuple[list[str], list[list[str]]]


def all_rows(table: Table) -> Read:
    """Return the names and the rows of a table."""
    rows = [[*row] for batch in table.batches() for row in zip(*(c.to_pylist() for c in batch.columns), strict=True)]
    return table.names, rows


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Read]:
    """A function that returns the names and the rows of a text, from a file and from a pipe in small pieces."""

    def read(text: str, **options: Any) -> Read:
        path = tmp_path / "t.txt"
        path.write_bytes(text.encode())
        found = all_rows(open_table(path, ReadOptions(**options)))
        pipe = io.BytesIO(text.encode())
        pieces = type("Pieces", (), {"read": lambda self, size: pipe.read(min(size, 7))})()
        assert all_rows(CsvTable.of_stream(Path("stdin"), pieces, ReadOptions(**options))) == found
        return found

    return read


def refused(path: Path, text: str, **options: Any) -> str:
    """Return the error of a text."""
    path = path / "t.csv"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        open_table(path, ReadOptions(**options))
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


ROWS = [["1", "x"], ["2", "z,w"]]


@pytest.mark.parametrize("first", ["sep=;\r\n", "\ufeffsep=;\n\n", '"sep=;"\n', "SEP=;\n"])
def test_the_first_line_of_excel_says_the_delimiter(read, first: str):
    """The comma in the header would win without it."""
    assert read(f"{first}a,b;y\n1;x\n2;z,w\n") == (["a,b", "y"], ROWS)


def test_the_first_line_of_excel_may_say_tab_and_the_setting_wins(read):
    assert read("sep=\\t\na,b\ty\n1\tx\n") == (["a,b", "y"], [["1", "x"]])
    assert read("sep=,\na,b;y\n1;x\n", delimiter=";") == (["a,b", "y"], [["1", "x"]])


def test_a_column_may_be_called_sep(read):
    assert read("sep=;b\n1;2\n") == (["sep=", "b"], [["1", "2"]])


@pytest.mark.parametrize("line", ["a b y\n", "  a   b     y\n", "a b y   \n", "\ta\t\tb  y\n"])
def test_blanks_separate_columns_of_as_many_cells(read, line: str):
    """Aligned by several, or by one; a leading tab is a blank once the user says so."""
    options = {"delimiter": "space"} if "\t" in line else {}
    rows = '  1   2,5  x\n 10  -3    "y z"\n\n100 4 "a\n""b"" "\n'
    expected = [["1", "2,5", "x"], ["10", "-3", "y z"], ["100", "4", 'a\n"b" ']]
    assert read(line + rows, **options) == (["a", "b", "y"], expected)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("first name\nJohn\nMary Ann Lee\n", ["first name"]),  # not as many in each row
        ("a b,y\n1 2,x\n", ["a b", "y"]),  # another delimiter
        ("first name\n", ["first name"]),  # no row to compare with
    ],
)
def test_blanks_are_no_delimiter_where_they_could_be_text(read, text: str, names: list[str]):
    assert read(text, least=1)[0] == names


def test_a_cell_that_is_missing_between_blanks_is_refused_with_its_row(tmp_path: Path):
    (tmp_path / "t.txt").write_text("a b y\n1 2 x\n2   y\n")
    with pytest.raises(UserError, match=r"row 2: 2 cells, too few: the header has 3 \(cells are separated by bl"):
        all_rows(open_table(tmp_path / "t.txt", ReadOptions(delimiter="space")))


# What R 4 writes with write.table(d), write.table(d, sep = "\t") and write.table(d, sep = ",", quote = TRUE).
R_TEXTS = {
    "blanks": '"a" "y"\n"Mazda RX4" 21 "x"\n"Fiat" 4.5 "z w"\n',
    "tabs": '"a"\t"y"\n"Mazda RX4"\t21\t"x"\n"Fiat"\t4.5\t"z w"\n',
    "commas": '"a","y"\n"Mazda RX4",21,"x"\n"Fiat",4.5,"z w"\n',
    "tabs without quotes": "a\ty\nMazda RX4\t21\tx\nFiat\t4.5\tz w\n",
}


@pytest.mark.parametrize("text", R_TEXTS.values(), ids=R_TEXTS)
def test_the_row_names_of_r_have_no_name_in_the_header(read, text: str):
    assert read(text) == (["", "a", "y"], [["Mazda RX4", "21", "x"], ["Fiat", "4.5", "z w"]])


@pytest.mark.parametrize("delimiter", ["\t", " ", ";"])
def test_a_single_name_in_quotes_may_lack_that_of_the_row_names(read, delimiter: str):
    """R writes one column so; the delimiter is not in the header."""
    assert read(f'"x"\n"1"{delimiter}2.5\n"2"{delimiter}"a\nb"\n') == (["", "x"], [["1", "2.5"], ["2", "a\nb"]])


def test_numbers_of_rows_without_quotes_are_row_names(read):
    assert read("a y\n1 5.1 x\n2 4.9 x\n3 4.9 y\n")[0] == ["", "a", "y"]


@pytest.mark.parametrize(
    "text",
    [
        "a,y\n1,5,2\n2,3,7\n",  # decimal commas between commas
        "a,y\nx,1,5\nz,2,5\n",
        "a;y\n1;2;\n2;3;\n",  # a delimiter at the end of every row
        "a;y\n7;2;1\n8;3;1\n",  # numbers that count nothing
        "a;y\nx;2;1\nx;3;1\n",  # the same name twice
    ],
)
def test_a_row_longer_than_the_header_is_else_refused(tmp_path: Path, text: str):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(UserError, match="row 1: 3 cells, too many: the header has 2"):
        all_rows(open_table(path))


@pytest.mark.parametrize("delimiter", ["auto", ","])
def test_without_a_header_columns_have_numbers(read, delimiter: str):
    expected = ["column1", "column2"], [["5.1", "x"], ["4.9", "y"]]
    assert read("\n5.1,x\n4.9,y\n", header=False, delimiter=delimiter) == expected
    assert read("sep=;\n5.1;x\n4.9;y\n", header=False)[1] == expected[1]
    assert read("5.1 x\n 4.9  y\n", header=False) == expected


@pytest.mark.parametrize(
    "text",
    [
        "5.1,3.5,x\n4.9,3.0,y\n",
        "39, State-gov, Male, White\n50, Private, Male, Black\n38, Private, Female, White\n",  # UCI's adult, 4 columns
        "vhigh,vhigh,2,2,small\nvhigh,low,2,4,small\nlow,vhigh,4,2,big\n",  # UCI's car, 5 columns
        "p,x,s,n\ne,x,s,y\np,b,s,w\ne,f,y,n\n",  # UCI's mushroom, 4 columns
    ],
)
def test_a_row_in_place_of_the_header_is_refused_with_the_setting_that_reads_it(tmp_path: Path, text: str):
    assert "`header=False`" in refused(tmp_path, text)
    names, rows = all_rows(open_table(tmp_path / "t.csv", ReadOptions(header=False)))
    assert len(rows) == text.count("\n")
    assert names[0] == "column1"


@pytest.mark.parametrize(
    "text",
    [
        "country,year,2001\nx,7,1\nyear,8,2\n",  # years, and a name that is a value of another column
        "0,1,2\n5,6,x\n",
        ",1940,1945\nFood,22.2,44.5\nHealth,3.53,5.76\n",  # years beside an index
        "142.24,144.78\n0,1\n0,2\n".replace("142.24,144.78", '"142.24","144.78"'),  # quoted, as R has names
        "a,b\na,b\n1,2\n",  # the header again: its cells are refused later
        "sex,grade,n\nsex,A,1\nm,B,2\n",
    ],
)
def test_names_that_only_look_like_cells_are_a_header(read, text: str):
    assert read(text)[0] == text.split("\n")[0].replace('"', "").split(",")


@pytest.mark.parametrize("name", ["iris.csv", "breast_cancer.csv", "wine_data.csv"])
@pytest.mark.parametrize("header", [True, False])
def test_the_count_line_of_scikit_learn_is_refused_and_the_rest_is_read(tmp_path: Path, name: str, header: bool):
    """Its own files, from the installed package; what the message says works."""
    text = (Path(sklearn.datasets.__file__).parent / "data" / name).read_text()
    first, rest = text.split("\n", 1)
    message = refused(tmp_path, text, header=header)
    count, inputs = first.split(",")[:2]
    assert f"it counts {count} rows and {inputs} inputs" in message
    assert "remove this line, and read the rest by `header=False`" in message
    (tmp_path / "t.csv").write_text(rest)
    names, rows = all_rows(open_table(tmp_path / "t.csv", ReadOptions(header=False)))
    assert (len(rows), len(names)) == (int(count), int(inputs) + 1)


TITLES = {
    "Report 2020\n": ("the line above the header is left out: 'Report 2020'", ","),
    "Report 2020\n\nby me\n": ("the 3 lines above the header are left out: 'Report 2020', …", ","),
    "\n# made by hand, in 2020\n": ("the line above the header is left out: '# made by hand, in 2020'", ","),
    "% by me\n": ("the line above the header is left out: '% by me'", ";"),
    "Report; by me\n": ("the line above the header is left out: 'Report; by me'", ";"),
    "Report,,\n,,\n": ("the 2 lines above the header are left out: 'Report', …", ","),
    "Report 2020\n\n": ("the 2 lines above the header are left out: 'Report 2020', …", " "),
    "sep=;\nReport\n": ("the line above the header is left out: 'Report'", ";"),
    "\ufeffReport\r\n": ("the line above the header is left out: 'Report'", ","),
}


@pytest.mark.parametrize("above", TITLES)
def test_lines_above_the_header_are_left_out_and_told(tmp_path: Path, above: str):
    note, delimiter = TITLES[above]
    (tmp_path / "t.csv").write_text(above + "a,b,y\n1,2,x\n2,3,z\n3,3,x\n".replace(",", delimiter), encoding="utf-8")
    table = open_table(tmp_path / "t.csv")
    assert isinstance(table, CsvTable)
    assert table.notes == (note,)
    assert all_rows(table) == (["a", "b", "y"], [["1", "2", "x"], ["2", "3", "z"], ["3", "3", "x"]])


@pytest.mark.parametrize("ends", [",", ",,", ", ,"])
def test_a_delimiter_at_the_end_of_every_line_is_no_column(read: Callable[..., Read], ends: str):
    text = f"a,b,y{ends}\n" + "".join(f"{at},{at}.5,x{ends}\n" for at in range(9))
    names, rows = read(text)
    assert (names, rows[8]) == (["a", "b", "y"], ["8", "8.5", "x"])


def test_a_column_with_values_needs_a_name_wherever_it_is(tmp_path: Path):
    assert "column 3 has no name" in refused(tmp_path, "a,b,\n1,2,\n1,2,3\n")


def test_a_value_below_no_name_is_refused_by_its_row(tmp_path: Path):
    text = "a,b,y,\n" + "1,2,x,\n" * 300
    (tmp_path / "t.csv").write_text(text + "1,2,x,note\n")
    with pytest.raises(UserError, match=r"t\.csv: row 301: a value in column 4, which has no name in the header"):
        all_rows(open_table(tmp_path / "t.csv"))


@pytest.mark.parametrize(
    "text", ["Results,,\ntemp,press,y\nC,kPa,m\n0,1,0\n1,2,3\n", "A list,,\na,b,c\nR0,x,lo\nR1,z,hi\n"]
)
def test_what_may_be_a_header_or_a_row_is_not_left_out(tmp_path: Path, text: str):
    """A line of units below the names; text alone."""
    assert "column 2 has no name" in refused(tmp_path, text)


def test_names_of_rows_without_quotes_are_recognised_beside_decimal_points(read: Callable[..., Read]):
    """A header one short is R's; a decimal comma would lengthen a row too, but not beside decimal points."""
    names, rows = read("Area,Nearest\nBaltra,58,25.09\nCaldwell,3,0.21\n")
    assert (names, rows[0]) == (["", "Area", "Nearest"], ["Baltra", "58", "25.09"])


def test_a_decimal_comma_between_commas_is_refused(tmp_path: Path):
    text = "name,kg,price\napple,2,1,5\npear,3,2,7\n"
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UserError, match="too many"):
        all_rows(open_table(tmp_path / "t.csv"))


def test_tabs_between_names_are_blanks_if_the_lines_below_have_blanks(read: Callable[..., Read]):
    """As in Auto.data of An Introduction to Statistical Learning."""
    names, rows = read('mpg\thp weight\tname\n18.0   130.0   3504.\t"a b"\n15.0   165.0   3693.\t"c d"\n')
    assert (names, rows[0]) == (["mpg", "hp", "weight", "name"], ["18.0", "130.0", "3504.", "a b"])


def test_years_are_names_beside_others(read: Callable[..., Read]):
    names = ["Country", "Code", "1960", "1961", "1962", "1963"]
    assert read(",".join(names) + "\nAruba,ABW,54.2,54.3,54.4,54.5\nItaly,ITA,1,2,3,4\n")[0] == names


def test_a_row_of_whole_numbers_is_not_taken_for_years(tmp_path: Path):
    for text in ("x,1,5,7,9\ny,2,6,8,1\nx,3,5,7,9\n", "a,5,6,7\na,0,0,0\nb,1,1,1\n", "x,2001,2002\nx,1,2\ny,3,4\n"):
        assert "no header" in refused(tmp_path, text)


def test_the_summary_of_training_tells_of_the_lines_above_the_header(tmp_path: Path):
    rows = "".join(f"{at / 2},{at % 7},{'uv'[at % 2]}\n" for at in range(40))
    (tmp_path / "t.csv").write_text("Report 2020\na,b,y\n" + rows)
    table = load(str(tmp_path / "t.csv")).table
    assert table is not None
    assert table.notes[0] == "the line above the header is left out: 'Report 2020'"


def test_a_row_below_a_title_is_still_named_by_its_line(tmp_path: Path):
    rows = "".join(f"{at / 2},{at % 7},{'uv'[at % 2]}\n" for at in range(40))
    (tmp_path / "t.csv").write_bytes(b"Report 2020\n\na,b,y\n" + rows.encode() + b"1,\xff,u\n")
    with pytest.raises(UserError, match="line 44 is not UTF-8"):
        all_rows(open_table(tmp_path / "t.csv"))


def test_a_compressed_file_has_a_dialect_too(tmp_path: Path):
    path = tmp_path / "t.txt.gz"
    path.write_bytes(gzip.compress(b"sep=|\na|y\n1|x\n"))
    assert all_rows(open_table(path)) == (["a", "y"], [["1", "x"]])
