"""Unusual but valid tables and arrays: accepted by the command line, with the expected output."""

from __future__ import annotations

import datetime
import decimal
import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.data.cases import CLASSES, GOOD, NAMES, ROWS, A, Case, Command, N, columns, ids, npz, parts, table, typed


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """``deltaprop train`` in a separate folder."""
    return Command(tmp_path, monkeypatch, capsys)


TWO = r"data    t\S+: 2 columns of numbers\n"
ONE_AND = r"1 column of numbers and 1 column of categories \({} names, one-hot\)\n"
SHARES = r"target y: 2 classes: no 35 %, yes 65 %\n"  # 14 of 40 numbers are divisible by 3: 35 %
NAMED = GOOD.replace(ROWS, NAMES)

LINES = [
    table("CRLF", GOOD.replace("\n", "\r\n"), TWO),
    table("CR alone", GOOD.replace("\n", "\r"), TWO),
    table("line breaks of two kinds", GOOD.replace("\n", "\r\n", 20), TWO),
    table("no line break at the end", GOOD.rstrip(), TWO),
    table("blank lines between rows", "\n\na,b,y\n\n" + ROWS.replace("\n", "\n\n"), TWO),
    table("a BOM", b"\xef\xbb\xbf" + GOOD.encode(), TWO),
    table("UTF-16", GOOD.encode("utf-16"), TWO),
    table("UTF-16, the other order of bytes", b"\xfe\xff" + GOOD.encode("utf-16-be"), TWO),
    table(
        "a title above the header", "Report 2020\n\n" + GOOD, f"{TWO}[^§]*2 lines above the header .*'Report 2020', …"
    ),
    table(
        "a comment above the header",
        "# by me, 2020\n" + GOOD,
        f"{TWO}[^§]*above the header is left out: '# by me, 2020'",
    ),
    table("a BOM before a quote", b'\xef\xbb\xbf"a","b","y"\n' + ROWS.encode(), TWO),
    table(
        "a BOM before a column that is dropped",
        b"\xef\xbb\xbf" + GOOD.encode(),
        r"1 column left out: a\n",
        "--drop",
        "a",
    ),
    table("tabs", GOOD.replace(",", "\t"), TWO),
    table("semicolons", GOOD.replace(",", ";"), TWO),
    table("bars", GOOD.replace(",", "|"), TWO),
    table("colons, given", GOOD.replace(",", ":"), TWO, "--delimiter", ":"),
    table("tabs, given", GOOD.replace(",", "\t"), TWO, "--delimiter", "tab"),
    table("blanks around cells and names", " a , b , y \n" + ROWS.replace(",", "  , "), SHARES),
    table("blanks around names, numbers last", "y, a, b\n" + "no, 1, 0.5\nyes, 2, 5\n" * 20, TWO, "--target", "y"),
    table("quotes around everything", GOOD.replace(",", '","').replace("\n", '"\n"')[:-1].join(['"', ""]), TWO),
    table("a comma in a name", '"a,b",c,y\n' + ROWS, r"1 column left out: 'a,b'\n", "--drop", "a,b"),
    table("a line break in a name", '"a\nb",c,y\n' + ROWS, TWO),
    table("a line break in a cell", NAMED.replace(",p,", ',"p\np",'), ONE_AND.format(3)),
    table("a quote in a cell", NAMED.replace(",p,", ',"5"" pipe",'), ONE_AND.format(3)),
    table("a quote in a bare cell", NAMED.replace(",p,", ',5" pipe,'), ONE_AND.format(3)),
    table("a bare quote, and line breaks at the end", NAMED + '1,5" pipe,"o\no"\n1,p,"o\no"\n', "3 classes"),
    table("markup in names", "a,[red]b[/],y\n" + ROWS, TWO),
    table("markup in classes", GOOD.replace("no", "[bold]").replace("yes", "[/x]"), r"\[/x\] 65 %, \[bold\] 35 %"),
    table("numbers of 0, 1, … as a header", "0,1,2\n" + ROWS, r"target 2: 2 classes"),
    table("numbers of 1, 2, … as a header", "1,2,3\n" + ROWS, r"target 3: 2 classes"),
    table("ways to write numbers", GOOD + "+1,-.5,no\n1.,1e-3,no\n1E5,00,no\n", TWO),
    Case("gzip", gzip.compress(GOOD.encode()), TWO, file="t.csv.gz"),
    Case("gzip of two pieces", gzip.compress(b"a,b,y\n") + gzip.compress(ROWS.encode()), TWO, file="t.csv.gz"),
    Case("tabs in a .tsv", GOOD.replace(",", "\t"), TWO, file="t.tsv"),
    Case("a name in capitals", GOOD, TWO, file="t.CSV"),
]

