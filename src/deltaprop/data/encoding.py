"""From the numbers of a table to the inputs of a net, fitted on the training rows and kept with the model.

Numbers come first, in the order of the table, each standardised by the data set's `Scaling`; then, for each column of
categories, one input per name: 1 where the cell has it, else 0 (scikit-learn's ``OneHotEncoder``). A name that no
training row has, and a missing one, is 0 everywhere. A missing number is the mean of the training rows.

Shapes: raw [N, p], a column of the table each; encoded [N, n].
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from deltaprop.data.columns import Column, Kind, Numbers
from deltaprop.data.scaling import Scaling
from deltaprop.errors import UserError

UNKNOWN = -1.0  # the number of a category that training has not seen


@dataclass(frozen=True)
class Input:
    """A column of inputs, as the training rows have it.

    Attributes:
        name: In the header.
        kind: ``"numbers"`` or ``"categories"``.
        categories: Their names, sorted.
        fill: What stands for a missing number; None where none may be missing.
    """

    name: str
    kind: Kind
    categories: tuple[str, ...] = ()
    fill: float | None = None


@dataclass(frozen=True)
class Encoding:
    """What the columns of a table become.

    Attributes:
        inputs: The columns, in the order of the table.
        targets: The names of what is predicted.
    """

    inputs: tuple[Input, ...]
    targets: tuple[str, ...]

    @cached_property
    def numbers(self) -> list[int]:
        """Which columns are of numbers."""
        return [at for at, column in enumerate(self.inputs) if column.kind == "numbers"]

    @cached_property
    def categories(self) -> list[int]:
        """Which columns are of categories."""
        return [at for at, column in enumerate(self.inputs) if column.kind == "categories"]

    @property
    def names(self) -> list[str]:
        """The names of the encoded inputs, such as ``["age", "city=Paris", "city=Rome"]``."""
        found = [self.inputs[at].name for at in self.numbers]
        return found + [
            f"{self.inputs[at].name}={name}" for at in self.categories for name in self.inputs[at].categories
        ]

    def __len__(self) -> int:
        """Return n, the number of encoded inputs."""
        return len(self.numbers) + sum(len(self.inputs[at].categories) for at in self.categories)

    @cached_property
    def _one_hot(self) -> Any:
        from sklearn.preprocessing import OneHotEncoder

        known = [np.arange(len(self.inputs[at].categories), dtype=np.float64) for at in self.categories]
        encoder = OneHotEncoder(categories=known, handle_unknown="ignore", sparse_output=False, dtype=np.float64)
        return encoder.fit(np.zeros((1, len(known))))

    def encode(self, raw: Numbers) -> Numbers:
        """Return the inputs, [N, n], not yet scaled; ``streaming.py`` does the same faster, while a net trains.

        Args:
            raw: [N, p], categories by their number in ``categories``, NaN where missing.
        """
        numbers = raw[:, self.numbers]
        gaps = np.isnan(numbers)
        if gaps.any():
            fills = np.array([self.inputs[at].fill for at in self.numbers], dtype=np.float64)
            numbers = np.where(gaps, fills, numbers)
        if not self.categories:
            return numbers
        codes = np.nan_to_num(raw[:, self.categories], nan=UNKNOWN)
        return np.concatenate([numbers, self._one_hot.transform(codes)], axis=1)

    def recode(self, columns: Sequence[Column]) -> list[Numbers | None]:
        """Return, for each column that was read, the number here of each of its names; None for numbers."""
        found: list[Numbers | None] = []
        for column, own in zip(columns, self.inputs, strict=True):
            if own.kind == "numbers":
                found.append(None)
                continue
            numbers = {name: float(at) for at, name in enumerate(own.categories)}
            found.append(np.array([numbers.get(name, UNKNOWN) for name in column.names], dtype=np.float64))
        return found

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        inputs = [
            {"name": c.name, "kind": c.kind, **({"categories": [*c.categories]} if c.kind == "categories" else {}),
             **({"fill": c.fill} if c.fill is not None else {})}
            for c in self.inputs
        ]  # fmt: skip
        return {"inputs": inputs, "targets": [*self.targets]}

    @classmethod
    def from_json(cls, found: Any) -> Encoding:
        """Return what :meth:`to_json` was of.

        Raises:
            UserError: If it cannot have been.
        """
        try:
            inputs = tuple(_input(entry) for entry in found["inputs"])
            targets = tuple(found["targets"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"damaged: its columns ({type(error).__name__}: {error})") from error
        names = [c.name for c in inputs]
        if len({*names, *targets}) != len(names) + len(targets) or not all(isinstance(t, str) for t in targets):
            raise UserError("damaged: a column stands twice in it")
        return cls(inputs, targets)


def _input(entry: Mapping[str, Any]) -> Input:
    name, kind, fill, names = entry["name"], entry["kind"], entry.get("fill"), entry.get("categories", [])
    if not isinstance(name, str) or kind not in ("numbers", "categories"):
        raise ValueError(f"{name!r:.40} of {kind!r:.40}")
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names) or len({*names}) != len(names):
        raise ValueError(f"the categories of {name!r:.40}")
    if kind == "categories" and not names:
        raise ValueError(f"the categories of {name!r:.40}")
    if fill is not None and not (isinstance(fill, int | float) and math.isfinite(fill)):
        raise ValueError(f"the fill of {name!r:.40}")
    return Input(name, kind, tuple(names), None if fill is None else float(fill))


def recoded(raw: Numbers, recodes: Sequence[Numbers | None]) -> Numbers:
    """Return a block [N, p] as it was read with its categories numbered anew."""
    if all(recode is None for recode in recodes):
        return raw
    raw = raw.copy()
    for at, recode in enumerate(recodes):
        if recode is not None:
            known = ~np.isnan(raw[:, at])
            raw[known, at] = recode[raw[known, at].astype(np.intp)]
    return raw


def fitted(
    columns: Sequence[Column],
    targets: Sequence[str],
    blocks: Iterable[Numbers],
    *,
    fills: bool,
    where: str = "the table",
) -> tuple[Encoding, Scaling]:
    """Return the encoding of the training rows, and the scaling of the encoded inputs to mean 0 and deviation 1.

    The mean and the deviation are those of the numbers that are there (scikit-learn's ``StandardScaler``, which takes
    them block by block). One-hot inputs keep scale 1: what they mean is 0 and 1.

    Args:
        columns: As they were read.
        targets: The names of what is predicted.
        blocks: The training rows [N, p], as they were read.
        fills: Whether numbers may be missing.
        where: What messages call the table.

    Raises:
        UserError: If a column has no value in any training row, or its deviation is not finite.
    """
    from sklearn.preprocessing import StandardScaler

    numbers = [at for at, column in enumerate(columns) if column.kind != "categories"]
    scaler = StandardScaler()
    seen: list[set[float]] = [set() for _ in columns]
    present = np.zeros(len(numbers), dtype=np.int64)
    for block in blocks:
        if numbers:
            present += (~np.isnan(block[:, numbers])).sum(axis=0)
            with np.errstate(over="ignore", invalid="ignore"):  # told below, with the column's name
                scaler.partial_fit(block[:, numbers])
        for at, column in enumerate(columns):
            if column.kind == "categories":
                seen[at].update(np.unique(block[:, at]).tolist())
    inputs: list[Input] = []
    for at, column in enumerate(columns):
        if column.kind == "categories":
            names = sorted(name for name, number in column.names.items() if number in seen[at])
            if not names:
                raise _nothing(where, column)
            inputs.append(Input(column.name, "categories", tuple(names)))
            continue
        place = numbers.index(at)
        if not present[place]:
            raise _nothing(where, column)
        middle, spread = float(scaler.mean_[place]), float(scaler.scale_[place])
        if not math.isfinite(middle) or not math.isfinite(spread):
            raise UserError(
                f"{where}: column {column.name!r} cannot be standardised: its mean is {middle} and its deviation "
                f"{spread}: leave it out by `drop`, or write it in another unit"
            )
        inputs.append(Input(column.name, "numbers", fill=middle if fills else None))
    encoding = Encoding(tuple(inputs), tuple(targets))
    mean = torch.zeros(len(encoding), dtype=torch.float64)
    scale = torch.ones(len(encoding), dtype=torch.float64)
    if numbers:
        mean[: len(numbers)] = torch.from_numpy(scaler.mean_)
        scale[: len(numbers)] = torch.from_numpy(scaler.scale_)
    return encoding, Scaling(mean, scale)


def _nothing(where: str, column: Column) -> UserError:
    return UserError(f"{where}: column {column.name!r} has no value in any training row: leave it out by `drop`")


def unseen_categories(encoding: Encoding, columns: Sequence[Column], where: str) -> list[str]:
    """Return a line for each column of categories with names that training has not seen.

    Args:
        encoding: Fitted on the training rows.
        columns: As they were read from other rows.
        where: Whose rows they are.
    """
    lines = []
    for own, column in zip(encoding.inputs, columns, strict=True):
        strange = [name for name in column.names if name not in own.categories] if own.kind == "categories" else []
        if strange:
            names = "a name" if len(strange) == 1 else f"{len(strange)} names"
            lines.append(f"{where}: column {own.name!r} has {names} that no training row has, such as {strange[0]!r}")
    return lines
