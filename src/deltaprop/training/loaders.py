"""The loader of a run: of rows in memory or on disk, or of those that stay in their row groups."""

from __future__ import annotations

from deltaprop.distributed import World
from deltaprop.training.data_loader import DataLoader
from deltaprop.training.group_loader import GroupLoader
from deltaprop.training.setup import Setup


def make_loader(
    setup: Setup, sizes: tuple[int, int] | None = None, world: World | None = None
) -> DataLoader | GroupLoader:
    """Return the loader of a run's training rows.

    Args:
        setup: The setup of the run.
        sizes: Rows per block or window, and per shard; chosen by default.
        world: The processes that train together.
    """
    dataset, objective, batch_size = setup.dataset, setup.objective, setup.config.batch_size
    if dataset.grouped is not None:
        return GroupLoader(dataset.grouped, dataset.train, objective, batch_size, sizes, world)
    return DataLoader(dataset.train, objective, batch_size, sizes, setup.deformation)
