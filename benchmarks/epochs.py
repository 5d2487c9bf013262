"""The peers over a whole epoch, including shuffling and data movement. Each computes the loss of every step.

A peer is a function of a problem that returns ``(run, weights)``, as in ``peers.py``: ``run()`` trains one epoch in the
next order. All but scikit-learn, which shuffles by itself, use the same orders, and must end at the same weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import deltaprop as dp
from benchmarks.peers import Peer, jax_step, parameters, targets
from benchmarks.problem import LR, Problem


def orders(problem: Problem) -> Iterator[Tensor]:
    """Yield random permutations of the rows, the same ones at every call."""
    generator = torch.Generator().manual_seed(1)
    while True:
        yield torch.randperm(len(problem.x), generator=generator)


def explicit(problem: Problem) -> Peer:
    """``ExplicitTrainer.epoch``."""
    model = problem.model()
    trainer = dp.ExplicitTrainer(model, problem.loss, dp.SGD(model.parameters(), lr=LR))
    order = orders(problem)

    def run() -> float:
        return float(trainer.epoch(problem.x, problem.y, problem.batch_size, order=next(order)))

    return run, parameters(model)


def compiled(problem: Problem) -> Peer:
    """``CompiledTrainer.epoch``.

    Raises:
        UserError: If there is no C++ compiler.
    """
    model = problem.model()
    trainer = dp.CompiledTrainer(model, problem.loss, dp.SGD(model.parameters(), lr=LR))
    order = orders(problem)

    def run() -> float:
        return float(trainer.epoch(problem.x, problem.y, problem.batch_size, order=next(order)))

    return run, parameters(model)


def data_loader(problem: Problem) -> Peer:
    """torch.nn and torch.optim.SGD with a DataLoader, as in PyTorch's tutorials."""
    model = dp.to_torch(problem.model())
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    dataset = torch.utils.data.TensorDataset(problem.x, problem.y)
    order = orders(problem)

    def run() -> float:
        total = 0.0
        loader: Any = torch.utils.data.DataLoader(dataset, problem.batch_size, sampler=next(order).tolist())
        for x, y in loader:
            c = getattr(nn.functional, problem.loss)(model(x), y)
            optimizer.zero_grad()
            c.backward()
            optimizer.step()
            total += c.detach()
        return float(total)

    return run, parameters(model)


def in_batches(problem: Problem) -> Peer:
    """torch.nn and torch.optim.SGD, with batches by ``index_select``, since a DataLoader takes most of the time."""
    model = dp.to_torch(problem.model())
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    order = orders(problem)

    def run() -> float:
        total = torch.zeros(())
        for rows in next(order).split(problem.batch_size):
            c = getattr(nn.functional, problem.loss)(
                model(problem.x.index_select(0, rows)), problem.y.index_select(0, rows)
            )
            optimizer.zero_grad()
            c.backward()
            optimizer.step()
            total += c.detach()
        return float(total)

    return run, parameters(model)


def scikit_learn(problem: Problem) -> Peer:
    """Scikit-learn's MLP with plain SGD: each ``fit`` is one more epoch; the initial weights are its own."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    estimator = (MLPRegressor if problem.loss == "mse_loss" else MLPClassifier)(
        hidden_layer_sizes=problem.sizes[1:-1],
        activation={"sigmoid": "logistic"}.get(problem.activation, problem.activation),
        solver="sgd",
        alpha=0.0,
        batch_size=problem.batch_size,
        learning_rate_init=LR,
        momentum=0.0,
        max_iter=1,
        warm_start=True,
        n_iter_no_change=10**6,
        random_state=0,
    )
    x, y = problem.x.numpy(), problem.y.numpy()
    y = y.ravel() if y.ndim == 2 else y

    def run() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            estimator.fit(x, y)

    return run, lambda: []


def jax_scan(problem: Problem) -> Peer:
    """JAX: the epoch as one ``lax.scan`` over batches of row indices, with donated weights."""
    import jax
    import jax.numpy as jnp

    x, y = jnp.asarray(problem.x.numpy()), jnp.asarray(targets(problem.y))

    def body(params: list[Any], rows: Any) -> tuple[list[Any], Any]:
        return jax_step(params, x[rows], y[rows], problem.activation)

    def epoch(params: list[Any], order: Any) -> tuple[list[Any], Any]:
        params, losses = jax.lax.scan(body, params, order.reshape(-1, problem.batch_size))
        return params, losses.mean()

    compiled = jax.jit(epoch, donate_argnums=0)
    params = [jnp.array(p.numpy()) for p in problem.weights]
    order = orders(problem)

    def run() -> float:
        nonlocal params
        params, mean = compiled(params, jnp.asarray(next(order).numpy().astype(np.int32)))
        return float(mean)

    return run, lambda: [np.asarray(p) for p in params]


EPOCHS: dict[str, Callable[[Problem], Peer]] = {
    "compiled .epoch": compiled,
    "explicit .epoch": explicit,
    "explicit .epoch again (A/A)": explicit,
    "torch.nn with a DataLoader": data_loader,
    "torch.nn, batches by index_select": in_batches,
    "scikit-learn MLP": scikit_learn,
    "JAX lax.scan": jax_scan,
}
