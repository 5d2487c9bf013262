"""A stage is all that one batch size needs; the rows of the data are brought to it a block at a time.

To gather the rows of one batch costs a call for x and one for y; in small nets that is a tenth of a step. So the rows
of several batches are gathered together, as many as stay in the processor's cache; each batch is a view of the block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from deltaprop.explicit.host import on_host
from deltaprop.explicit.layers import Buffers, Layer, PackedLayer, Plan, activations
from deltaprop.explicit.losses import Loss
from deltaprop.explicit.recursion import back_propagate, feed_forward

BLOCK_BYTES = 2**20  # a second-level cache. From 2^18 on no difference on a Xeon; 2 % to 2^19 on an EPYC
BLOCK_WORK = 2**31  # multiply-adds: a tenth of a second, after which whoever waits for the end of a block has it
MOST_BATCHES = 48  # who looks between blocks whether numbers are still finite finds out within 50 steps


def batches_per_block(x: Tensor, rows: int, outputs: int, weights: int) -> int:
    """Return how many batches of so many rows of x to gather at a time, with what their losses keep of each output.

    Args:
        x: Inputs, [M, n_0].
        rows: N, of a batch.
        outputs: n_L.
        weights: Σ n_l n_{l−1}.

    It follows from sizes alone, so that an epoch is always parted in the same places.
    """
    if not on_host(x.device):
        return 1  # a graph gathers for itself (graph.py)
    room = BLOCK_BYTES // (rows * (x.shape[1] + outputs) * x.element_size())
    work = BLOCK_WORK // (3 * rows * weights)  # FWD, BP2, BP4
    return max(1, min(MOST_BATCHES, room, work))


class Stage:
    """Layers, loss and input for batches of N rows.

    Args:
        plans: The layers, from the first.
        buffers: Their memory.
        loss: For blocks of so many batches of N rows.
        lowest: Index of the lowest layer that learns; below it nobody asks for δ.
        rows: N.
        batches: B; 0 to work on tensors as they are given, one batch at a time.
        packs: Whether small layers are packed.
        kind: Of a layer that is not.
    """

    def __init__(
        self,
        plans: Sequence[Plan],
        buffers: Sequence[Buffers],
        loss: Loss,
        lowest: int,
        rows: int,
        batches: int,
        packs: bool,
        kind: Callable[[Plan], type[Layer]],
    ) -> None:
        self.rows, self.batches, self.loss = rows, batches, loss
        self.layers: list[Layer] = []
        below: Layer | None = None
        for plan, buffer in zip(plans, buffers, strict=True):
            if packs and plan.packed is not None:
                below = PackedLayer(plan, plan.packed, buffer, rows, below)
            else:
                below = kind(plan)(plan, buffer, rows, below)
            self.layers.append(below)
        self.learning = self.layers[lowest:]
        self.lesson: int | None = None  # which of the trainer's lessons ``descend`` was made in
        first = plans[0]
        wide = isinstance(self.layers[0], PackedLayer)
        self._block, self._x = activations(batches * rows, first.linear.in_features, wide, first.linear.weight)
        self._shown = [(x, x.t()) for x in self._block.split(rows)] if batches else []
        self.steps = [partial(self.step, batch) for batch in range(batches)]

    def take(self, x: Tensor, y: Tensor) -> None:
        """Take a batch as it is, [N, …], as the next."""
        self.layers[0].see(x, None)
        self.loss.begin(y)

    def load(self, x: Tensor, y: Tensor, rows: int, order: Tensor | None = None) -> None:
        """Bring up to B batches into the block: so many rows of x and y, in the given order or as they come."""
        into, targets = self._x, self.loss.targets
        if rows != self.rows * self.batches:
            into, targets = into[:rows], targets[:rows]
        if order is None:
            into.copy_(x)
            targets.copy_(y)
        else:
            torch.index_select(x, 0, order, out=into)
            torch.index_select(y, 0, order, out=targets)
        self.loss.begin(targets)

    def show(self, batch: int) -> None:
        """Take a batch of the block as the next."""
        self.layers[0].see(*self._shown[batch])
        self.loss.show(batch)

    def step(self, batch: int) -> None:
        """Take one step on a batch of the block."""
        self.show(batch)
        self.train()

    def train(self) -> None:
        """Take one step on the batch that is shown."""
        feed_forward(self.layers)
        back_propagate(self.learning, self.loss)

    def add_values(self, total: Tensor, steps: int, units: Tensor | None) -> None:
        """Add Σ C N over the first steps of a block."""
        total.add_(self.loss.total_value(steps, units), alpha=self.rows)
