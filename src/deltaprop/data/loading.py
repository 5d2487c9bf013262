"""From a name or a folder to a `Dataset`: read, split, scale."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from deltaprop.data.builtin import BUILTIN
from deltaprop.data.classes import check_classes
from deltaprop.data.columns import TableOptions, chosen
from deltaprop.data.dataset import Dataset, RawData, Split
from deltaprop.data.formats import FORMATS, is_table, open_table
from deltaprop.data.formats.arrays import is_array, load_arrays
from deltaprop.data.formats.idx import find_idx_files, load_idx_folder
from deltaprop.data.from_table import load_table
from deltaprop.data.scaling import Scaling
from deltaprop.data.splits import Array, Rows, SplitHow, split_indices
from deltaprop.data.store import CacheConfig, Storage, default_cache, default_memory
from deltaprop.errors import UserError, setting, unknown_name

ScalingHow: TypeAlias = Literal["auto", "pixel", "standard", "none"]

# Values scaled at once: few enough to stay in a core's cache, and for torch not to share them out among threads, which
# on a busy machine takes ten times as long as the work.
_VALUES_AT_ONCE = 1 << 15
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where data come from, and what the user says of them.

    Attributes:
        data: A built-in name, a table (CSV, Parquet, a folder of Parquet parts), arrays (.npz, .npy), or a folder with
            IDX files; a built-in name wins, ``./name`` is the file.
        choices: Of the columns of a table, and of what the target is.
        test: A table, or arrays, to test on.
        room: Where the rows of a table may be kept.
        storage: How a table is to be kept, where that is known from before; None for as it fits.
    """

    data: str
    choices: TableOptions = field(default_factory=TableOptions)
    test: str | None = None
    room: CacheConfig = field(default_factory=lambda: CacheConfig(default_memory(), default_cache()))
    storage: Storage | None = None


def check_source(source: str | Source) -> None:
    """Refuse a source that `load` could not find, without reading any rows.

    Args:
        source: As for `load`.

    Raises:
        UserError: If it is none of what can be read, is not there, or what is said of it does not fit it.
    """
    asked = Source(data=source) if isinstance(source, str) else source
    source, choices = asked.data, asked.choices
    has_columns = source not in BUILTIN and is_table(source)
    has_targets = has_columns or (source not in BUILTIN and is_array(source))
    for flag, given in (("drop", choices.drop), ("categorical", choices.categorical)):
        if given and not has_columns:
            raise UserError(f"{setting(flag, *given)}: {source} is no table with names for its columns")
    for flag, said in (("target", choices.target), ("test", (asked.test,) if asked.test else ())):
        if said and not has_targets:
            raise UserError(f"{setting(flag, *said)}: {source} brings its own; it is for tables and arrays")
    if choices.missing != "refuse" and not has_columns:
        raise UserError(f"{setting('missing', choices.missing)}: it is for tables, and {source} is none")
    for path in (source, asked.test):
        if path is not None and has_targets and not os.path.exists(path):
            raise UserError(f"{path}: there is no such file")
    if source in BUILTIN or has_columns:
        if has_columns:
            others = [] if asked.test is None else open_table(Path(asked.test), choices.delimiter).names
            chosen(open_table(Path(source), choices.delimiter), choices, others)
        return
    if has_targets:
        return
    if not os.path.exists(source):
        if "mnist" in source.lower() and os.sep not in source:
            raise UserError(f"{source} does not come with the package: give the folder that holds its four IDX files")
        hint = unknown_name("data set", source, BUILTIN)
        raise UserError(
            f"{hint}, and there is no such file or folder: give one of these names, a table (.csv, .parquet), arrays "
            "(.npz, .npy) or a folder with IDX files"
        )
    if os.path.isfile(source):
        raise UserError(
            f"{source}: not known by its name: a table ends in {', '.join(FORMATS)}; arrays in .npz or .npy"
        )
    try:
        find_idx_files(source)
    except UserError as error:
        raise UserError(f"{error}; nor is there a .parquet file in it") from error


