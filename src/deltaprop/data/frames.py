"""Tables in memory as Arrow tables: DataFrames without their index, dicts of columns, arrays of objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deltaprop.data.table import ArrowTable, as_table, check_names
from deltaprop.errors import UserError


def frame_table(data: Any, names: Sequence[str] = ()) -> ArrowTable:
    """Return a table in memory, its columns called by text.

    A column of Python objects that are not all of one type becomes text, None and NaN missing.

    Args:
        data: A DataFrame of pandas (whose index is left out) or polars, a dict of columns, another object that
            supports Arrow, or an array [N, p].
        names: The names of the columns of an array.

    Raises:
        UserError: If it is not a table, or a name occurs twice.
    """
    columns: dict[str, Any]
    if isinstance(data, np.ndarray):
        columns = {name: data[:, at] for at, name in enumerate(names)}
    elif hasattr(data, "iloc") and hasattr(data, "columns"):
        own = [str(name) for name in data.columns]
        check_names("the table", own)
        columns = {name: data.iloc[:, at] for at, name in enumerate(own)}
    elif isinstance(data, Mapping):
        columns = {str(name): values for name, values in data.items()}
    else:
        return as_table(data)
    return as_table({name: _arrow_column(name, values) for name, values in columns.items()})


def _arrow_column(name: str, values: Any) -> Any:
    """Return a column as an Arrow array."""
    import pyarrow

    if isinstance(values, str | bytes) or np.isscalar(values) or getattr(values, "ndim", 1) != 1:
        raise UserError(f"the table: column {name!r} is {values!r:.40}: give a list for each column")
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    try:
        return pyarrow.array(values, from_pandas=True)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError, pyarrow.ArrowNotImplementedError):
        cells = [None if cell is None or cell != cell else str(cell) for cell in np.asarray(values, dtype=object)]
        return pyarrow.array(cells, pyarrow.string())
