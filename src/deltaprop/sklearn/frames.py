"""Tables as inputs of the estimators, encoded as the command line encodes the columns of a file.

A DataFrame of numbers without missing cells is an array, as for every estimator of scikit-learn. Any other table (text,
categories, dates, booleans and numbers with missing cells) becomes numbers here: [N, p] cells, [N, n] inputs.
"""
# ruff: noqa: N803  # X is scikit-learn's name, and users may give it by keyword

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from deltaprop.data import Scaling
from deltaprop.data.columns import Column, Reader, TableOptions, check_columns
from deltaprop.data.encoding import Encoder, Encoding, fit_encoding, unseen_categories
from deltaprop.data.frames import frame_table
from deltaprop.data.infer import infer
from deltaprop.data.profile import profile
from deltaprop.data.store import InMemory
from deltaprop.data.table import ArrowTable, type_family
from deltaprop.errors import UserError, counted, listed

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class EncodedTable:
    """The inputs of a table before they are standardised, [N, n]."""

    x: Matrix


@dataclass(frozen=True)
class TableEncoder:
    """Turns the columns of a table into inputs, as the rows of the first table have them.

    Attributes:
        encoding: The inputs that the columns become.
        names: The names of all columns.
        left_out: Columns that are not used, each with the reason.
    """

    encoding: Encoding
    names: list[str]
    left_out: dict[str, str]

    @classmethod
    def fit(cls, X: Any, weights: NDArray[np.float64] | None) -> tuple[Self, EncodedTable]:
        """Return the encoder of a table, and the table's inputs.

        Args:
            X: The table.
            weights: The weight of each row, [N]; one of weight 0 has no influence.

        Raises:
            UserError: If a column cannot be read.
        """
        table = _named(frame_table(X))
        names = table.names
        target = next(name for name in ("y", *(f"y{number}" for number in range(len(names) + 1))) if name not in names)
        arrow = table.table.append_column(target, [np.arange(table.table.num_rows) % 2 * 1.0])  # infer wants a target
        codes = [f.name for f in arrow.schema if _is_coded(f.type)]
        options, whole = TableOptions(target=(target,), categorical=tuple(codes)), replace(table, table=arrow)
        try:
            plan = infer(whole, options, profile(whole, [*names, target], (), lambda done: None))
            raw = _read(table, plan.inputs, training=False)
            rows = np.ones(len(raw), dtype=bool) if weights is None else weights > 0
            encoding, _, empty = fit_encoding(plan.inputs, [], [raw[rows]], missing="auto", where="X")
        except UserError as error:
            raise _in_terms_of_x(error) from error
        if weights is not None:
            encoding = replace(encoding, inputs=tuple(
                replace(c, fill=_mean(raw[rows, at], weights[rows])) if c.kind == "numbers" else c
                for at, c in enumerate(encoding.inputs)
            ))  # fmt: skip
        left_out = {**dict(plan.left_out), **{name: "no value" for name in empty}}
        encoder = cls(encoding, names, left_out)
        return encoder, EncodedTable(_encode(encoding, plan.inputs, raw))

    @property
    def numbers(self) -> int:
        """The number of inputs that are numbers and come first; the others are 0 or 1."""
        return len(self.encoding.numbers)

    def encode(self, X: Any, estimator: str) -> EncodedTable:
        """Return the inputs of another table; of an array with the same columns, with scikit-learn's warning.

        Raises:
            UserError: If it has other columns, or a cell that does not fit.
        """
        if has_columns(X):
            table = _named(frame_table(X))
        else:
            cells = np.asarray(X, dtype=object)
            if cells.ndim != 2 or cells.shape[1] != len(self.names):
                raise UserError(f"X must be a table with the columns {listed(self.names)}, got {list(cells.shape)}")
            warnings.warn(
                f"X does not have valid feature names, but {estimator} was fitted with feature names", stacklevel=5
            )
            table = _named(frame_table(cells, self.names))
        if table.names != self.names:
            missing = [name for name in self.names if name not in table.names]
            more = [name for name in table.names if name not in self.names]
            parts = [f"{what} {listed(names)}" for what, names in (("missing", missing), ("unknown", more)) if names]
            how = ": ".join(["", "; ".join(parts)]) if parts else ", in the same order"
            raise UserError(f"The feature names should match those that were passed during fit{how}")
        columns = self.encoding.columns()
        check_columns(table, columns, "the estimator needs")
        try:
            raw = _read(table, columns, training=False)
            lines = unseen_categories(self.encoding, columns, "X", len(raw))
        except UserError as error:
            raise _in_terms_of_x(error) from error
        for line in lines:
            warnings.warn(line, stacklevel=5)
        return EncodedTable(_encode(self.encoding, columns, raw))

    def tell(self) -> str:
        """Return a line about the columns that are left out; nothing if there are none."""
        reasons = [f"{name or 'the first'} ({reason})" for name, reason in self.left_out.items()]
        return f"{counted(len(reasons), 'column')} of X left out: {listed(reasons)}" if reasons else ""