def load(
    source: str | Source,
    *,
    seed: int = 0,
    test_fraction: float = 0.2,
    val_fraction: float = 0.1,
    val_split: SplitHow = "random",
    scaling: ScalingHow = "auto",
    pixel_scale: float | None = None,
    dtype: torch.dtype = torch.float32,
) -> Dataset:
    """Return a data set, split in three and scaled by what its training part shows.

    Args:
        source: A built-in name (a row of `BUILTIN`), a file or a folder; or a `Source`, which says more about it.
        seed: Draws the generated sets and the random splits, in [0, 2³²).
        test_fraction: The share of all rows to test on, in (0, 1), where the set brings no test set of its own.
        val_fraction: The share of the remaining rows to validate on, in [0, 1).
        val_split: ``"random"``, with each class its share, or ``"tail"``, the last of the remaining rows.
        scaling: ``"pixel"``: x / pixel_scale, for pictures; ``"standard"``: each column to mean 0 and standard
            deviation 1; ``"none"``; ``"auto"``: pixel for pictures with a known full scale, else standard. Regression
            targets are standardised whatever this says.
        pixel_scale: The divisor for pictures; None for the set's own full scale (255 for bytes, 16 for digits).
        dtype: Of the inputs and of regression targets.

    Raises:
        UserError: If an option is out of its range, the source is not there or damaged, a part would have no rows, or
            a class to test or validate on has no row to train on.

    Example:
        >>> moons = load("moons", val_fraction=0.25)
        >>> len(moons.train), len(moons.val), len(moons.test), moons.n_inputs, moons.n_outputs
        (600, 200, 200, 2, 2)
    """
    _check_options(seed, test_fraction, val_fraction, val_split, scaling, pixel_scale, dtype)
    check_source(source)
    asked = Source(data=source) if isinstance(source, str) else source
    source, choices = asked.data, asked.choices
    if source not in BUILTIN and is_table(source):
        if scaling == "pixel" or pixel_scale is not None:
            raise UserError(f"{source} holds no pictures to scale by pixel: scaling must be 'standard' or 'none'")
        return load_table(
            Path(source), choices, asked.room,
            test=None if asked.test is None else Path(asked.test), seed=int(seed), test_fraction=test_fraction,
            val_fraction=val_fraction, val_split=val_split, standardise=scaling != "none", dtype=dtype,
            storage=asked.storage,
        )  # fmt: skip
    if source in BUILTIN:
        raw = BUILTIN[source](int(seed))
    elif is_array(source):
        test = None if asked.test is None else Path(asked.test)
        raw = load_arrays(Path(source), choices.target, test, choices.task)
    else:
        raw = load_idx_folder(source)
    if choices.task not in ("auto", raw.task):
        raise UserError(f"{setting('task', choices.task)}: {source} is for {raw.task}")

    labels = raw.y if raw.task == "classification" else None
    rest, held = np.arange(len(raw.x)), np.arange(0)
    x_test, y_test = raw.x_test, raw.y_test
    if x_test is None or y_test is None:
        x_test, y_test = raw.x, raw.y
        rest, held = split_indices(len(raw.x), labels, test_fraction, int(seed), "random", name="test_fraction")
    else:
        held = np.arange(len(x_test))
    kept, watched = split_indices(
        len(rest),
        None if labels is None else labels[rest],
        val_fraction,
        int(seed),
        val_split,
        name="val_fraction",
    )
    train_rows, val_rows = rest[kept], rest[watched]
    if labels is not None:
        check_classes(raw.y[train_rows], {"validation": raw.y[val_rows], "test": y_test[held]})

    x, x_test = _flat(raw.x), _flat(x_test)
    input_scaling = _input_scaling(raw, x, train_rows, scaling, pixel_scale)
    target_scaling = Scaling.identity(1)
    if raw.task == "regression":
        target_scaling = Scaling.standard(torch.from_numpy(raw.y[train_rows]))

    def part(x: Array, y: Array, rows: Rows) -> Split:
        if raw.task == "classification":
            targets = torch.from_numpy(y[rows].astype(np.int64))
        else:
            targets = _scaled(y, rows, target_scaling, dtype)
        return Split(x=_scaled(x, rows, input_scaling, dtype), y=targets)

    return Dataset(
        name=raw.name,
        task=raw.task,
        train=part(x, raw.y, train_rows),
        val=part(x, raw.y, val_rows),
        test=part(x_test, y_test, held),
        class_names=raw.class_names,
        image_shape=raw.image_shape,
        input_scaling=input_scaling,
        target_scaling=target_scaling,
        digest=raw.digest(),
    )


