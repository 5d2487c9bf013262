"""Malformed tables are refused by the command line in one line that names the file, row, column and a remedy.

Refused means: exit code 2, one line on stderr, nothing on stdout, and no new file or folder.
"""

from __future__ import annotations

import datetime
import gzip
import random
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.data.cases import (
    CLASSES,
    GOOD,
    NAMES,
    ROWS,
    A,
    Case,
    Command,
    N,
    columns,
    cut,
    everything,
    ids,
    parts,
    table,
    typed,
)


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """``deltaprop train`` in a separate folder."""
    return Command(tmp_path, monkeypatch, capsys)


EMPTY = r"t\.csv: the file is empty: a header and rows are needed"
NO_ROW = r"t\.csv: there is a header, and no row below it"
FILLS = r".*--missing auto.*--missing drop.*--drop b"
AT_B = r"t\.csv: row 41, column 'b': "
REFUSE = ("--missing", "refuse")
IN_B = r"t\.csv: column 'b': row 41 is "
COMMAND = "correct the file, or take {0}: deltaprop train --data t.* {0}"  # which can be pasted
TO_TYPE = r".*, and the other cells are numbers: " + COMMAND.format("--na-values {0}")
DROPS = COMMAND.format("--drop {0}")
INFINITE = IN_B + r"infinite, or too large for a number: " + DROPS.format("b")
FEW = r"cells?, too few: the header has 3 .*--delimiter.*"
UTF8 = r".*save it as UTF-8, or, if Windows wrote it, take --encoding cp1252: deltaprop train .*--encoding cp1252"
HALVES = "a,y\n" + "".join(f"1,{i}.5\n" for i in range(N))
HUGE = 5 << 20  # bytes of a cell: more than the 4 MiB read at a time
BIG = "".join(f"{i * 7919 % 100003},{i},{CLASSES[i % N]}\n" for i in range(60000))  # more than a block of text

HEADERS = [
    table("nothing", "", EMPTY),
    table("a BOM alone", b"\xef\xbb\xbf", EMPTY),
    table("blanks alone", "\n\r\n  \n", EMPTY),
    table("a header alone", "a,b,y\n", NO_ROW),
    table("a header alone without a line break", "a,b,y", NO_ROW),
    table(
        "no header",
        "1,2.5,yes\n" + ROWS,
        r"t\.csv: no header: .*\(1, …\): read it as a row by --no-header, or "
        r"put a line with a name for each column above it: deltaprop train --data t\.csv .* --no-header",
    ),
    table("no header, all numbers", "0.5,7,8\n" + "1,2,3\n2,3,4\n" * 9, r"t\.csv: no header: .*\(0\.5, …\): .*"),
    table("a name twice", "a,a,y\n" + ROWS, r"t\.csv: columns 1 and 2 are both called 'a': rename one"),
    table("a name twice but for blanks", "a, a ,y\n" + ROWS, r"t\.csv: columns 1 and 2 are both called 'a': rename .*"),
    table("a column without a name", "a,,y\n" + ROWS, r"t\.csv: column 2 has no name, .*: write a name for it .*"),
    table("two columns without a name", ",,y\n" + ROWS, r"t\.csv: column 2 has no name, .*: write a name for it .*"),
    table("one column", "a\n1\n2\n3\n", r"t\.csv: one column, 'a': inputs and a target need two .*--delimiter\)"),
    table("another delimiter than given", GOOD, r"t\.csv: one column, 'a,b,y': .*semicolon.*", "--delimiter", ";"),
    table("a quote opened in the header", 'a,"b,y\n' + ROWS, r't\.csv: a quote \("\) is opened in the header and .*'),
    table("a header without an end", "a,b" * (1 << 18), r"t\.csv: no end of the header .*: is this a CSV file\?"),
    table("latin-1 in the header", "a,caf\xe9,y\n".encode("latin-1"), r"t\.csv: the header .*0xe9" + UTF8),
]