CHOICES = [
    table("a target given twice", GOOD, TWO, "--target", "y", "y"),
    table("a number as a category", GOOD, ONE_AND.format(4), "--categorical", "b"),  # squares mod 7: 0, 1, 2, 4
    table("a number as classes", "a,y\n" + "1,0.5\n2,1.5\n" * 20, "2 classes: '0.5' 50 %, '1.5' 50 %",
          "--categorical", "y"),
    *(table(f"a missing target, {how}", GOOD + "1,2,\n", r"1 row left out: the target is missing\n", *flags)
      for how, flags in {"": (), "dropped": ("--missing", "drop"), "refused": ("--missing", "refuse")}.items()),
    table("a missing cell filled", GOOD + "1,,no\n", r"1 missing cell filled\n", "--missing", "mean"),
    table("an empty column dropped", GOOD.replace(ROWS, "1,,yes\n1,,no\n" * 20), "1 column left out: b", "--drop", "b"),
    table("several targets", GOOD, r"target a: .* ± .*, b: .* ± .* \(mean ± standard deviation of the training rows\)",
          "--target", "a", "b"),
    table("a class of two rows", GOOD + "1,2,hm\n1,3,hm\n", "3 classes: hm 4.76 %"),  # 2 of 42
    table("NA among names, given", NAMED.replace(",p,", ",NA,"), ONE_AND.format(3), "--categorical", "b"),  # Namibia
    table("a class called none, given", GOOD.replace("no\n", "none\n"), "2 classes: none 35 %", "--categorical", "y"),
    table("balanced, by one logit", GOOD, "loss    binary-cross-entropy",
          "--one-logit", "--class-weight", "balanced"),
    table("an identifier", "id,b,y\n" + "".join(f"k{i},{A[i]},{CLASSES[i]}\n" for i in range(N)),
          r"1 column left out: id \(40 names, all different\)\n"),
    table("an identifier, kept", "id,b,y\n" + "".join(f"k{i},{A[i]},{CLASSES[i]}\n" for i in range(N)),
          r"^warning: 30 inputs from 29 training rows: more than the rows can support\n", "--keep-column", "id"),
    table("row numbers", "id,b,y\n" + "".join(f"{i + 1},{A[i]},{CLASSES[i]}\n" for i in range(N)),
          r"1 column left out: id \(row numbers, 1 to 40\)\n"),
    table("a first column without a name", ",b,y\n" + ROWS, r"1 column left out: row names\n"),
    table("a class of a single row", GOOD + "1,2,maybe\n", r"1 class of a single row \('maybe'\) left out\n"),
    table("a class of a single row, kept", GOOD + "1,2,maybe\n", "3 classes: maybe 2.44 %",  # 1 of 41
          "--rare-classes", "keep"),
    table("two classes of a single row, merged", GOOD + "1,2,p\n1,2,q\n", r"3 classes: \(other\) 4.76 %",  # 2 of 42
          "--rare-classes", "merge"),
    table("a number of a single row", "a,b,y\n" + "1,2,0\n1,3,1\n" * 10 + "1,2,5\n", r"single row \('5'\) left out"),
    table("a number among names", NAMED + "70,7,no\n", ONE_AND.format(4)),
    table("NA among names", NAMED + "1,NA,no\n", r"1 missing cell filled\n"),
    table("a column that is empty", "a,b,y\n" + "1,,yes\n2,,no\n" * 20, r"1 column left out: b \(no value\)\n"),
    table("decimal commas", "a;b;y\n" + "".join(f"{A[i]};{i % 4},5;{CLASSES[i]}\n" for i in range(N)),
          r"column 'b' is read as numbers written with a decimal comma\n"),
    table("dates", "when,b,y\n" + "".join(f"2020-0{1 + i % 9}-03,{A[i]},{CLASSES[i]}\n" for i in range(N)),
          r"4 columns of numbers[\s\S]*column 'when' has dates: day, month and weekday are numbers\n"),
    table("two rows of numbers", "a,b,y\n1,2,1.5\n1,2,2.5\n",
          r"^warning: 2 inputs from 1 .*\n[\s\S]*        1 rows? to train, 0 to validate, 1 to test"),
    table("a test without targets in part", GOOD, r"1 row left out: the target is missing[\s\S]* 1 to test",
          test="a,b,y\n1,2,no\n1,2,\n"),
    table("many columns", ",".join(f"c{i}" for i in range(50)) + ",y\n" + f"{'1,' * 50}v\n{'2,' * 50}u\n" * 20,
          r"^warning: 50 inputs from 29 training rows: more than the rows can support\n"),
    table("a test in another order", GOOD, "36 rows to train, 4 to validate, 2 to", test="y,b,a\nno,1,2\nyes,2,3\n"),
    table("a test without what is dropped", "c," + GOOD.replace("\n", "\n7,")[:-2], "2 to test", "--drop", "c",
          test="a,b,y\n1,2,no\n2,3,yes\n"),
    table("a test with another delimiter", GOOD, "1 to test", test="a;b;y\n1;2;no\n"),
    table("a test with an unseen category", NAMED, r"^warning: u\.csv: column 'b' has .*name.* 'green'.*\n",
          test="a,b,y\n1,green,no\n1,p,yes\n"),
    table("a test with a cell to fill", GOOD, r"1 missing cell filled\n", "--missing", "mean", test="a,b,y\n1,,no\n"),
    table("a test with a row to drop", GOOD, r"1 row dropped because of missing cells", "--missing", "drop",
          test="a,b,y\n1,,no\n1,2,no\n"),
    table("classes with leading zeros, tested", "a,y\n" + "1,01\n2,02\n" * 20, "2 classes: '01' 50 %, '02' 50 %",
          "--categorical", "y", test="a,y\n1.5,01\n2.5,02\n"),
    Case("CSV tested by Parquet", GOOD, "2 to test", ("--test", "u.parquet"),
         beside={"u.parquet": columns(a=[1, 2], b=[3, 4], y=["no", "yes"])}),
]  # fmt: skip


