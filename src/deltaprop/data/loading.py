"""From a name, a file or a folder to a `Dataset`: read, split, scale."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

from deltaprop.data.builtin import BUILTIN
from deltaprop.data.classes import Targets, array_targets, check_classes
from deltaprop.data.columns import TableOptions, Task
from deltaprop.data.dataset import Dataset, EncodedRows, FittedData, Part, Split, StreamedSplit
from deltaprop.data.formats import endings, find_format, is_table, open_table, unknown_format
from deltaprop.data.formats.arrays import ARRAY_NAMES, ArrayFile
from deltaprop.data.formats.excel import EXCEL_NAMES, is_workbook
from deltaprop.data.formats.idx import IdxFolder, load_idx_folder
from deltaprop.data.formats.idx_files import find_idx_files
from deltaprop.data.from_row_groups import GroupSource, agree_on_files, large_folder, load_groups
from deltaprop.data.from_table import RawTable, read_table
from deltaprop.data.infer import choose_columns
from deltaprop.data.raw_data import RawData
from deltaprop.data.row_groups import RowGroup
from deltaprop.data.scaling import Scaling, check_targets_fit
from deltaprop.data.splits import Fold, Rows, SplitHow, split_indices
from deltaprop.data.store import CacheConfig, InMemory, Storage, Store, default_memory
from deltaprop.distributed import World
from deltaprop.errors import UserError, setting, unknown_name
from deltaprop.user_cache import default_cache

ScalingHow: TypeAlias = Literal["auto", "pixel", "standard", "none"]

# Values scaled at once: few enough to stay in a core's cache, and for torch not to divide them among threads, which on
# a busy machine takes ten times as long as the work.
_VALUES_AT_ONCE = 1 << 15
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where data come from, and the user's choices for them.

    Attributes:
        data: A built-in name, a table (a row of ``FORMATS``, or a folder of Parquet parts), arrays (.npz, .npy), or a
            folder with IDX files; a built-in name wins, ``./name`` is the file.
        options: The columns of a table, and what the target is.
        test: A table, or arrays, to test on.
        cache: Where the rows of a table may be stored.
        storage: Where the rows of a table must be stored, as when the run began; None for where they fit.
        world: The processes that share a folder of Parquet parts too large for memory.
    """

    data: str
    options: TableOptions = field(default_factory=TableOptions)
    test: str | None = None
    cache: CacheConfig = field(default_factory=lambda: CacheConfig(default_memory(), default_cache()))
    storage: Storage | None = None
    world: World = field(default_factory=World)