def has_columns(X: Any) -> bool:
    """Return whether this is a table with named columns: of pandas, polars or Arrow, or a dict."""
    if isinstance(X, Mapping):
        return not hasattr(X, "shape")  # SciPy has sparse matrices that are mappings
    return hasattr(X, "__arrow_c_stream__") or (hasattr(X, "iloc") and hasattr(X, "columns"))


def needs_encoding(X: Any) -> bool:
    """Return whether a table has more than numbers and booleans, or missing cells; a dict always does."""
    if not has_columns(X) or getattr(X, "ndim", 2) != 2:
        return False
    if isinstance(X, Mapping):
        return True
    if hasattr(X, "iloc"):  # pandas
        kinds = [getattr(getattr(dtype, "numpy_dtype", dtype), "kind", "O") for dtype in X.dtypes]
        return any(kind not in "biuf" for kind in kinds) or bool(X.isna().to_numpy().any())
    from pyarrow import compute, types

    for column in frame_table(X).table.columns:
        if not (types.is_boolean(column.type) or types.is_integer(column.type) or types.is_floating(column.type)):
            return True
        if column.null_count or (types.is_floating(column.type) and compute.any(compute.is_nan(column)).as_py()):
            return True
    return False


def _named(table: ArrowTable) -> ArrowTable:
    return replace(table, path=Path("X"))


def _is_coded(arrow_type: Any) -> bool:
    """Return whether a column is categorical by its type, and its categories are not text."""
    from pyarrow import types

    return bool(types.is_dictionary(arrow_type)) and type_family(arrow_type) != "text"


def _read(table: ArrowTable, columns: list[Column], *, training: bool) -> Matrix:
    """Return the cells of some columns, [N, p]."""
    blocks = [block for block, _, _ in Reader(table, columns, [], "auto", training=training).blocks()]
    return np.concatenate(blocks) if blocks else np.empty((0, len(columns)))


def _encode(encoding: Encoding, columns: list[Column], raw: Matrix) -> Matrix:
    """Return the inputs, [N, n], not standardised."""
    x = torch.empty(len(raw), len(encoding), dtype=torch.float64)
    Encoder(encoding, columns, Scaling.identity(len(encoding)), x.dtype, "X")(InMemory(raw), np.arange(len(raw)), x)
    return x.numpy()


def _mean(values: Matrix, weights: Matrix) -> float:
    """Return the weighted mean of the cells that are not missing; 0 without any."""
    present = ~np.isnan(values)
    return float(np.average(values[present], weights=weights[present])) if present.any() else 0.0


def _in_terms_of_x(error: UserError) -> UserError:
    """Return the error of a table without the settings of the command line, which an estimator does not have."""
    text = str(error)
    for end in (": correct the file", ": correct the row", ": `drop="):
        text = text.partition(end)[0]
    return UserError(f"{text}: correct these cells, make them None, or leave the column out of X")
