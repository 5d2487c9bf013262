"""The IDX files of a data set, wherever in a folder torchvision, Kaggle or a person has put them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from deltaprop.errors import UserError, listed

DEEPEST = 4  # folders below the given one: torchvision has ROOT/MNIST/raw, and ROOT may be given from above
MOST_FOLDERS = 1000  # that are searched

_FILE_NAME = re.compile(
    r"(?P<prefix>(?:.*[-_.])?)(?P<part>train|t10k|test)[-_.](?P<kind>images|labels)[-_.]idx\d+[-_.]\w+(?:\.gz)?",
    re.IGNORECASE,
)
_LOOKED_FOR = (
    "train-images-idx3-ubyte and train-labels-idx1-ubyte, and for a test set the same with t10k or test for train, "
    "plain or .gz, perhaps after a prefix such as emnist-balanced-"
)

Found: TypeAlias = dict[str, dict[str, list[str]]]
"""By the prefix of the names, in lower case: for each role, such as ``"train-images"``, the files' relative names."""


def find_idx_files(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Return the IDX files of the one data set in a folder, without opening any.

    They lie in the folder, each in a folder of its own name there, or together in one folder further down. Where a file
    stands beside its own ``.gz`` (as torchvision leaves them), the plain one is taken. Where a folder has several data
    sets that differ in the prefix of their names (as torchvision leaves EMNIST), the path of one is the folder's with
    the prefix: ``raw/emnist-balanced``.

    Args:
        folder: Where to look.

    Returns:
        Paths by ``"train-images"``, ``"train-labels"`` and, where there is a test set, ``"test-images"`` and
        ``"test-labels"``.

    Raises:
        UserError: If there is no such folder, it cannot be read, a file is missing, or there is more than one choice.
    """
    folder = Path(folder)
    asked = None
    if is_idx_prefix(folder):
        folder, asked = folder.parent, folder.name.lower()
    found = _files_in(folder)
    if not found:
        below = [*_sets_below(folder)]
        if not below:
            raise UserError(f"{folder}: no IDX files there; looked for {_LOOKED_FOR}")
        if len(below) > 1:
            names = listed([str(path) for path, _ in below])
            raise UserError(f"{folder}: more than one data set: {names}; give one of these folders")
        folder, found = below[0]
    if asked is not None:
        found = {prefix: roles for prefix, roles in found.items() if _bare(prefix) == asked}
    return {role: folder / name for role, name in _one_set(folder, found).items()}


def is_idx_prefix(path: Path) -> bool:
    """Return whether a path that does not exist names a data set in a folder of several, by the prefix of its files."""
    name = path.name.lower()
    try:
        return bool(name) and not path.exists() and path.parent.is_dir() and name in map(_bare, _files_in(path.parent))
    except (OSError, ValueError):  # a name that no file can have
        return False


def _bare(prefix: str) -> str:
    return prefix.rstrip("-_.")


def _one_set(folder: Path, found: Found) -> dict[str, str]:
    """Return the file of each role, after checking that there is one data set, and that it is complete."""
    if len(found) > 1:
        first = ", ".join(next(iter(roles.values()))[0] for roles in found.values())
        advice = "one to a folder expected"
        if all(found):
            advice = f"give one of {listed([str(folder / _bare(prefix)) for prefix in found])}"
        raise UserError(f"{folder}: more than one data set: {first}; {advice}")
    by_role = next(iter(found.values()))
    several = next((files for files in by_role.values() if len(files) > 1), None)
    if several is not None:
        raise UserError(f"{folder}: more than one data set: {', '.join(several)}; one to a folder expected")
    parts = ["train"] + ["test"] * ("test-images" in by_role or "test-labels" in by_role)
    missing = [f"{part}-{kind}" for part in parts for kind in ("images", "labels") if f"{part}-{kind}" not in by_role]
    if missing:
        present = ", ".join(files[0] for files in by_role.values())
        raise UserError(f"{folder}: no {' and no '.join(missing)} beside {present}; looked for {_LOOKED_FOR}")
    return {role: files[0] for role, files in by_role.items()}


def _files_in(folder: Path) -> Found:
    """Return the IDX files in a folder, and those that lie there in a folder of their own name."""
    files, folders = _entries(folder)
    found = _by_role(files)
    own = []
    for name in folders:
        match = _FILE_NAME.fullmatch(name)
        if match and _role(match) not in found.get(match["prefix"].lower(), {}):
            inside = _by_role(_entries(folder / name)[0]).get(match["prefix"].lower(), {})
            own += [(match, f"{name}/{file}") for file in inside.get(_role(match), [])]
    for match, name in own:
        found.setdefault(match["prefix"].lower(), {}).setdefault(_role(match), []).append(name)
    return found


def _by_role(names: list[str]) -> Found:
    """Return the names that are those of IDX files; of a file and its own .gz, the plain one."""
    lower = {name.lower() for name in names}
    found: Found = {}
    for name in names:
        match = _FILE_NAME.fullmatch(name)
        beside_plain = name.lower().endswith(".gz") and name.lower().removesuffix(".gz") in lower
        if match and not beside_plain:
            found.setdefault(match["prefix"].lower(), {}).setdefault(_role(match), []).append(name)
    return found


def _role(match: re.Match[str]) -> str:
    return f"{'train' if match['part'].lower() == 'train' else 'test'}-{match['kind'].lower()}"


def _entries(folder: Path) -> tuple[list[str], list[str]]:
    """Return the names of a folder's files and of its folders, sorted, without hidden ones."""
    try:
        with os.scandir(folder) as entries:  # hidden files are left out: macOS puts a ._NAME beside each NAME
            shown = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
            return [e.name for e in shown if e.is_file()], [e.name for e in shown if e.is_dir()]
    except NotADirectoryError as error:
        raise UserError(f"{folder}: a file, a folder with IDX files expected") from error
    except FileNotFoundError as error:
        raise UserError(f"{folder}: no such folder") from error
    except OSError as error:
        raise UserError(f"{folder}: cannot be read: {error.strerror or error}") from error


def _sets_below(folder: Path) -> Iterator[tuple[Path, Found]]:
    """Yield the folders below one that have IDX files, level by level, with what they have."""
    level = [folder]
    visited = 0
    for _ in range(DEEPEST):
        level = [above / name for above in level for name in _folders_in(above)]
        deeper = []
        for path in level[: MOST_FOLDERS - visited]:
            visited += 1
            found = _files_in(path) if os.access(path, os.R_OK | os.X_OK) else {}
            if found:
                yield path, found
            else:
                deeper.append(path)
        level = deeper


def _folders_in(folder: Path) -> list[str]:
    """Return the names of the folders in a folder; none if it cannot be read."""
    try:
        return _entries(folder)[1]
    except UserError:
        return []
