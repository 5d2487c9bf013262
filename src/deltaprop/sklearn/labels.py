"""Class labels of any container as a NumPy array of their own type."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltaprop.errors import UserError


def plain_labels(y: Any) -> Any:
    """Return nullable labels of pandas (Int64, boolean, string, …) as an array of whole numbers, booleans or text.

    scikit-learn would read Int64 and boolean as floats, whose classes are 0.0 and 1.0. Other targets are returned as
    they are, text checked for missing labels.

    Args:
        y: A Series, a DataFrame of one column, or anything else.

    Raises:
        UserError: If a label is missing.
    """
    column = y.iloc[:, 0] if len(getattr(y, "columns", ())) == 1 and hasattr(y, "iloc") else y
    if hasattr(column, "isna"):  # pandas
        _refuse_missing(np.asarray(column.isna(), dtype=bool))
        dtype = getattr(column.dtype, "numpy_dtype", None)  # of masked and Arrow types
        if getattr(dtype, "kind", "") in ("b", "i", "u"):
            labels: NDArray[Any] = column.to_numpy(dtype=dtype)
            return labels.reshape(-1, 1) if column is not y else labels
        return y
    values = np.asarray(y, dtype=object) if isinstance(y, list | tuple) else getattr(y, "__array__", lambda: None)()
    if isinstance(values, np.ndarray) and values.dtype.kind == "O" and values.ndim == 1:
        _refuse_missing(np.array([value is None or value != value for value in values], dtype=bool))
    return y


def _refuse_missing(missing: NDArray[np.bool_]) -> None:
    if missing.any():
        rows = f" (and {int(missing.sum()) - 1} more)" if missing.sum() > 1 else ""
        raise UserError(
            f"Input y contains NaN: the label of row {int(missing.argmax()) + 1}{rows} is missing: leave it out"
        )