def _check_options(
    seed: int,
    test_fraction: float,
    val_fraction: float,
    val_split: str,
    scaling: str,
    pixel_scale: float | None,
    dtype: torch.dtype,
) -> None:
    """Refuse what no data set could be loaded with, before anything is read."""
    # 2³² is where the generator that scikit-learn seeds ends.
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= seed < 2**32:
        raise UserError(f"seed must be an integer from 0 to {2**32 - 1}, got {seed!r}")
    if not _is_number(test_fraction) or not 0 < test_fraction < 1:
        raise UserError(f"test_fraction must lie between 0 and 1, both excluded, got {test_fraction!r}")
    if not _is_number(val_fraction) or not 0 <= val_fraction < 1:
        raise UserError(f"val_fraction must be 0 or lie between 0 and 1, 1 excluded, got {val_fraction!r}")
    if val_split not in ("random", "tail"):
        raise unknown_name("val_split", val_split, ("random", "tail"))
    if scaling not in ("auto", "pixel", "standard", "none"):
        raise unknown_name("scaling", scaling, ("auto", "pixel", "standard", "none"))
    if pixel_scale is not None:
        if not _is_number(pixel_scale) or not 0 < pixel_scale <= sys.float_info.max:
            raise UserError(f"pixel_scale must be a finite number above 0, got {pixel_scale!r}")
        if scaling not in ("auto", "pixel"):
            raise UserError(f"pixel_scale={pixel_scale} has no use with scaling={scaling!r}: leave one of them out")
    if dtype not in _DTYPES:
        raise UserError(f"dtype must be one of {', '.join(str(known) for known in _DTYPES)}, got {dtype!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _input_scaling(raw: RawData, x: Array, train: Rows, how: ScalingHow, pixel_scale: float | None) -> Scaling:
    """Return the scaling for x, shape ``[N, n]``, fitted on its rows ``train`` where it is fitted at all."""
    n = x.shape[1]
    if how == "pixel" or pixel_scale is not None:
        if not raw.pictures:
            raise UserError(f"{raw.name} holds no pictures to scale by pixel: scaling must be 'standard' or 'none'")
        divisor = raw.full_scale if pixel_scale is None else float(pixel_scale)
        if divisor is None:
            raise UserError(f"{raw.name} has pixels of type {raw.x.dtype}, whose full scale pixel_scale must say")
        return Scaling.pixels(n, divisor)
    if how == "auto" and raw.full_scale is not None:
        return Scaling.pixels(n, raw.full_scale)
    if how == "none":
        return Scaling.identity(n)
    return Scaling.standard(torch.from_numpy(x[train]))


def _flat(x: Array) -> Array:
    return x.reshape(len(x), -1)


def _scaled(x: Array, rows: Rows, scaling: Scaling, dtype: torch.dtype) -> Tensor:
    """Return the given rows of x, shape ``[N, n]``, scaled in float64 and then rounded to ``dtype``, in blocks."""
    out = torch.empty(len(rows), x.shape[1], dtype=dtype)
    step = max(1, _VALUES_AT_ONCE // x.shape[1])
    table: Tensor | None = None
    if x.dtype == np.uint8 and scaling.is_uniform:  # each of the 256 values once
        column = Scaling(scaling.mean[:1], scaling.scale[:1])
        table = column.apply(torch.arange(256, dtype=torch.float64).unsqueeze(1)).to(dtype).squeeze(1)
    check = table is None or not table.isfinite().all()
    for start in range(0, len(rows), step):
        block = torch.from_numpy(x[rows[start : start + step]])
        into = out[start : start + step]
        if table is not None:
            torch.index_select(table, 0, block.view(-1).int(), out=into.view(-1))
        else:
            into.copy_(scaling.apply(block.double()))
        if check and not into.isfinite().all():
            raise UserError(f"a value does not fit in {dtype} after scaling: scaling='standard' or a wider dtype would")
    return out