PARQUET = [
    typed("decimals", [decimal.Decimal("1.25"), decimal.Decimal("2.5")] * 20, TWO),
    typed("half floats", np.array(A, dtype=np.float16), TWO),
    typed("unsigned bytes", pa.array(A, pa.uint8()), TWO),
    typed("whole numbers up to 2^63", [2**63 - 1, 2**62] * 20, ONE_AND.format(2)),
    typed("whole numbers up to 2^53", [2**53 - 1, 2**52] * 20, TWO),
    typed("dates", [datetime.date(2020, 1, 1 + i % 28) for i in range(N)], "dates: day and weekday"),
    typed("dates that do not vary", [datetime.date(2020, 1, 1)] * N, r"'c' has dates: the day is a number"),
    typed("times", [datetime.datetime(2020, 1, 1, i % 24) for i in range(N)], "dates: day and hour"),
    typed("times of day", [datetime.time(i % 24, 30) for i in range(N)], "times of day, which are numbers"),
    typed("nulls", pa.nulls(N), r"1 column left out: c \(no value\)\n"),
    typed("numbers with nulls", [1.0, None] * 20, r"20 missing cells filled\n"),
    typed("numbers with NaN", [1.0, float("nan")] * 20, r"20 missing cells filled\n"),
    typed("numbers with NaN as categories", [1.0, float("nan")] * 20, r"20 missing cells", "--categorical", "c"),
    typed("booleans with nulls", [True, None] * 20, r"20 missing cells filled\n"),
    typed("a dictionary with nulls", pa.array(["u", None] * 20).dictionary_encode(), r"20 missing cells filled\n"),
    typed("booleans", [True, False] * 20, ONE_AND.format(2)),
    typed("a dictionary", pa.array(["u", "v", "w", "x"] * 10).dictionary_encode(), ONE_AND.format(4)),
    typed("a dictionary of numbers", pa.array([1, 2, 3, 4] * 10).dictionary_encode(), TWO),
    typed("large strings", pa.array(["u", "v"] * 20, pa.large_string()), ONE_AND.format(2)),
    typed("views of strings", pa.array(["u", "v"] * 20, pa.string_view()), ONE_AND.format(2)),
    typed("numbers in text", pa.array(["1", "2.5"] * 20, pa.large_string()), TWO),
    typed("nulls, dropped", pa.nulls(N), "1 column left out: c", "--drop", "c"),
    typed("whole numbers as categories", [1, 2, 3, 4] * 10, ONE_AND.format(4), "--categorical", "c"),
    Case("Parquet with a boolean target", columns(a=A, y=[True, False] * 20), "False 50 %, True 50 %",
         file="t.parquet"),
    Case("a folder of parts", parts(p1=columns(a=A), p2=columns(a=A)), "58 rows to train", file="d"),
    Case("parts of integers and floats", parts(p1=columns(a=A), p2=columns(a=[0.5] * N)), "58 rows",
         file="d"),
    Case("a part of nulls", parts(p1=columns(a=A), p2=columns(a=pa.nulls(N))), "40 missing cells filled",
         ("--missing", "mean"), "d"),
    Case("parts beside another file", parts(p1=columns(a=A), _meta=b"x"), "29 rows to train", file="d"),
]  # fmt: skip