@dataclass(frozen=True, kw_only=True)
class _LoadOptions:
    """The options of `load`; refuses what no data set could be loaded with, before anything is read."""

    seed: int
    test_fraction: float | Fold
    val_fraction: float
    val_split: SplitHow
    scaling: ScalingHow
    pixel_scale: float | None
    dtype: torch.dtype

    def __post_init__(self) -> None:
        seed, pixel_scale = self.seed, self.pixel_scale
        # 2³² is the limit of the generator that scikit-learn seeds.
        if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= seed < 2**32:
            raise UserError(f"seed must be an integer from 0 to {2**32 - 1}, got {seed!r}")
        if isinstance(self.test_fraction, Fold):
            number, of = self.test_fraction.number, self.test_fraction.of
            if of < 2 or not 1 <= number <= of:
                raise UserError(f"a fold must be one of 2 or more, numbered from 1, got fold {number} of {of}")
        elif not _is_number(self.test_fraction) or not 0 < self.test_fraction < 1:
            raise UserError(f"test_fraction must lie between 0 and 1, both excluded, got {self.test_fraction!r}")
        if not _is_number(self.val_fraction) or not 0 <= self.val_fraction < 1:
            raise UserError(f"val_fraction must be 0 or lie between 0 and 1, 1 excluded, got {self.val_fraction!r}")
        for name, known in (("val_split", get_args(SplitHow)), ("scaling", get_args(ScalingHow))):
            if getattr(self, name) not in known:
                raise unknown_name(name, getattr(self, name), known)
        if pixel_scale is not None:
            if not _is_number(pixel_scale) or not 0 < pixel_scale <= sys.float_info.max:
                raise UserError(f"pixel_scale must be a finite number above 0, got {pixel_scale!r}")
            if self.scaling not in ("auto", "pixel"):
                raise UserError(
                    f"pixel_scale={pixel_scale} has no use with scaling={self.scaling!r}: leave one of them out"
                )
        if self.dtype not in _DTYPES:
            raise UserError(f"dtype must be one of {', '.join(str(known) for known in _DTYPES)}, got {self.dtype!r}")

    def check_pictures(self, name: str) -> None:
        """Refuse scaling by pixel for data without pictures."""
        if self.scaling == "pixel" or self.pixel_scale is not None:
            raise UserError(f"{name} holds no pictures to scale by pixel: scaling must be 'standard' or 'none'")


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def check_source(source: str | Source) -> None:
    """Refuse a source that `load` could not find, without reading any rows.

    Args:
        source: As for `load`.

    Raises:
        UserError: If it has no known format, does not exist, or the user's choices do not fit it.
    """
    asked = Source(data=source) if isinstance(source, str) else source
    source, options = asked.data, asked.options
    opener = None if source in BUILTIN else find_format(source)
    has_columns = opener not in (None, ArrayFile, IdxFolder)
    has_targets = has_columns or opener is ArrayFile
    for flag in ("drop", "keep_column", "categorical", "na_values"):
        if (names := getattr(options, flag)) and not has_columns:
            raise UserError(f"{setting(flag, *names)}: {source} is not a table with names for its columns")
    for flag, names in (("target", options.target), ("test", (asked.test,) if asked.test else ())):
        if names and not has_targets:
            raise UserError(f"{setting(flag, *names)}: {source} brings its own; it is for tables and arrays")
    options_of_tables = {
        "missing": ("auto", "refuse"), "decimal": ("auto",), "columns": ("infer", "0.1"), "header": (True,),
        "encoding": ("auto",), "sheet": (None,),
    }  # fmt: skip
    for flag, usual in options_of_tables.items():
        if (value := getattr(options, flag)) not in usual and not has_columns:
            raise UserError(f"{setting(flag, value)}: it is for tables, and {source} is not one")
    if options.sheet is not None and not any(path and is_workbook(path) for path in (source, asked.test)):
        raise UserError(f"{setting('sheet', options.sheet)}: it is for workbooks ({', '.join(EXCEL_NAMES)})")
    for path in (source, asked.test):
        if path is not None and has_targets and not os.path.exists(path):
            raise UserError(f"{path}: there is no such file")
    if has_columns:
        others = [] if asked.test is None else open_table(Path(asked.test), options.reading).names
        choose_columns(open_table(Path(source), options.reading), options, others)
    elif opener is IdxFolder:
        try:
            find_idx_files(source)
        except UserError as error:
            raise UserError(f"{error}; nor is there a .parquet file in it") from error
    elif opener is None and source not in BUILTIN:
        if os.path.exists(source):
            raise unknown_format(source)
        if "mnist" in source.lower() and os.sep not in source:
            raise UserError(f"{source} does not come with the package: give the folder that holds its four IDX files")
        hint = unknown_name("data set", source, BUILTIN)
        raise UserError(
            f"{hint}, and there is no such file or folder: give one of these names, a table ({endings()}), arrays "
            f"({', '.join(ARRAY_NAMES)}) or a folder with IDX files"
        )


def load(
    source: str | Source,
    *,
    seed: int = 0,
    test_fraction: float | Fold = 0.2,
    val_fraction: float = 0.1,
    val_split: SplitHow = "random",
    scaling: ScalingHow = "auto",
    pixel_scale: float | None = None,
    dtype: torch.dtype = torch.float32,
) -> Dataset:
    """Return a data set, split in three and scaled by statistics of its training part.

    Args:
        source: A built-in name (a row of `BUILTIN`), a file or a folder; or a `Source` with the user's choices.
        seed: Seed of the generated sets and of the random splits, in [0, 2³²).
        test_fraction: The share of all rows to test on, in (0, 1), where the set brings no test set of its own; or the
            `Fold` of the rows to test on.
        val_fraction: The share of the remaining rows to validate on, in [0, 1).
        val_split: ``"random"``, with each class its share, or ``"tail"``, the last of the remaining rows.
        scaling: ``"pixel"``: x / pixel_scale, for pictures; ``"standard"``: each column to mean 0 and standard
            deviation 1; ``"none"``; ``"auto"``: pixel for pictures with a known full scale, else standard. Regression
            targets are standardised whatever this says.
        pixel_scale: The divisor for pictures; None for the set's own full scale (255 for bytes, 16 for digits).
        dtype: The dtype of the inputs and of regression targets.

    Raises:
        UserError: If an option is out of its range, the source does not exist or is damaged, a part would have no rows,
            or a class to test or validate on has no row to train on.

    Example:
        >>> moons = load("moons", val_fraction=0.25)
        >>> len(moons.train), len(moons.val), len(moons.test), moons.n_inputs, moons.n_outputs
        (600, 200, 200, 2, 2)
    """
    how = _LoadOptions(
        seed=seed, test_fraction=test_fraction, val_fraction=val_fraction, val_split=val_split, scaling=scaling,
        pixel_scale=pixel_scale, dtype=dtype,
    )  # fmt: skip
    check_source(source)
    asked = Source(data=source) if isinstance(source, str) else source
    source, options = asked.data, asked.options
    test = None if asked.test is None else Path(asked.test)
    groups = asked.world.together(lambda: _large_folder(asked, how))
    agree_on_files(groups, source, asked.world)
    if groups:
        fraction = how.test_fraction
        if isinstance(fraction, Fold):
            raise UserError(f"{setting('folds', fraction.of)}: the run was trained on the row groups of {source}")
        of_groups = GroupSource(
            path=Path(source), options=options, test=test, cache=asked.cache, world=asked.world, seed=int(how.seed),
            shares=(float(fraction), how.val_fraction), how=how.val_split, standardise=how.scaling != "none",
            dtype=how.dtype,
        )  # fmt: skip
        dataset = load_groups(of_groups, groups)
        _check_task(options, dataset.task, source)
        return dataset
    raw: RawData | RawTable
    if source in BUILTIN:
        raw = BUILTIN[source](int(seed))
    elif is_table(source):
        how.check_pictures(source)
        raw = read_table(Path(source), options, asked.cache, test, asked.storage)
    elif find_format(source) is ArrayFile:
        raw = _read_arrays(Path(source), options, test)
    else:
        raw = load_idx_folder(source)
    _check_task(options, raw.task, source)
    return _prepare(raw, how)


