"""Digests of rows: equal for equal rows, whatever their zeros and blocks, and different otherwise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deltaprop.data.dataset import Split
from deltaprop.data.digests import decode_digests, encode_digests, is_among, part_digests, row_digests


def splitmix(state: int) -> int:
    """Return the finaliser of SplitMix64 with Python's integers."""
    z = (state + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def test_the_constants_are_those_of_splitmix64():
    """The first output of SplitMix64 from the state 0, in many test suites: e220a8397b1dcdaf."""
    assert splitmix(0) == 0xE220A8397B1DCDAF


def test_a_digest_by_hand():
    """Of x = (1, 2, 0) and the label 5: float32 bits 3f800000, 40000000 and 0, two in a word, the first one low."""
    h = 0x243F6A8885A308D3
    for word in (0x40000000_3F800000, 0, 5):
        h = splitmix(h ^ word)
    assert row_digests(torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([5])).tolist() == [h]
    h = 0x243F6A8885A308D3  # in float64: 1 is 3ff0…, 2 is 4000…; the target is one of the words
    for word in (0x3FF0000000000000, 0x4000000000000000):
        h = splitmix(h ^ word)
    assert row_digests(torch.tensor([[1.0]]).double(), torch.tensor([[2.0]]).double()).tolist() == [h]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_zeros_are_one_value_and_so_are_nans(dtype: torch.dtype):
    x = torch.tensor([[0.0, 1.0, 2.0], [-0.0, 1.0, 2.0]], dtype=dtype)
    x = torch.cat([x, x.new_tensor([[np.nan, 1.0, 2.0], [-np.nan, 1.0, 2.0]])])
    one, other, nan, minus_nan = row_digests(x, torch.zeros(4, dtype=torch.int64))
    assert one == other
    assert nan == minus_nan != one


def test_any_change_of_a_value_changes_the_digest():
    """Each input and the target by one unit in the last place, and two inputs exchanged."""
    x, y = torch.rand(1, 5), torch.rand(1, 2)
    rows = [(x, y), (x[:, [1, 0, 2, 3, 4]], y)]
    for of, at in [(x, 0), (x, 3), (x, 4), (y, 0), (y, 1)]:
        changed = of.clone()
        changed[0, at] = torch.nextafter(changed[0, at], torch.tensor(2.0))
        rows.append((changed, y) if of is x else (x, changed))
    assert len({int(row_digests(*row)[0]) for row in rows}) == 7


def test_many_similar_rows_are_told_apart():
    """All 65536 rows of 16 zeros and ones, as one-hot inputs are: no two have the same digest."""
    x = (torch.arange(2**16)[:, None] >> torch.arange(16) & 1).float()
    assert len(np.unique(row_digests(x, torch.zeros(2**16, dtype=torch.int64)))) == 2**16


def test_blocks_and_precision_of_the_targets_do_not_matter(monkeypatch: pytest.MonkeyPatch):
    x, y = torch.rand(20, 3), torch.rand(20, 1)
    expected = row_digests(x, y)
    assert (row_digests(x, y.double()) == expected).all()
    monkeypatch.setattr("deltaprop.data.digests.ROWS_AT_ONCE", 7)
    assert (part_digests(Split(x=x, y=y)) == expected).all()
    assert len(part_digests(Split(x=x[:0], y=y[:0]))) == 0


def test_digests_in_a_file():
    """Little-endian, one of all of them at the end; a file that was changed, cut or lengthened is not read."""
    digests = row_digests(torch.rand(9, 3), torch.arange(9))
    content = encode_digests(digests)
    assert content[:8] == int(digests[0]).to_bytes(8, "little")
    assert (decode_digests(content, 9) == digests).all()
    flipped = bytes([content[0] ^ 1]) + content[1:]
    swapped = content[8:16] + content[:8] + content[16:]
    for damaged in (b"", content[:-1], content + b"\0", content[8:], flipped, swapped):
        assert decode_digests(damaged, 9) is None
    assert decode_digests(content, 8) is None
    assert decode_digests(encode_digests(digests[:0]), 0) is not None


def test_known_digests_are_found():
    digests = row_digests(torch.arange(6.0)[:, None], torch.zeros(6, dtype=torch.int64))
    assert is_among(digests, digests[[4, 1, 1]]).tolist() == [False, True, False, False, True, False]
    assert not is_among(digests, digests[:0]).any()