MALFORMED_ROWS = [
    table("too few cells", GOOD + "1,2\n" + ROWS, r"t\.csv: row 41: 2 " + FEW),
    table("too few cells in the first row", "a,b,y\n1,2\n" + ROWS, r"t\.csv: row 1: 2 " + FEW),
    table("too many cells", GOOD + "1,2,no,4\n", r"t\.csv: row 41: 4 cells, too many: the header has 3 .*"),
    table("a delimiter at the end of every row", "a,b,y\n" + ROWS.replace("\n", ",\n"), r"t\.csv: row 1: 4 cells, .*"),
    table("tabs below semicolons", "a;b;y\n" + ROWS.replace(",", "\t"), r"t\.csv: row 1: 1 " + FEW),
    table("too few cells after line breaks in cells", 'a,b,y\n1,"x\nz",no\n1,"x\r\n\nz",no\nq,yes\n', r".*row 3: 2.*"),
    table("too few cells after blank lines", "a,b,y\n\n1,2,no\n\n2,no\n", r"t\.csv: row 2: 2 " + FEW),
    table("a row of blanks", "a,b,y\n   \n" + ROWS, r"t\.csv: row 1: 1 " + FEW),
    table("Ctrl-Z at the end", GOOD + "\x1a", r"t\.csv: row 41: 1 " + FEW),
    table("too few cells and not UTF-8", GOOD.encode() + b"1,caf\xe9\n", r"t\.csv: (row 41|line 42).*"),
    table("a quote never closed", GOOD + '1,2,"no\n' + ROWS, r't\.csv: row 41: a quote \("\) is opened and never .*'),
    table("a quote never closed in the first column", GOOD + '"1,2,no\n' + ROWS, r"t\.csv: row 41: .*"),
    table("a file that ends in a quoted cell", GOOD + '1,2,"no', r"t\.csv: row 41: a quote .*never closed.*"),
    table("latin-1 in row 1000", b"a,b,y\n" + NAMES.encode() * 24 + NAMES.encode()[:-1].replace(b"q", b"\xe9"),
          r"t\.csv: (line 963|row 962)\D.*0xe9" + UTF8),
    table("UTF-8 cut short", GOOD.encode() + b"1,2,n\xc3", r"t\.csv: (line 42|row 41)\D.*0xc3" + UTF8),
    table("half a surrogate pair", GOOD.encode() + b"1,\xed\xa0\x80,no\n", r"t\.csv: (line 42|row 41)\D.*" + UTF8),
    table("UTF-16, said to be UTF-8", GOOD.encode("utf-16"), r"t\.csv: this is UTF-16, not UTF-8: save it as UTF-8",
          "--encoding", "utf-8"),
    table("not in the encoding", "a,é,y\n1,2,no\n".encode(),
          r"t\.csv: this is not ascii \(byte 0xc3\): try another --encoding", "--encoding", "ascii"),
    table("an unknown encoding", GOOD, r"--encoding must be auto, or the name of an encoding such as cp1252, got hex",
          "--encoding", "hex"),
    table("JSON lines", '{"a": 1, "y": 2}\n', r"t\.csv: this is JSON, not CSV: name it \.jsonl"),
    table("a JSON list", '[{"a": 1, "y": 2}]', r"t\.csv: this is JSON, not CSV: name it \.json"),
    table("UTF-16 without a BOM", GOOD.encode("utf-16-le"), r"t\.csv: .*zero bytes.*"),
    table("a zero byte", GOOD + "1,\0,no\n", r"t\.csv: .*zero byte.*"),
    table("a zero byte far below", "a,b,y\n" + NAMES * 500 + "1,\0,no\n", r"t\.csv: .*zero byte.*"),
    table("a cell of 5 MiB among numbers", GOOD + f"1,{'x' * HUGE},no\n", r"t\.csv: .*row 4[01].*"),
]  # fmt: skip

