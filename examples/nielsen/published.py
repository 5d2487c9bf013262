"""The numbers that were published with the book.

Source:
    M. Nielsen, *Neural Networks and Deep Learning* (Determination Press, 2015), chapter 3; the result files of its
    figures, ``fig/overfitting.json``, ``fig/weight_initialization_30.json`` and ``fig/more_data.json``, in
    https://github.com/mnielsen/neural-networks-and-deep-learning. The 400 epochs of the first are in overfitting.csv
    in this folder, with all digits.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

# Correct predictions for 10 000 validation images after each of 30 epochs.
DEFAULT_WEIGHTS = (
    9270, 9414, 9470, 9504, 9537, 9550, 9587, 9594, 9596, 9594, 9616, 9595, 9622, 9630, 9636, 9641, 9625, 9652, 9637,
    9634, 9642, 9639, 9649, 9646, 9646, 9653, 9646, 9653, 9640, 9650,
)  # fmt: skip
LARGE_WEIGHTS = (
    8643, 9044, 9141, 9231, 9299, 9327, 9385, 9416, 9433, 9449, 9476, 9489, 9500, 9535, 9521, 9548, 9564, 9573, 9585,
    9592, 9596, 9615, 9607, 9605, 9606, 9622, 9637, 9648, 9635, 9637,
)  # fmt: skip

# The same by the number of training images; the file has them in percent, 69.09 for the first.
MORE_DATA = {
    100: 6909, 200: 7637, 500: 8529, 1000: 8885, 2000: 9127, 5000: 9324, 10_000: 9489, 20_000: 9585, 50_000: 9597,
}  # fmt: skip


def overfitting() -> list[Mapping[str, float]]:
    """Return the costs and the correct predictions for 10 000 test and 1000 training images of each epoch."""
    with (Path(__file__).parent / "overfitting.csv").open(newline="") as file:
        return [
            {name: (int if name.endswith("right") else float)(cell) for name, cell in row.items() if name != "epoch"}
            for row in csv.DictReader(file)
        ]
