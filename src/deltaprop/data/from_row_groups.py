"""A folder of Parquet parts that does not fit in memory, as a data set whose rows stay in their files.

Several processes read it by shares: each surveys, trains on and evaluates its own row groups. Process 0 looks at some
rows of all of them to infer the columns and to take a sample, and tells the others.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from deltaprop.data.classes import TargetCounts, Targets, TargetValues, check_classes
from deltaprop.data.columns import Column, TableOptions
from deltaprop.data.dataset import Dataset, Split, TableFacts
from deltaprop.data.encoding import Encoder, encoding_of, unseen_categories
from deltaprop.data.first_look import infer_from_some
from deltaprop.data.formats import open_table
from deltaprop.data.formats.parquet import ParquetTable
from deltaprop.data.from_table import check_test_columns, encoding_warnings, missing_policy
from deltaprop.data.grouped import Counts, GroupedRows, GroupFacts, Reading, exchanged, merged, of_all, survey
from deltaprop.data.infer import TablePlan
from deltaprop.data.row_groups import PARTS, Division, RowGroup, deal, layout_digest, row_groups
from deltaprop.data.scaling import Scaling, check_target_spread
from deltaprop.data.splits import Array, SplitHow
from deltaprop.data.store import CacheConfig, Storage, plan_from_json, plan_to_json
from deltaprop.distributed import World
from deltaprop.errors import UserError, counted, setting


@dataclass(frozen=True, kw_only=True)
class GroupSource:
    """A table whose rows stay in their row groups, and the user's choices for it.

    Attributes:
        path: The folder.
        options: The user's choices.
        test: A table to test on.
        cache: Its folder has rows of streams that wait for their turn; its ``progress`` is told.
        world: The processes that share the row groups.
        seed: Of the division into parts.
        shares: The share of all rows to test on, and of the others to validate on.
        how: Whether these are drawn, or are the last.
        standardise: Whether inputs are scaled.
        dtype: The dtype of inputs and of targets that are numbers.
    """

    path: Path
    options: TableOptions
    test: Path | None
    cache: CacheConfig
    world: World
    seed: int
    shares: tuple[float, float]
    how: SplitHow
    standardise: bool
    dtype: torch.dtype


def large_folder(path: Path, options: TableOptions, cache: CacheConfig, storage: Storage | None) -> list[RowGroup]:
    """Return the row groups of a folder of Parquet parts too large for memory; none for another table.

    Raises:
        UserError: If a run was begun with such a folder, and the path is none any more.
    """
    if not path.is_dir() or storage not in (None, "groups"):
        if storage == "groups":
            raise UserError(f"{path}: the run was trained on a folder of Parquet parts")
        return []
    table = open_table(path, options.reading)
    assert isinstance(table, ParquetTable)
    groups = row_groups(table)
    is_large = 8 * sum(group.rows for group in groups) * (len(table.names) - len(options.drop)) > cache.memory
    return groups if is_large or storage == "groups" else []


def agree_on_groups(groups: Sequence[RowGroup], path: str, world: World) -> None:
    """Refuse row groups that are not those of process 0.

    Raises:
        UserError: In all processes.
    """
    told = world.of_each(layout_digest(groups) if groups else b"")
    for rank, digest in enumerate(told):
        if digest != told[0]:
            error = UserError(f"process {rank} has other data in {path} than process 0 (by the sizes of row groups)")
            error.is_shared = True
            raise error


def load_groups(source: GroupSource, groups: list[RowGroup]) -> Dataset:
    """Return the data set of a table whose rows stay in these row groups.

    Raises:
        UserError: If the table is damaged or refused; in all processes.
    """
    options, path = source.options, str(source.path)
    plan, of_test = _open(source, groups)
    table_rows, (test, val) = sum(group.rows for group in groups), source.shares
    division = Division(source.seed, 0.0 if of_test else test, val, source.how, table_rows)
    reading = Reading.of(plan, missing_policy(options), division, has_classes=options.task == "classification")
    streams = deal([*groups, *of_test])
    facts = _survey(source, [*groups, *of_test], reading, streams)
    total = merged(facts, plan, reading.most_values)
    if not sum(total.rows):
        what = "every row has a missing cell" if total.dropped else "the target is missing in every row"
        raise UserError(f"{path}: {what}")
    for column, names in zip((*plan.inputs, *plan.targets), total.names, strict=True):
        column.names = {name: at for at, name in enumerate(names)}
    targets = Targets.infer(_target_counts(plan, total, path), options.task, options.rare_classes)
    encoding, scaling, empty = encoding_of(total.inputs, plan.targets, missing=reading.missing, where=path)
    scaling = scaling if source.standardise else Scaling.identity(len(encoding))
    target_scaling = Scaling.identity(1) if targets.class_names else _target_scaling(plan, total, path)
    classes = ClassCounts.of(targets, plan, total, moves=not of_test)
    rows = GroupedRows(
        groups=[*groups, *of_test], streams=streams, reading=reading, targets=targets, always=classes.always,
        encode=Encoder(encoding, plan.inputs, scaling, source.dtype, path),
        scale=lambda y: target_scaling.apply(y).to(source.dtype), counts=[classes.rows(of) for of in facts],
        class_counts=dict(zip(PARTS, classes.by_part(total.counts).T.tolist(), strict=True)),
        moments=dict(zip(PARTS, total.targets, strict=True)), folder=source.cache.folder,
        farthest=_farthest(total, scaling, target_scaling),
    )  # fmt: skip
    _check_parts(rows, path)
    names_of_test = merged(facts[len(groups) :], plan, 0).names if of_test else []
    warnings = encoding_warnings(encoding, rows.count["train"], empty) + _warnings(source, rows, names_of_test)
    facts_of_table = TableFacts(
        encoding=encoding, left_out=plan.left_out, dropped=total.dropped, unlabelled=total.unlabelled, gaps=total.gaps,
        storage="groups", notes=plan.notes, warnings=tuple(warnings),
    )  # fmt: skip
    return Dataset(
        name=source.path.name, task=targets.task, **_samples(rows, source.world), class_names=targets.class_names,
        image_shape=None, input_scaling=scaling, target_scaling=target_scaling, digest=total.digest,
        table=facts_of_table, classes_left_out=targets.left_out, notes=targets.notes, grouped=rows,
    )  # fmt: skip


def _open(source: GroupSource, groups: Sequence[RowGroup]) -> tuple[TablePlan, list[RowGroup]]:
    """Return the columns, as process 0 infers them, and the row groups of the table to test on."""

    def infer_in_first() -> bytes:
        if not source.world.is_first:
            return b""
        table, options = open_table(source.path, source.options.reading), source.options
        others = [] if source.test is None else open_table(source.test, options.reading).names
        return json.dumps(plan_to_json(infer_from_some(table, options, groups, others))).encode()

    content = source.world.of_first(source.world.together(infer_in_first))
    plan = plan_from_json(json.loads(content))

    def of_test() -> list[RowGroup]:
        if source.test is None:
            return []
        test = open_table(source.test, source.options.reading)
        if not isinstance(test, ParquetTable):
            this = setting("test", str(source.test))
            raise UserError(f"{this}: it must be Parquet as {source.path} is, whose rows stay in their row groups")
        check_test_columns(open_table(source.path, source.options.reading), test, plan, source.options)
        return row_groups(test, groups[-1].first + groups[-1].rows)

    return plan, source.world.together(of_test)


def _survey(
    source: GroupSource, groups: Sequence[RowGroup], reading: Reading, streams: Sequence[Sequence[int]]
) -> list[GroupFacts]:
    """Return what is in each row group; each process reads its own."""
    world = source.world

    def of_own() -> bytes:
        own = sorted(at for stream in streams[world.rank :: world.size] for at in stream)
        rows, done, found = sum(groups[at].rows for at in own), 0, {}
        for at in own:
            found[at] = survey(groups[at], reading)
            done += groups[at].rows
            source.cache.progress(f"reading {source.path.name}", done, rows)
        return exchanged(found)

    return of_all(world.of_each(world.together(of_own)), reading.plan.inputs)


def _target_counts(plan: TablePlan, total: GroupFacts, path: str) -> TargetCounts:
    """Return what is known of the targets."""
    values: tuple[Array, Array] | None = None
    if total.counts is not None:
        found = np.array([_value(plan.targets[0], key) for key in total.counts])
        order = found.argsort()
        values = found[order], np.array([sum(by_part) for by_part in total.counts.values()])[order]
    return TargetCounts(plan.targets, path, values, total.least.min(axis=0), total.most.max(axis=0))


def _value(column: Column, key: str) -> float:
    return float(column.names[key] if column.kind == "categories" else key)


@dataclass(frozen=True)
class ClassCounts:
    """Counts rows by class and part.

    Attributes:
        label_of: The label of each value of the target, -1 for a class that is left out; empty for numbers.
        classes: The number of classes.
        always: Labels of classes that none of the rows drawn for training has: all their rows are trained on.
    """

    label_of: dict[str, int]
    classes: int
    always: tuple[int, ...] = ()

    @classmethod
    def of(cls, targets: Targets, plan: TablePlan, total: GroupFacts, *, moves: bool) -> ClassCounts:
        """Return it for a table; without ``moves`` every row stays in the part it was drawn for."""
        if not targets.class_names or total.counts is None:
            return cls({}, 0)
        values = np.array([[_value(plan.targets[0], key)] for key in total.counts])
        labels = targets.encode(TargetValues(plan.targets, values, "", False)).tolist()
        drawn = cls(dict(zip(total.counts, labels, strict=True)), len(targets.class_names))
        trained = drawn.by_part(total.counts)[:, 0]
        return replace(drawn, always=tuple(np.flatnonzero(trained == 0).tolist()) if moves else ())

    def by_part(self, counts: Counts | None) -> Array:
        """Return the rows of each class in each part, [C, 3]."""
        found = np.zeros((self.classes, len(PARTS)), dtype=np.int64)
        for value, by_part in (counts or {}).items() if self.classes else ():
            if (label := self.label_of[value]) >= 0:
                found[label] += [sum(by_part), 0, 0] if label in self.always else by_part
        return found

    def rows(self, facts: GroupFacts) -> list[int]:
        """Return the rows of each part that are used."""
        used: list[int] = self.by_part(facts.counts).sum(axis=0).tolist() if self.classes else facts.rows
        return used


def _target_scaling(plan: TablePlan, total: GroupFacts, path: str) -> Scaling:
    """Return the scaling of targets that are numbers, fitted on the training rows."""
    moments = total.targets[0]
    for column, mean, variance in zip(plan.targets, moments.mean.tolist(), moments.variance.tolist(), strict=True):
        check_target_spread(f"{path}: the target {column.name!r}", mean, float(np.sqrt(variance)))
    return Scaling(torch.from_numpy(moments.mean), torch.from_numpy(moments.scale))


def _farthest(total: GroupFacts, scaling: Scaling, target_scaling: Scaling) -> float:
    """Return the largest absolute value among scaled inputs and targets of the training rows, at least 1."""
    numbers = total.inputs.numbers
    of_numbers = Scaling(scaling.mean[: len(numbers)], scaling.scale[: len(numbers)])
    found = [of_numbers.apply(torch.from_numpy(end[numbers])) for end in (total.inputs.least, total.inputs.most)]
    found += [target_scaling.apply(torch.from_numpy(end[0])) for end in (total.least, total.most)]
    return max(1.0, *(float(values[values.isfinite()].abs().max()) for values in found if values.isfinite().any()))


def _check_parts(rows: GroupedRows, path: str) -> None:
    """Refuse a part without rows, and a class that no row is trained on."""
    for part in ("train", "test"):
        if not rows.count[part]:
            raise UserError(f"{path}: no row was drawn for the {part} part: the table has too few rows")
    if rows.targets.class_names:
        seen = {part: np.flatnonzero(counts) for part, counts in rows.class_counts.items()}
        others = {"validation": seen["val"], "test": seen["test"]}
        check_classes(seen["train"], others, rows.targets.class_names)


def _warnings(source: GroupSource, rows: GroupedRows, names_of_test: Sequence[Sequence[str]]) -> list[str]:
    """Return warnings of names that only a table to test on has, and of processes without rows."""
    lines = []
    if names_of_test:
        inputs = rows.reading.plan.inputs
        of_inputs = zip(inputs, names_of_test[: len(inputs)], strict=True)
        columns = [replace(column, names=dict.fromkeys(names, 0)) for column, names in of_inputs]
        lines = unseen_categories(rows.encode.encoding, columns, str(source.test), rows.count["test"])
    if (idle := source.world.size - len(rows.streams)) > 0:
        lines.append(
            f"{source.path} has {counted(len(rows.groups), 'row group')}: {idle} of the {source.world.size} processes "
            "have no rows; write it in smaller row groups"
        )
    return lines


def _samples(rows: GroupedRows, world: World) -> dict[str, Split]:
    """Return a sample of each part, which process 0 reads."""
    content = world.together(lambda: safetensors.torch.save(rows.sample()) if world.is_first else b"")
    found = safetensors.torch.load(world.of_first(content))
    return {part: Split(x=found[f"{part}.x"], y=found[f"{part}.y"], y_raw=found.get(f"{part}.y_raw")) for part in PARTS}