CELLS = [
    table("text among numbers", GOOD + "1,oops,no\n", IN_B + "'oops'" + TO_TYPE.format("oops")),
    table("text among numbers, in the middle", GOOD + "1,oops,no\n" + ROWS, IN_B + "'oops'" + TO_TYPE.format("oops")),
    table("text among numbers, far below", "a,b,y\n" + BIG * 5 + "1,oops,no\n",
          r"t\.csv: column 'b': row 300001 is .*"),
    table("text among numbers, twice", GOOD + "1,oops,no\n1,unk nown,no\n1,oops,no\n",
          IN_B + r"'oops', row 42 is 'unk nown'" + TO_TYPE.format("oops 'unk nown'")),
    table("text in two columns", GOOD + "x,oops,no\n",
          r"t\.csv: 2 columns cannot be read as they are: column 'a': row 41 "
          "is 'x', .*; column 'b': row 41 is 'oops'" + TO_TYPE.format("x oops")),
    table("text among dates", "a,b,y\n" + "".join(f"2020-01-{i % 28 + 1:02},{A[i]},{CLASSES[i]}\n" for i in range(N))
          + "soon,1,no\n", r"t\.csv: column 'a': row 41 is 'soon', and the other cells are dates: .*--na-values soon"),
    table("hexadecimal", GOOD + "1,0x1f,no\n", IN_B + "'0x1f'" + TO_TYPE.format("0x1f")),
    table("a thousands separator, or a decimal comma", GOOD + '1,"1,000",no\n',
          r"t\.csv: column 'b': '1,000' may be 1000 "
          r"\(--decimal point\) or 1\.000 \(--decimal comma\): " + COMMAND.format("--decimal point")),
    table("per cent", GOOD + "1,5%,no\n", IN_B + "'5%'" + TO_TYPE.format("5%")),
    table("digits of another script", GOOD + "1,\u0663,no\n", IN_B + "'\u0663'" + TO_TYPE.format("'\u0663'")),
    table("an escape sequence", GOOD + "1,\x1b[31mred,no\n", IN_B + r"'\\x1b\[31mred', .*" + DROPS.format("b")),
    table("a word like a flag", GOOD + "1,--x,no\n", IN_B + "'--x', .*" + DROPS.format("b")),
    table("a long text among numbers", GOOD + f"1,{'oops' * 1000},no\n", IN_B + "'oops.*" + DROPS.format("b")),
    table("a column with a quote in its name", "a,b's x,y\n" + ROWS + "1,oops,no\n", r"t\.csv: .*'oops'.*"),
    table("a column with a line break in its name", 'a,"b\nc",y\n' + ROWS + "1,oops,no\n", r".*row 41 is 'oops'.*"),
    table("an empty cell", GOOD + "1,,no\n", AT_B + "the cell is empty" + FILLS, *REFUSE),
    table("a cell of blanks", GOOD + "1,  ,no\n", AT_B + ".*" + FILLS, *REFUSE),
    *(table(f"{word} for a missing value", GOOD + f"1,{word},no\n", AT_B + rf"'{word}' means a missing value" + FILLS,
            *REFUSE)
      for word in ("nan", "NaN", "NA", "N/A", "null", "None")),
    table("NA among names", GOOD.replace(ROWS, NAMES) + "1,NA,no\n", AT_B + "'NA' means .*--categorical b", *REFUSE),
    table("? for a missing value", GOOD + "1,?,no\n", AT_B + r"'\?' means a missing value" + FILLS, *REFUSE),
    table("a word of the user's for a missing value", GOOD + "1,oops,no\n",
          AT_B + r"'oops' means a missing value" + FILLS,
          *REFUSE, "--na-values", "oops"),
    *(table(f"{word} as a number", GOOD + f"1,{word},no\n", INFINITE)
      for word in ("inf", "-inf", "Infinity", "1e400", "9" * 400)),
    table("inputs that are empty", "a,y\n" + ",yes\n,no\n" * 20, r"t\.csv: no column is left as an input beside the "
          r"target 'y': a \(no value\)"),
    table("a column with a missing cell in every row", "a,b,c,y\n" + "1,,3,yes\n1,2,,no\n" * 20,
          r"t\.csv: every row has .*",
          "--missing", "drop"),
    table("numbers too far apart", "a,b,y\n" + "1e308,2,no\n-1e308,3,yes\n" * 10, r"t\.csv: .*column 'a'.*--drop.*"),
]  # fmt: skip