X, Y = np.arange(80.0).reshape(N, 2), np.arange(N) % 2


def arrays(name: str, expected: str, *flags: str, **values: object) -> Case:
    """Return a case of a .npz file of arrays."""
    return Case(f"npz: {name}", npz(**values), expected, flags, "t.npz")


CLASSES_2, NUMBER = r"2 inputs, 2 classes\n", r"2 inputs, 1 number\n"
ARRAYS = [
    arrays("x and y", CLASSES_2, x=X, y=Y),
    arrays("column by column", CLASSES_2, x=np.asfortranarray(X), y=Y),
    arrays("big-endian x", CLASSES_2, x=X.astype(">f8"), y=Y),
    arrays("big-endian y", CLASSES_2, x=X, y=Y.astype(">i4")),
    arrays("big-endian numbers to predict", NUMBER, x=X, y=(X[:, 0] + 0.5).astype(">f4")),
    arrays("half floats", CLASSES_2, x=X.astype("f2"), y=Y.astype("f2")),
    arrays("long doubles", CLASSES_2, x=X.astype(np.longdouble), y=Y),
    arrays("unsigned of 64 bits", CLASSES_2, x=X.astype("u8"), y=Y.astype("u8")),
    arrays("booleans in x", CLASSES_2, x=X > 40, y=Y),
    arrays("booleans in y", CLASSES_2, x=X, y=Y > 0),
    arrays("text in y", CLASSES_2, x=X, y=np.array(["u", "v"])[Y]),
    arrays("bytes in y", CLASSES_2, x=X, y=np.array([b"u", b"v"])[Y]),
    arrays("a class of a single row", r"1 class of a single row \('5'\) left out\n", x=X, y=[*Y[:39], 5]),
    arrays("y [N, 1]", CLASSES_2, x=X, y=Y[:, None]),
    arrays("y [N, k]", r"2 inputs, 2 numbers\n", x=X, y=X + 0.5),
    arrays("y as numbers", NUMBER, "--task", "regression", x=X, y=Y),
    arrays("y by another name", CLASSES_2, "--target", "label", x=X, label=Y),
    arrays("pictures of bytes", "28×28 pixels, 2 classes", x=np.zeros((N, 28, 28), np.uint8) + np.uint8(3), y=Y),
    arrays("with test data, in Keras's names", "36 rows to train, 4 to validate, 4 to test",
           x_train=X, y_train=Y, x_test=X[:4], y_test=Y[:4]),
    Case("npy: the last column is y", lambda path: np.save(path, np.c_[X, Y]), CLASSES_2, file="t.npy"),
    Case("npy: a pair", lambda path: np.save(path, X), CLASSES_2, ("--target", "y.npy"), "t.npy",
         {"y.npy": lambda path: np.save(path, Y)}),
]  # fmt: skip


@pytest.mark.parametrize("case", ids(LINES + CHOICES + PARQUET + ARRAYS))
def test_accepted(command: Command, case: Case):
    """Exit code 0 and the expected summary; a warning only if the case expects one."""
    output = command.accepts(case)
    assert ("warning: " in output) == case.expected.startswith("^warning: ")


def test_2000_columns_are_accepted_with_a_warning(command: Command):
    """1999 numbers and the target: all become inputs, with a warning, because there are only 20 rows."""
    header = ",".join(f"c{i}" for i in range(2000))
    rows = "".join("1.5," * 1999 + f"{CLASSES[i]}\n" for i in range(20))
    assert "1999 columns of numbers" in command.accepts(table("wide", f"{header}\n{rows}", "^warning: "))


def test_a_cell_of_5_mib_is_not_printed_in_full(command: Command):
    """The cell is longer than the 4 MiB read at a time; it must not be printed in full."""
    case = table("long", NAMED.replace("14,p,", f"14,{'x' * (5 << 20)},"), "")
    case.write(command.folder)
    code, out, err = command(case)
    assert code in (0, 2), err
    assert max(map(len, (out + err).splitlines())) < 1000
