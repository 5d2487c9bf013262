"""The rows that a run was trained and validated on, stored as digests to recognise them in other data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deltaprop.data.digests import (
    MOST_DIGESTS,
    Digests,
    decode_digests,
    digestible_rows,
    encode_digests,
    is_among,
    part_digests,
)
from deltaprop.training.atomic_files import write_whole
from deltaprop.training.config import is_int
from deltaprop.training.load_run import read_config
from deltaprop.training.run_folder import ROW_DIGESTS
from deltaprop.training.setup import Setup

EQUAL = "equal to rows of training or validation"


class TrainingRows(NamedTuple):
    """What a run folder tells of the rows that the run was trained and validated on.

    Attributes:
        digests: Their digests; None if they are not known.
        data_sha256: The digest of the data that they are part of.
        unknown: Why the digests are not known; empty for a run of a version that stored none.
    """

    digests: Digests | None
    data_sha256: str
    unknown: str = ""


def save_row_digests(folder: Path, setup: Setup, warn: Callable[[str], None]) -> None:
    """Write the digests of the rows to train and to validate on, unless they are stored already.

    Args:
        folder: The folder of the run.
        setup: The setup of the run.
        warn: Called with one line if rows of a separate test table are equal to some of them.
    """
    dataset = setup.dataset
    count = digestible_rows(dataset)
    if count is None:
        return
    digests = _read(folder / ROW_DIGESTS, count)
    if digests is None:
        digests = np.concatenate([part_digests(dataset.train), part_digests(dataset.val)])
        write_whole(folder / ROW_DIGESTS, encode_digests(digests))
    if setup.config.test is not None:
        again = int(is_among(part_digests(dataset.test), digests).sum())
        if again:
            are = "is" if again == 1 else "are"
            warn(
                f"{setup.config.test}: {again} of {len(dataset.test)} rows {are} {EQUAL}: "
                "the test metrics are better than on new rows"
            )


def read_training_rows(folder: Path) -> TrainingRows:
    """Return what a run folder tells of the rows that it was trained on; a damaged file of digests is no error.

    Raises:
        UserError: If config.json is damaged.
    """
    _, resolved = read_config(folder)
    sha256, count = str(resolved.get("data_sha256")).partition("+")[0], resolved.get("row_digests", 0)
    if count is None:
        return TrainingRows(None, sha256, f"rows are not compared if they are on disk or more than {MOST_DIGESTS}")
    if not is_int(count) or count <= 0:  # of an older version
        return TrainingRows(None, sha256)
    digests = _read(folder / ROW_DIGESTS, count)
    return TrainingRows(digests, sha256, "" if digests is not None else f"{folder / ROW_DIGESTS} is missing or damaged")


def _read(path: Path, count: int) -> Digests | None:
    try:
        if path.stat().st_size != 8 * (count + 1):
            return None
        return decode_digests(path.read_bytes(), count)
    except OSError:
        return None