TARGETS = [
    table("a target that is empty", "a,b,y\n" + "1,2,\n" * 20, r"t\.csv: target 'y': it has no value: name another .*"),
    table("a target of dates", "a,y\n" + "1,2020-01-01\n2,2020-01-02\n" * 20,
          r"t\.csv: target 'y': it has dates, which .*"),
    table("a target with text among numbers", HALVES + "1,oops\n", r"t\.csv: target 'y': row 41 is 'oops', .*"),
    table("a target with infinity", HALVES + "1,inf\n", r"t\.csv: target 'y': row 41 is infinite, or too large .*"),
    table("a single class", "a,b,y\n" + "1,2,no\n" * 20, r"t\.csv: the target 'y' is 'no' in every row: .*"),
    table("a number that never changes", "a,b,y\n" + "1,2,3.5\n" * 20, r"t\.csv: target 'y': it is 3\.5 in every row"),
    table("a number that never changes, named", "a,b,y\n" + "1,2,3.5\n" * 20,
          r"t\.csv: the target 'y' is 3\.5 in every .*", "--target", "y"),
    table("a last column that cannot be predicted", "a,b,y\n" + "1,2,\n2,3,\n" * 20,
          r"t\.csv: target 'y': it has no value: " + COMMAND.format("--target b")),
    table("two rows", "a,b,y\n1,2,no\n1,2,yes\n",
          r"t\.csv: the target 'y': 2 of its 2 classes have one row: two classes "
          r"of two rows are needed: name another column by --target", "--target", "y"),
    table("two rows, kept", "a,b,y\n1,2,no\n1,2,yes\n", r"t\.csv: no row is left to test on: each class has .*",
          "--rare-classes", "keep", "--target", "y"),
    table("one class of several rows", "a,b,y\n1,2,no\n1,2,no\n1,2,yes\n",
          r"t\.csv: .*'y': 1 of its 2 classes have one "
          r"row: .*, or --rare-classes keep trains on them"),
    table("one row", "a,b,y\n1,2,1.5\n", r"t\.csv: target 'y': it is 1\.5 in every row"),
    table("a target that is not there", "age,colour,label\n" + ROWS,
          r"t\.csv: --target lable: there is no column 'lable': did you mean 'label'\? \(columns: age, colour, label\)",
          "--target", "lable"),
    table("a target in capitals", GOOD, r"t\.csv: --target Y: .*did you mean 'y'\?.*", "--target", "Y"),
    table("an input that is not there", "age,colour,y\n" + ROWS, r"t\.csv: --drop color: .*mean 'colour'\?.*",
          "--drop", "color"),
    table("a category that is not there", "age,colour,y\n" + ROWS, r"t\.csv: --categorical color: .*mean 'colour'\?.*",
          "--categorical", "color"),
    table("everything dropped", GOOD, r".*--drop y: it is the target.*", "--drop", "a", "b", "y"),
    table("all inputs dropped", GOOD, r"t\.csv: no column is left as an input beside .*'y'", "--drop", "a", "b"),
    table("all columns targets", GOOD, r"t\.csv: no column is left as an input .*", "--target", "a", "b", "y"),
    table("dropped and a category", GOOD, r".*--categorical a: it is left out by --drop.*",
          "--drop", "a", "--categorical", "a"),
    table("text for regression", GOOD, r"t\.csv: --task regression: the target 'y' has text such as '(no|yes)'",
          "--task", "regression"),
    table("text among several targets", GOOD, r"t\.csv: several targets must be .*'y' .*", "--target", "a", "y"),
    table("several targets as classes", GOOD, r"t\.csv: --task classification is for a single target, got a, b",
          "--target", "a", "b", "--task", "classification"),
    table("one of several targets never changes", "a,b,y\n" + "1,2,0.5\n2,2,1.5\n" * 10, r"t\.csv: .*'b' is 2 .*",
          "--target", "b", "y"),
    table("classes to balance among numbers", HALVES, r"--class-weight balanced: the target is numeric.*",
          "--class-weight", "balanced"),
    table("one logit for numbers", HALVES, r"--one-logit is for two classes, and .* has a numeric.*", "--one-logit"),
    table("one logit for three classes", GOOD + "1,2,maybe\n" * 40, r"--one-logit is for two classes, and .* has 3",
          "--one-logit"),
]  # fmt: skip

TESTS = [
    table("a test without an input", GOOD, r"u\.csv: .*no column 'b', which t\.csv has.*", test="a,y\n1,no\n1,yes\n"),
    table("a test without the target", GOOD, r"u\.csv: .*no column 'y', which t\.csv has.*", test="a,b\n1,2\n1,3\n"),
    table("a test with a column more", GOOD, r"u\.csv: .*column 'c' more.*", test="a,b,c,y\n1,2,3,no\n"),
    table("a test with a class more", GOOD, r"u\.csv: row 2, column 'y': class 'hm' .*\(classes: no, yes\)",
          test="a,b,y\n1,2,no\n1,2,hm\n"),
    table("a test with a number more", "a,y\n" + "1,0\n1,1\n" * 20, r"u\.csv: row 2, column 'y': class '2' .*: 0, 1\)",
          test="a,y\n1,0\n1,2\n"),
    table("a test with names for numbers", "a,y\n" + "1,0\n1,1\n" * 20, r"u\.csv: row 1, column 'y': class 'u' .*",
          test="a,y\n1,u\n1,v\n"),
    table("a test with a missing cell", GOOD, r"u\.csv: row 2, column 'b': the cell is empty" + FILLS, *REFUSE,
          test="a,b,y\n1,2,no\n1,,no\n"),
    table("a test with text among numbers", GOOD, r"u\.csv: row 2, column 'b': 'oops' is text.*",
          test="a,b,y\n1,2,no\n1,oops,no\n"),
    table("a test with text for a number to predict", HALVES,
          r"u\.csv: row 1, column 'y': 'oops' is text.*", test="a,y\n1,oops\n"),
    table("a test with a row too short", GOOD, r"u\.csv: row 2: 2 " + FEW, test="a,b,y\n1,2,no\n1,2\n"),
    table("an empty test", GOOD, r"u\.csv: the file is empty.*", test=""),
    table("a test of a header", GOOD, r"u\.csv: there is a header, and no row below it", test="a,b,y\n"),
    table("a test with no whole row", GOOD, r"u\.csv: every row has a missing cell", "--missing", "drop",
          test="a,b,y\n1,,no\n1,,yes\n"),
    Case("a test that is not there", GOOD, r"u\.csv: there is no such file", ("--test", "u.csv")),
]  # fmt: skip

