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
from deltaprop.data.grouped import GroupedRows, GroupFacts, Reading, exchanged, merged, of_all, survey, unite_names
from deltaprop.data.infer import TablePlan
from deltaprop.data.row_groups import PARTS, Division, RowGroup, deal, footers_digest, own_groups, row_groups
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
    groups = row_groups(table.files)
    is_large = 8 * sum(group.rows for group in groups) * (len(table.names) - len(options.drop)) > cache.memory
    return groups if is_large or storage == "groups" else []


def agree_on_files(groups: Sequence[RowGroup], path: str, world: World) -> None:
    """Refuse files that are not those of process 0, by their footers.

    Raises:
        UserError: In all processes.
    """
    told = world.of_each(world.together(lambda: footers_digest(groups)) if world.size > 1 else b"")
    for rank, digest in enumerate(told):
        if digest != told[0]:
            error = UserError(f"process {rank} has other data in {path} than process 0 (by the footers of its files)")
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
    facts = _survey(source, [*groups, *of_test], reading)
    of_table = merged(facts[: len(groups)], plan, reading.most_values)
    if not sum(of_table.rows):
        what = "every row has a missing cell" if of_table.dropped else "the target is missing in every row"
        raise UserError(f"{path}: {what}")
    for column, names in zip((*plan.inputs, *plan.targets), merged(facts, plan, 0).names, strict=True):
        column.names = {name: at for at, name in enumerate(names)}
    targets = Targets.infer(_target_counts(plan, of_table, path), options.task, options.rare_classes)
    classes = ClassCounts.of(targets, plan, facts, len(groups), str(source.test))
    reading = replace(reading, targets=targets, always=classes.always)
    changed = classes.changed(facts) if targets.class_names else []
    again = _survey(source, [*groups, *of_test], reading, changed)
    for at, of in zip(changed, again, strict=True):
        facts[at] = replace(of, counts=facts[at].counts)
    return _dataset(source, [*groups, *of_test], reading, facts, classes)


