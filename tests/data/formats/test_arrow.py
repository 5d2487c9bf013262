"""Feather and Arrow IPC files are read in their own types; damaged ones are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import feather, ipc

from deltaprop import UserError
from deltaprop.data.formats import arrow, open_table

TABLE = pa.table({"a": [1, 2**53 + 1, None], "c": pa.array(["x", "y", "x"]).dictionary_encode(), "y": [0.5, 1.0, -2]})


def write_file(path: Path, table: Any = TABLE, **options: Any) -> None:
    with ipc.new_file(path, table.schema, **options) as writer:
        writer.write_table(table, max_chunksize=2)


def write_stream(path: Path, table: Any = TABLE) -> None:
    with ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


WRITERS = {
    "t.feather": lambda path: feather.write_feather(TABLE, path),  # compressed by lz4
    "u.feather": lambda path: feather.write_feather(TABLE, path, compression="zstd"),
    "t.arrow": write_file,
    "t.ipc": write_stream,
    "T.ARROWS": write_stream,
    "u.arrow": lambda path: write_file(path, options=ipc.IpcWriteOptions(compression="zstd")),
}


@pytest.mark.parametrize("name", WRITERS)
def test_both_formats_are_read_in_their_own_types(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    """Block by block, a batch of the file or a part of it."""
    monkeypatch.setattr(arrow, "BATCH_ROWS", 1)
    WRITERS[name](tmp_path / name)
    table = open_table(tmp_path / name)
    batches = [*table.batches()]
    assert table.names == ["a", "c", "y"]
    assert pa.Table.from_batches(batches).cast(TABLE.schema).equals(TABLE)
    assert [len(batch) for batch in batches] == [1, 1, 1]
    assert table.place(3) == f"{tmp_path / name}: row 3"


def test_the_index_of_pandas_is_left_out_and_the_first_name_may_be_empty(tmp_path: Path):
    write_file(tmp_path / "t.arrow", pa.table({"__index_level_0__": [5], " a ": [1], "y": [2]}))
    table = open_table(tmp_path / "t.arrow")
    assert table.names == ["a", "y"]
    assert next(iter(table.batches())).to_pydict() == {"a": [1], "y": [2]}
    write_file(tmp_path / "u.arrow", pa.table({"": [5], "y": [2]}))
    assert open_table(tmp_path / "u.arrow").names == ["", "y"]


def test_a_damaged_file_is_refused(tmp_path: Path):
    """Also one whose text is not UTF-8, which only a full check of its values shows."""

    def refused(name: str, content: bytes) -> str:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError) as caught:
            [*open_table(tmp_path / name).batches()]
        assert "\n" not in str(caught.value)
        return str(caught.value).removeprefix(f"{tmp_path / name}: ")

    write_file(tmp_path / "t.arrow")
    content = (tmp_path / "t.arrow").read_bytes()
    assert refused("a.arrow", content[:-9]).startswith("not a sound Arrow or Feather file: ")
    assert refused("b.arrow", b"a,b\n1,2\n").startswith("not a sound Arrow or Feather file: ")
    assert refused("c.arrow", b"").startswith("not a sound Arrow or Feather file: ")
    assert refused("d.feather", b"FEA1" + bytes(20)) == "this is version 1 of Feather: write it again, in version 2"
    text = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(bytes([0, 0, 0, 0, 1, 0, 0, 0])), pa.py_buffer(b"\xff")]
    )
    write_file(tmp_path / "u.arrow", pa.table({"a": text, "y": [1]}))
    assert "UTF8" in refused("u.arrow", (tmp_path / "u.arrow").read_bytes())
    write_file(tmp_path / "v.arrow", pa.table({"a": [1]}))
    assert refused("v.arrow", (tmp_path / "v.arrow").read_bytes()) == "1 column: inputs and a target need two"
    with pytest.raises(UserError, match="there is no such file"):
        open_table(tmp_path / "none.arrow")