ZIPPED = gzip.compress(GOOD.encode())
FILES = [
    Case("a spreadsheet called .csv", b"PK\x03\x04" + bytes(range(256)), r"t\.csv: .*a spreadsheet.*: save it .*"),
    Case("Parquet called .csv", columns(a=A), r"t\.csv: this is Parquet, not CSV: name it \.parquet"),
    Case("gzip called .csv", ZIPPED, r"t\.csv: .*"),
    Case("CSV called .gz", GOOD, r"t\.csv\.gz: this is not compressed by gzip: name it without \.gz", file="t.csv.gz"),
    Case("nothing called .gz", b"", r"t\.csv\.gz: .*empty.*", file="t.csv.gz"),
    Case("gzip of nothing", gzip.compress(b""), r"t\.csv\.gz: .*empty.*", file="t.csv.gz"),
    Case("gzip cut short", ZIPPED[:-20], r"t\.csv\.gz: .*ended before.*", file="t.csv.gz"),
    Case("gzip cut short far below", gzip.compress(f"a,b,y\n{BIG}".encode())[:-99999], r"t\.csv\.gz: .*ended before.*",
         file="t.csv.gz"),
    Case("gzip with a wrong sum", ZIPPED[:-8] + bytes(4) + ZIPPED[-4:], r"t\.csv\.gz: .*CRC.*", file="t.csv.gz"),
    Case("a bomb of one row", gzip.compress(b"a,b,y\n1,2," + bytes(50 << 20)), r"t\.csv\.gz: .*", file="t.csv.gz"),
    Case("CSV called .parquet", GOOD, r"t\.parquet: not a sound Parquet file.*", file="t.parquet"),
    Case("nothing called .parquet", b"", r"t\.parquet: not a sound Parquet file.*", file="t.parquet"),
    Case("Parquet cut short", cut(columns(a=A)), r"t\.parquet: not a sound Parquet file.*", file="t.parquet"),
    Case("a name that tells nothing", GOOD, r"t\.sav: unknown ending: .*\.csv.*\.parquet.*", file="t.sav"),
    Case("an empty folder", parts(), r"d: .*\.parquet.*", file="d"),
    Case("parts with other columns", parts(p1=columns(a=A), p2=columns(b=A)),
         r"d/p2\.parquet: its columns are not those of p1\.parquet: column '[ab]' .*", file="d"),
    Case("parts with a column more", parts(p1=columns(a=A), p2=columns(a=A, c=range(N))),
         r"d/p2\.parquet: .*column 'c' .*", file="d"),
    Case("parts with another order", parts(p1=columns(a=[1, 2], y=["u", "v"]), p2=columns(y=["u", "v"], a=[1, 2])),
         r"d/p2\.parquet: .*another order", file="d"),
    Case("parts with other types", parts(p1=columns(a=A), p2=columns(a=CLASSES)),
         r"d/p2\.parquet: column 'a' is text, in p1\.parquet numbers", file="d"),
    Case("parts of which one is damaged", parts(p1=columns(a=A), p2=b"PAR1 no more"), r"d/p2\.parquet: .*",
         file="d"),
    Case("parts with text among numbers", parts(p1=columns(a=["1"] * N), p2=columns(a=["1"] * 39 + ["oops"])),
         r"d: column 'a': row 80 is 'oops', and the other cells are numbers: .*", file="d"),
    Case("Parquet with a name twice", lambda path: parquet.write_table(pa.table([[1], [2]], names=["a", "a"]), path),
         r"t\.parquet: columns 1 and 2 are both called 'a': rename one", file="t.parquet"),
    Case("Parquet of one column", columns(y=CLASSES), r"t\.parquet: .*need two", file="t.parquet"),
    Case("Parquet without a row", columns(a=[], y=pa.array([], pa.string())), r"t\.parquet: .*no row.*",
         file="t.parquet"),
    Case("Parquet with a damaged page", lambda path: path.write_bytes(_scrambled(path)), r"t\.parquet: damaged: .*",
         file="t.parquet"),
]  # fmt: skip