def _dataset(
    source: GroupSource, groups: list[RowGroup], reading: Reading, facts: list[GroupFacts], classes: ClassCounts
) -> Dataset:
    """Return the data set of row groups whose facts are known, with those of the table to test on at the end."""
    plan, targets, path = reading.plan, reading.targets, str(source.path)
    assert targets is not None
    total = merged(facts, plan, reading.most_values)
    encoding, scaling, empty = encoding_of(total.inputs, plan.targets, missing=reading.missing, where=path)
    scaling = scaling if source.standardise else Scaling.identity(len(encoding))
    target_scaling = Scaling.identity(1) if targets.class_names else _target_scaling(plan, total, path)
    rows = GroupedRows(
        groups=groups, streams=deal(groups), reading=reading,
        encode=Encoder(encoding, plan.inputs, scaling, source.dtype, path),
        scale=lambda y: target_scaling.apply(y).to(source.dtype), counts=[of.rows for of in facts],
        class_counts=dict(zip(PARTS, classes.of_all(facts).T.tolist(), strict=True)),
        moments=dict(zip(PARTS, total.targets, strict=True)), folder=source.cache.folder,
        varies=dict(zip(PARTS, total.most > total.least, strict=True)),
        farthest=_farthest(total, scaling, target_scaling),
    )  # fmt: skip
    _check_parts(rows, path)
    tested = [of for group, of in zip(groups, facts, strict=True) if group.first >= reading.division.rows]
    warnings = encoding_warnings(encoding, rows.count["train"], empty)
    warnings += _warnings(source, rows, merged(tested, plan, 0).names if tested else [])
    table = TableFacts(
        encoding=encoding, left_out=plan.left_out, dropped=total.dropped, unlabelled=total.unlabelled, gaps=total.gaps,
        storage="groups", notes=plan.notes, warnings=tuple(warnings),
    )  # fmt: skip
    return Dataset(
        name=source.path.name, task=targets.task, **_samples(rows, source.world), class_names=targets.class_names,
        image_shape=None, input_scaling=scaling, target_scaling=target_scaling, digest=total.digest,
        table=table, classes_left_out=targets.left_out, notes=targets.notes, grouped=rows,
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
        found = row_groups(test.files, groups[-1].first + groups[-1].rows)
        if not found:
            raise UserError(f"{source.test}: there is a header, and no row below it")
        return found

    groups_of_test = source.world.together(of_test)
    agree_on_files(groups_of_test, str(source.test), source.world)
    return plan, groups_of_test


def _survey(
    source: GroupSource, groups: Sequence[RowGroup], reading: Reading, chosen: Sequence[int] | None = None
) -> list[GroupFacts]:
    """Return what is in some row groups, by default in all; each process reads its own."""
    world, wanted = source.world, {*(range(len(groups)) if chosen is None else chosen)}

    def of_own() -> bytes:
        own = [at for at in own_groups(deal(groups), world.rank, world.size) if at in wanted]
        size, done, found = sum(groups[at].size for at in own), 0, {}
        for at in own:
            found[at] = survey(groups[at], reading)
            done += groups[at].size
            source.cache.progress(f"reading {source.path.name}", done, size)
        for is_tested in (False, True):
            unite_names([of for at, of in found.items() if (groups[at].first >= reading.division.rows) == is_tested])
        return exchanged(found)

    return of_all(world.of_each(world.together(of_own)), reading.plan.inputs) if wanted else []


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
        of_table: How many row groups are not of the table to test on.
        always: Labels of classes that none of the rows drawn for training has: all their rows are trained on.
    """

    label_of: dict[str, int]
    classes: int
    of_table: int
    always: tuple[int, ...] = ()

    @classmethod
    def of(
        cls, targets: Targets, plan: TablePlan, facts: Sequence[GroupFacts], of_table: int, test: str
    ) -> ClassCounts:
        """Return it, after refusing a class that only the table to test on has.

        Args:
            targets: The classes of the table.
            plan: The columns.
            facts: What is in each row group.
            of_table: How many row groups are not of the table to test on.
            test: The name of that table.
        """
        if not targets.class_names:
            return cls({}, 0, of_table)
        if any(of.counts is None for of in facts):
            name = plan.targets[0].name
            raise UserError(f"{test}: the target {name!r} has far more different values than there are classes")
        values = [*dict.fromkeys(value for of in facts for value in of.counts or ())]
        read = np.array([[_value(plan.targets[0], value)] for value in values])
        labels = targets.encode(TargetValues(plan.targets, read, test, False)).tolist()
        drawn = cls(dict(zip(values, labels, strict=True)), len(targets.class_names), of_table)
        trained = drawn.of_all(facts[:of_table])[:, 0]
        return replace(drawn, always=tuple(np.flatnonzero(trained == 0).tolist()))

    def of_all(self, facts: Sequence[GroupFacts]) -> Array:
        """Return the rows of each class in each part, [C, 3]."""
        found = np.zeros((self.classes, len(PARTS)), dtype=np.int64)
        for at, of in enumerate(facts):
            for value, by_part in (of.counts or {}).items() if self.classes else ():
                label = self.label_of[value]
                if label >= 0:
                    found[label] += [sum(by_part), 0, 0] if self._moves(label, at) else by_part
        return found

    def changed(self, facts: Sequence[GroupFacts]) -> list[int]:
        """Return the row groups with rows that are not in the part they were drawn for."""
        return [
            at
            for at, of in enumerate(facts)
            if any(self.label_of[value] < 0 or self._moves(self.label_of[value], at) for value in of.counts or ())
        ]

    def _moves(self, label: int, group: int) -> bool:
        return label in self.always and group < self.of_table


def _target_scaling(plan: TablePlan, total: GroupFacts, path: str) -> Scaling:
    """Return the scaling of targets that are numbers, fitted on the training rows."""
    moments, varies = total.targets[0], total.most[0] > total.least[0]
    deviation = np.where(varies, np.sqrt(moments.variance).clip(np.finfo(np.float64).tiny), 0.0)
    for column, mean, spread in zip(plan.targets, moments.mean.tolist(), deviation.tolist(), strict=True):
        check_target_spread(f"{path}: the target {column.name!r}", mean, spread)
    return Scaling(torch.from_numpy(moments.mean), torch.from_numpy(np.where(varies, deviation, 1.0)))


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