def _check_task(options: TableOptions, task: Task, source: str) -> None:
    if options.task not in ("auto", task):
        raise UserError(f"{setting('task', options.task)}: {source} is for {task}")


def _large_folder(asked: Source, how: _LoadOptions) -> list[RowGroup]:
    """Return the row groups of a folder of Parquet parts too large for memory; none for other data."""
    if asked.data in BUILTIN or not is_table(asked.data):
        return []
    how.check_pictures(asked.data)
    if isinstance(how.test_fraction, Fold) and asked.storage != "groups":
        return []  # the rows of a fold are drawn from all rows at once
    return large_folder(Path(asked.data), asked.options, asked.cache, asked.storage)


def _read_arrays(path: Path, options: TableOptions, test: Path | None) -> RawData:
    """Return the data set of a file of arrays."""
    x, y, x_test, y_test = ArrayFile(path).read(options.target, test)
    read = array_targets(path, "y", y, options.task)
    targets = Targets.infer(read, options.task, options.rare_classes)
    y = targets.encode(read)
    if y_test is not None:
        name = "y_test" if test is None else "y"
        y_test = targets.encode(array_targets(test or path, name, y_test, targets.task))
    if targets.left_out:
        x, y = x[y >= 0], y[y >= 0]
        if y_test is not None and x_test is not None:
            x_test, y_test = x_test[y_test >= 0], y_test[y_test >= 0]
    pictures = x.ndim == 3 and x.dtype == np.uint8
    return RawData(
        name=path.name, task=targets.task, x=x, y=y, x_test=x_test, y_test=y_test, class_names=targets.class_names,
        classes_left_out=targets.left_out, notes=targets.notes, pictures=pictures,
        full_scale=255.0 if pictures else None,
    )  # fmt: skip


def _prepare(raw: RawData | RawTable, how: _LoadOptions) -> Dataset:
    """Split a data set in three, fit its scaling on the training rows, and encode it."""
    labels = raw.y if raw.task == "classification" else None
    from_table, seed = isinstance(raw, RawTable), int(how.seed)
    has_test = (raw.test if isinstance(raw, RawTable) else raw.x_test) is not None
    names = raw.class_names if from_table else ()  # IDX files may have test labels without a name
    share = how.test_fraction
    if isinstance(share, Fold):
        if has_test:
            raise UserError(f"{setting('folds', share.of)}: {raw.name} has a test set of its own, and is not divided")
        rest, test_rows = share.split(len(raw.y), labels, seed)
    else:
        rest, test_rows = split_indices(
            len(raw.y), labels, 0.0 if has_test else share, seed, "random",
            name="test_fraction",
        )  # fmt: skip
    kept, held_out = split_indices(
        len(rest), None if labels is None else labels[rest], how.val_fraction if len(rest) > 1 else 0.0, seed,
        how.val_split,
        name="val_fraction",
    )  # fmt: skip
    train_rows, val_rows = rest[kept], rest[held_out]
    if not has_test and not len(test_rows):
        raise UserError(f"{raw.name}: no row is left to test on: each class has a single row, which is trained on")
    if isinstance(raw, RawTable):
        fitted = raw.fit(train_rows, how.dtype, standardise=how.scaling != "none")
    else:
        fitted = _fit_arrays(raw, train_rows, how)
    if labels is not None:
        of_test = labels[test_rows] if fitted.test is None else fitted.test.y
        check_classes(labels[train_rows], {"validation": labels[val_rows], "test": of_test}, names)
    target_scaling = Scaling.identity(1)
    if labels is None:
        check_targets_fit(raw.y[train_rows], _targets_in_messages(raw))
        target_scaling = Scaling.standard(torch.from_numpy(raw.y[train_rows]))
    width, in_memory = len(fitted.scaling.mean), fitted.table is None or fitted.table.storage == "memory"

    def part(of: EncodedRows, rows: Rows) -> Part:
        if labels is not None:
            y = torch.from_numpy(of.y[rows].astype(np.int64, copy=False))
        else:
            y = target_scaling.apply(torch.from_numpy(of.y[rows]).double()).to(how.dtype)
            _check_finite(y, f"{raw.name}: a target", setting("dtype", "float64"))
        y_raw = None if labels is not None or rows is train_rows else torch.from_numpy(of.y[rows]).double()
        streamed = StreamedSplit(
            store=of.store, rows=of.rows[rows], encode=of.encode, width=width, y=y, dtype=how.dtype, y_raw=y_raw
        )
        return Split(x=streamed.inputs(slice(None)), y=y, y_raw=y_raw) if in_memory else streamed

    return Dataset(
        name=raw.name,
        task=raw.task,
        train=part(fitted.rows, train_rows),
        val=part(fitted.rows, val_rows),
        test=part(fitted.rows, test_rows) if fitted.test is None else part(fitted.test, np.arange(len(fitted.test.y))),
        class_names=raw.class_names,
        image_shape=raw.image_shape,
        input_scaling=fitted.scaling,
        target_scaling=target_scaling,
        digest=fitted.digest,
        table=fitted.table,
        classes_left_out=raw.classes_left_out,
        notes=raw.notes,
    )