def _scrambled(path: Path) -> bytes:
    """Return a Parquet file in which bytes 40 to 440, compressed numbers, are random."""
    parquet.write_table(
        pa.table({"a": [i * 7919 % 1009 for i in range(1000)], "y": CLASSES * 25}), path, compression="gzip"
    )
    whole = path.read_bytes()
    return whole[:40] + random.Random(0).randbytes(400) + whole[440:]


UNSUPPORTED = r"t\.parquet: column 'c': it is of type {}: neither numbers, text nor dates: " + DROPS.format("c")
MISSING = r"t\.parquet: row 2, column 'c': the cell is empty.*--missing auto.*--missing drop.*--drop c.*"
TYPES = [
    typed("lists", [[1, 2]] * N, UNSUPPORTED.format("list.*")),
    typed("structs", [{"q": 1}] * N, UNSUPPORTED.format("struct.*")),
    typed("bytes", [b"x"] * N, UNSUPPORTED.format("binary")),
    typed("lengths of time", [datetime.timedelta(1)] * N, UNSUPPORTED.format(r"duration\[us\]")),
    typed("numbers with nulls", [1.0, None] * 20, MISSING, *REFUSE),
    typed("numbers with NaN", [1.0, float("nan")] * 20, MISSING.replace("the cell is empty", ""), *REFUSE),
    typed("numbers with NaN as categories", [1.0, float("nan")] * 20, MISSING.replace("the cell is empty", ""), *REFUSE,
          "--categorical", "c"),
    typed("dates with nulls", [datetime.date(2020, 1, 1), None] * 20, MISSING, *REFUSE),
    typed("numbers with infinity", [1.0, float("inf")] * 20,
          r"t\.parquet: column 'c': row 2 is infinite, or too large for a number: " + DROPS.format("c")),
    typed("booleans with nulls", [True, None] * 20, MISSING, *REFUSE),
    typed("a dictionary with nulls", pa.array(["u", None] * 20).dictionary_encode(), MISSING, *REFUSE),
    typed("text among numbers in text", ["1"] * 39 + ["oops"], r"t\.parquet: column 'c': row 40 is 'oops', .*"),
]  # fmt: skip


@pytest.mark.parametrize("case", ids(HEADERS + MALFORMED_ROWS + CELLS + TARGETS + TESTS + FILES + TYPES))
def test_refused_in_one_line_with_nothing_written(command: Command, case: Case):
    """The line names the file, and the row, the column and a remedy if there are any."""
    command.refuses(case)


@pytest.mark.parametrize("last", ["1,,no\n", "1,2\n"], ids=["a cell", "a row"])
def test_a_refused_table_larger_than_memory_leaves_no_cache(
    command: Command, monkeypatch: pytest.MonkeyPatch, last: str
):
    """20 000 rows in blocks of 64 KiB with 1 KiB of memory: the error occurs while the cache is being written."""
    monkeypatch.setattr("deltaprop.data.formats.csv.READ_BYTES", 1 << 16)
    command.refuses(table("large", "a,b,y\n" + ROWS * 500 + last, r"t\.csv: .*row 20001.*", "--memory", "1k", *REFUSE))


def test_the_advice_of_an_error_message_works(command: Command):
    """An extra column in the test data: --drop removes it, as the error message advises."""
    case = table("more", GOOD, r"", "--drop", "c", test="a,b,c,y\n1,2,3,no\n1,2,3,yes\n")
    command.accepts(case)


def test_a_refused_file_does_not_change_earlier_runs(command: Command):
    """After a run, a refused command does not change a byte of the run's folder."""
    command.accepts(table("good", GOOD, ""))
    (run,) = (command.folder / "runs").iterdir()
    before = everything(run)
    (command.folder / "t.csv").write_text(GOOD + "1,inf,no\n")
    assert command(table("bad", GOOD, ""))[0] == 2
    assert everything(command.folder / "runs") == {run.name: None, **{f"{run.name}/{k}": v for k, v in before.items()}}
