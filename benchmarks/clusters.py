"""Which exchange is the fastest on a cluster: ``python -m benchmarks.clusters``.

By ``benchmarks.cost_model``; nothing is measured. With ``--write`` the table of docs/distributed.md and the picture.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from benchmarks.cost_model import H100, TEN_GIGABIT, WAYS, Cluster, memory, step
from benchmarks.report import Table

CLUSTERS = {"H100": H100, "H100, flat": replace(H100, host=1), "10 GbE": TEN_GIGABIT}
WIDTHS = [2**k for k in range(10, 17)]
BATCH, BATCHES = 1024, (512, 2048, 8192)
PAGE = Path(__file__).parent.parent / "docs" / "distributed.md"
COLOURS = {"sums": "#4477aa", "factors": "#ee6677", "fsdp": "#228833", "does not fit": "#dddddd"}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clusters", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write table and picture into docs/")
    arguments = parser.parse_args()
    Console(width=140).print(table().rich(), highlight=False)
    if arguments.write:
        text = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(re.sub(r"### Model: .*?\n\n\|.*?\n(?=\n)", lambda _: table().markdown(), text, flags=re.DOTALL))
        draw(PAGE.parent / "pictures" / "processes.png")


def best(cluster: Cluster, width: int, batch: int, processes: int) -> tuple[str, float, float] | None:
    """Return the fastest way that fits in memory, its seconds and bytes, for four square weights; None if none fits."""
    case = cluster, [width] * 5, batch, processes
    fitting = [way for way in WAYS if memory(*case, way) <= cluster.capacity]
    way = min(fitting, key=lambda way: step(*case, way), default=None)
    return None if way is None else (way, step(*case, way), memory(*case, way))


def table() -> Table:
    """Return the fastest way by cluster, width and number of processes."""
    counts = [8, 32, 128, 1024]
    title = f"Model: the fastest exchange for four weights of width × width, batch {BATCH}"
    found = Table(title, ["cluster, width", *(f"{count} processes" for count in counts)])
    for name in ("H100", "10 GbE"):
        for width in WIDTHS:
            cells = [best(CLUSTERS[name], width, BATCH, count) for count in counts]
            found.rows.append([f"{name}, {width // 1024}k", *map(shown, cells)])
    return found


def shown(cell: tuple[str, float, float] | None) -> str:
    """Return a cell as text."""
    if cell is None:
        return "does not fit"
    way, seconds, nbytes = cell
    time = f"{1e3 * seconds:.2g} ms" if seconds < 0.0995 else f"{seconds:.{3 if seconds >= 99.5 else 2}g} s"
    return f"{way}, {time}, {nbytes / 1e9:.2g} GB"


def draw(path: Path) -> None:
    """Draw which way is the fastest, for each cluster and batch."""
    import matplotlib.pyplot as plt  # slow to import
    from matplotlib.patches import Patch

    counts = [2**k for k in range(3, 11)]
    figure, axes = plt.subplots(len(CLUSTERS), len(BATCHES), figsize=(9, 7), sharex=True, sharey=True)
    for row, (name, cluster) in zip(axes, CLUSTERS.items(), strict=True):
        for axis, batch in zip(row, BATCHES, strict=True):
            for x, count in enumerate(counts):
                for y, width in enumerate(WIDTHS):
                    cell = best(cluster, width, batch, count)
                    colour = COLOURS[cell[0] if cell else "does not fit"]
                    axis.add_patch(plt.Rectangle((x, y), 1, 1, facecolor=colour, edgecolor="white"))
            axis.set(xlim=(0, len(counts)), ylim=(0, len(WIDTHS)), title=f"{name}, batch {batch}")
            axis.set_xticks([x + 0.5 for x in range(len(counts))], map(str, counts), rotation=45)
            axis.set_yticks([y + 0.5 for y in range(len(WIDTHS))], [f"{width // 1024}k" for width in WIDTHS])
    for axis in axes[-1]:
        axis.set_xlabel("processes")
    figure.supylabel("width")
    keys = [Patch(color=colour, label=way) for way, colour in COLOURS.items()]
    figure.legend(handles=keys, loc="lower center", ncols=len(keys), frameon=False)
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(path, dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
