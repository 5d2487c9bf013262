"""`Encoder` turns rows into inputs, compared with scikit-learn's ``OneHotEncoder`` and `Scaling.apply`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.preprocessing import OneHotEncoder
from torch.testing import assert_close

from deltaprop.data import CacheConfig, Encoding, Scaling
from deltaprop.data.columns import Column, Missing
from deltaprop.data.encoding import Encoder, fit_encoding
from deltaprop.data.formats import open_table
from deltaprop.data.infer import TablePlan
from deltaprop.data.store import InMemory, LoadedTable, load_rows
from deltaprop.errors import UserError

ROWS = 500
UNSEEN_ROW = 7  # the row whose category no training row has


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Times in seconds, tiny and ordinary numbers, two columns of categories, some cells missing."""
    rng = np.random.default_rng(0)
    lines = ["when,tiny,x,city,kind,y"]
    for row in range(ROWS):
        city = "Ulm" if row == UNSEEN_ROW else "" if row % 11 == 0 else ("Bern", "Rome", "Paris")[rng.integers(3)]
        x = "" if row % 13 == 0 else f"{rng.normal(3, 2):.6f}"
        when = 1_700_000_000 + int(rng.integers(1_000_000))
        lines.append(f"{when},{rng.normal() * 1e-9:.6g},{x},{city},{'uv'[rng.integers(2)]},{row % 2}")
    path = tmp_path_factory.mktemp("streaming") / "table.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def load_as(table: Path, memory: int, folder: Path) -> LoadedTable:
    """Load the table, into memory or onto disk."""
    inputs = [*map(Column, ("when", "tiny", "x")), Column("city", "categories"), Column("kind", "categories")]
    return load_rows(
        open_table(table), lambda: TablePlan(inputs, [Column("y")]), "", "mean", CacheConfig(memory, folder)
    )


def expected_inputs(loaded: LoadedTable, rows: Any, missing: Missing) -> tuple[torch.Tensor, Encoding, Scaling]:
    """Return the inputs of these rows from the definition, in float64, with the fitted encoding and scaling."""
    training_rows = np.setdiff1d(np.arange(ROWS), [UNSEEN_ROW])
    blocks = [loaded.store.take(training_rows)]
    columns, targets = loaded.plan.inputs, loaded.plan.targets
    encoding, scaling, empty = fit_encoding(columns, targets, blocks, missing=missing, where="t.csv")
    assert not empty
    raw = loaded.store.take(rows)
    numbers = raw[:, encoding.numbers]
    numbers = np.where(np.isnan(numbers), [encoding.inputs[at].fill for at in encoding.numbers], numbers)
    names = [[*columns[at].names, "missing"] for at in encoding.categories]
    cells = [
        [known_names[int(code)] for code in np.nan_to_num(raw[:, at], nan=len(known_names) - 1)]
        for at, known_names in zip(encoding.categories, names, strict=True)
    ]
    of = [encoding.inputs[at] for at in encoding.categories]
    known = [[*own.categories, *(["missing"] if own.absent else [])] for own in of]
    one_hot = OneHotEncoder(categories=known, handle_unknown="ignore", sparse_output=False)
    flags = [np.isnan(raw[:, [at]]) for at in encoding.numbers if encoding.inputs[at].absent]
    encoded = np.concatenate([numbers, *flags, one_hot.fit_transform(np.array(cells, dtype=object).T)], axis=1)
    return scaling.apply(torch.from_numpy(encoded)), encoding, scaling


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("memory", [1 << 30, 0], ids=["in memory", "on disk"])
@pytest.mark.parametrize("missing", ["mean", "auto"])
def test_inputs_are_those_of_the_definition(
    missing: Missing, memory: int, dtype: torch.dtype, table: Path, tmp_path: Path
):
    """To rounding in float64. Of x every 13th cell is missing, 7.8 %, and has an input that says so where asked.

    In float32 from disk, r u/d, (s − m)/d and their sum are rounded, each with a relative error of 2⁻²⁴, and none is
    above 8 deviations in 500 rows: 3 · 8 · 2⁻²⁴ = 1.4e-6.
    """
    loaded = load_as(table, memory, tmp_path)
    rows = np.random.default_rng(1).permutation(ROWS)
    expected, encoding, scaling = expected_inputs(loaded, rows, missing)
    x = torch.full((ROWS, len(encoding)), torch.nan, dtype=dtype)
    Encoder(encoding, loaded.plan.inputs, scaling, dtype, "t")(loaded.store, rows, x)
    assert isinstance(loaded.store, InMemory) == (memory > 0)
    own = missing == "auto"
    assert x.shape == (ROWS, 3 + own + 3 + own + 2)  # numbers, x=(missing), cities in training, city=(missing), kinds
    tolerance = 1.4e-6 if dtype == torch.float32 else 1e-12
    assert_close(x.double(), expected, rtol=0, atol=tolerance)
    at = int(np.flatnonzero(rows == UNSEEN_ROW)[0])
    assert not x[at, 3 + own : 6 + 2 * own].any()


def test_a_value_that_overflows_the_dtype_is_refused_by_name(tmp_path: Path):
    """1e300 with a deviation of 1 overflows float32."""
    encoding = Encoding.from_json({"inputs": [{"name": "a", "kind": "numbers"}], "targets": ["y"]})
    store = InMemory(np.array([[0.0], [1e300]]))
    encode = Encoder(encoding, encoding.columns(), Scaling.identity(1), torch.float32, "t.csv")
    x = torch.ones(1, 1)
    encode(store, np.array([0]), x)
    assert x.tolist() == [[0.0]]
    with pytest.raises(UserError, match=r"t\.csv: column 'a': 1e\+300 does not fit in torch\.float32"):
        encode(store, np.array([0, 1]), torch.empty(2, 1))