def _targets_in_messages(raw: RawData | RawTable) -> list[str]:
    """Return what messages call each target, a number."""
    if isinstance(raw, RawTable):
        return [f"{raw.table.path}: the target {column.name!r}" for column in raw.loaded.plan.targets]
    several = raw.y.shape[1] > 1
    return [f"{raw.name}: the target y{at + 1 if several else ''}" for at in range(raw.y.shape[1])]


def _fit_arrays(raw: RawData, train_rows: Rows, how: _LoadOptions) -> FittedData:
    """Fit the scaling of arrays on the training rows, where it is fitted at all."""
    x = raw.x.reshape(len(raw.x), -1)
    if not raw.pictures:
        how.check_pictures(raw.name)
    divisor = raw.full_scale if how.pixel_scale is None else float(how.pixel_scale)
    if how.scaling in ("auto", "pixel") and divisor is not None:
        scaling = Scaling.pixels(x.shape[1], divisor)
    elif how.scaling == "pixel":
        raise UserError(f"{raw.name} has pixels of type {raw.x.dtype}, whose full scale pixel_scale must say")
    elif how.scaling == "none":
        scaling = Scaling.identity(x.shape[1])
    else:
        scaling = Scaling.standard(torch.from_numpy(x[train_rows]))
    encode, test = _scaler(scaling, how.dtype, raw.name), None
    if raw.x_test is not None and raw.y_test is not None:
        every = np.arange(len(raw.x_test))
        test = EncodedRows(InMemory(raw.x_test.reshape(len(raw.x_test), -1)), encode, raw.y_test, every)
    return FittedData(scaling, EncodedRows(InMemory(x), encode, raw.y, np.arange(len(x))), test, raw.digest())


def _scaler(scaling: Scaling, dtype: torch.dtype, name: str) -> Callable[[Store, Rows, Tensor], None]:
    """Return what writes rows of an array scaled in float64 and then rounded to ``dtype``, in small blocks."""
    of_bytes: Tensor | None = None
    if scaling.is_uniform:  # each of the 256 values of a byte is scaled once
        column = Scaling(scaling.mean[:1], scaling.scale[:1])
        of_bytes = column.apply(torch.arange(256, dtype=torch.float64).unsqueeze(1)).to(dtype).squeeze(1)
    bytes_fit = of_bytes is not None and bool(of_bytes.isfinite().all())

    def encode(store: Store, rows: Rows, x: Tensor) -> None:
        step = max(1, _VALUES_AT_ONCE // x.shape[1])
        for start in range(0, len(rows), step):
            raw = torch.from_numpy(store.take(rows[start : start + step]))
            out = x[start : start + step]
            if raw.dtype == torch.uint8 and of_bytes is not None:
                torch.index_select(of_bytes, 0, raw.reshape(-1).int(), out=out.view(-1))
                if bytes_fit:
                    continue
            else:
                out.copy_(scaling.apply(raw.double()))
            _check_finite(
                out, f"{name}: an input", f"{setting('scaling', 'standard')} or {setting('dtype', 'float64')}"
            )

    return encode


def _check_finite(values: Tensor, what: str, remedy: str) -> None:
    if not values.isfinite().all():
        raise UserError(f"{what} does not fit in {values.dtype} after scaling: take {remedy}")
