"""The peers. Each makes one pass over the batches, one step per batch, and computes the loss of every step.

A peer is a function of a problem that returns ``(run, weights)``: ``run()`` makes the pass, ``weights()`` returns the
current W^1, b^1, …. If the weights of a peer differ from deltaprop's, its row is void.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import deltaprop as dp
from benchmarks.problem import LR, Problem
from deltaprop import functional as F
from deltaprop.errors import UserError

Peer = tuple[Callable[[], object], Callable[[], list[Any]]]


def parameters(model: nn.Module) -> Callable[[], list[Any]]:
    """Return a function that returns the current W^1, b^1, … of a model."""
    return lambda: [p.detach().numpy() for p in model.parameters()]


def explicit_epoch(problem: Problem) -> Peer:
    """``ExplicitTrainer.epoch`` without shuffling, since the batches of the other peers are prepared too."""
    model = problem.model()
    trainer = dp.ExplicitTrainer(model, problem.loss, dp.SGD(model.parameters(), lr=LR))
    return lambda: trainer.epoch(problem.x, problem.y, problem.batch_size), parameters(model)


def compiled_epoch(problem: Problem) -> Peer:
    """``CompiledTrainer.epoch``, without shuffling; building its library, which is kept, is not counted.

    Raises:
        UserError: If there is no C++ compiler.
    """
    model = problem.model()
    trainer = dp.CompiledTrainer(model, problem.loss, dp.SGD(model.parameters(), lr=LR))
    return lambda: trainer.epoch(problem.x, problem.y, problem.batch_size), parameters(model)


def explicit_step(problem: Problem) -> Peer:
    """``ExplicitTrainer.step``, called once per batch."""
    model = problem.model()
    trainer = dp.ExplicitTrainer(model, problem.loss, dp.SGD(model.parameters(), lr=LR))
    batches = problem.batches

    def run() -> None:
        for x, y in batches:
            trainer.step(x, y)

    return run, parameters(model)


def _with_autograd(
    problem: Problem, model: nn.Module, loss: Callable[..., Tensor], optimizer: torch.optim.Optimizer
) -> Peer:
    batches = problem.batches

    def run() -> None:
        for x, y in batches:
            c = loss(model(x), y)
            optimizer.zero_grad()
            c.backward()
            optimizer.step()

    return run, parameters(model)


def autograd(problem: Problem) -> Peer:
    """Deltaprop's modules and SGD with autograd."""
    model = problem.model()
    return _with_autograd(problem, model, getattr(F, problem.loss), dp.SGD(model.parameters(), lr=LR))


def torch_nn(problem: Problem, **kind: bool) -> Peer:
    """torch.nn and torch.optim.SGD."""
    model = dp.to_torch(problem.model())
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, **kind)
    return _with_autograd(problem, model, getattr(nn.functional, problem.loss), optimizer)


def torch_compile(problem: Problem) -> Peer:
    """torch.nn with compiled model, loss and optimizer; the compilation time is not counted."""
    torch._logging.set_logs(all=logging.ERROR)  # it warns that the optimizer's profiler entry is omitted
    model = dp.to_torch(problem.model())
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    forward = torch.compile(lambda x, y: getattr(nn.functional, problem.loss)(model(x), y))
    update = torch.compile(lambda: optimizer.step())
    batches = problem.batches

    def run() -> None:
        for x, y in batches:
            c = forward(x, y)
            optimizer.zero_grad()
            c.backward()
            update()

    return run, parameters(model)


def in_numpy(problem: Problem) -> Peer:
    """Well-written NumPy: float32 throughout, in-place operations where they help, log-sum-exp.

    Raises:
        UserError: If NumPy has no function for the activation.
    """
    if problem.activation not in ("relu", "sigmoid"):
        raise UserError(f"NumPy has no {problem.activation}")
    relu = problem.activation == "relu"
    params = [p.numpy().copy() for p in problem.weights]
    weights, biases = params[::2], params[1::2]
    batches = [(x.numpy(), y.numpy()) for x, y in problem.batches]
    rows, n, lr = np.arange(problem.batch_size), np.float32(problem.batch_size), np.float32(LR)

    def run() -> None:
        for x, y in batches:
            a = [x]
            for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
                z = a[-1] @ weight.T
                z += bias
                if relu:
                    a.append(np.maximum(z, 0, out=z))
                else:
                    np.negative(z, out=z)
                    np.exp(z, out=z)
                    z += 1
                    a.append(np.reciprocal(z, out=z))
            z = a[-1] @ weights[-1].T
            z += biases[-1]
            if problem.loss == "mse_loss":
                delta = z - y
                np.square(delta).mean()
                delta *= 2 / n
            else:
                z -= z.max(axis=1, keepdims=True)
                delta = np.exp(z)
                total = delta.sum(axis=1, keepdims=True)
                (np.log(total[:, 0]) - z[rows, y]).mean()
                delta /= total
                delta[rows, y] -= 1
                delta /= n
            for layer in reversed(range(len(weights))):
                grad_weight, grad_bias = delta.T @ a[layer], delta.sum(axis=0)
                if layer:
                    below = delta @ weights[layer]
                    if relu:
                        below *= a[layer] > 0
                    else:
                        below *= a[layer]
                        below *= 1 - a[layer]
                    delta = below
                grad_weight *= lr
                weights[layer] -= grad_weight
                biases[layer] -= lr * grad_bias

    return run, lambda: params


def jax_step(params: list[Any], x: Any, y: Any, activation: str) -> tuple[list[Any], Any]:
    """Take one step in JAX; return the updated parameters and C."""
    import jax
    import jax.numpy as jnp

    sigma = {"relu": jax.nn.relu, "sigmoid": jax.nn.sigmoid, "gelu": partial(jax.nn.gelu, approximate=False)}[
        activation
    ]

    def loss(params: list[Any]) -> Any:
        a = x
        for layer in range(0, len(params), 2):
            z = a @ params[layer].T + params[layer + 1]
            a = sigma(z)
        if z.shape[1] == 1:
            return jnp.square(z - y).mean()
        return -jnp.take_along_axis(jax.nn.log_softmax(z), y[:, None], axis=1).mean()

    c, grads = jax.value_and_grad(loss)(params)
    return [p - LR * g for p, g in zip(params, grads, strict=True)], c


def jax_jit(problem: Problem) -> Peer:
    """JAX: the whole step compiled, with donated weights."""
    import jax
    import jax.numpy as jnp

    compiled = jax.jit(partial(jax_step, activation=problem.activation), donate_argnums=0)
    batches = [(jnp.asarray(x.numpy()), jnp.asarray(targets(y))) for x, y in problem.batches]
    params = [jnp.array(p.numpy()) for p in problem.weights]

    def run() -> None:
        nonlocal params
        for x, y in batches:
            params, c = compiled(params, x, y)
        jax.block_until_ready((params, c))

    return run, lambda: [np.asarray(p) for p in params]


def jax_scan(problem: Problem) -> Peer:
    """JAX: all steps as one ``lax.scan`` over the batches, with donated weights."""
    import jax
    import jax.numpy as jnp

    def body(params: list[Any], batch: Any) -> tuple[list[Any], Any]:
        return jax_step(params, *batch, activation=problem.activation)

    compiled = jax.jit(lambda params, batches: jax.lax.scan(body, params, batches), donate_argnums=0)
    batches = (
        jnp.asarray(problem.x.numpy().reshape(-1, problem.batch_size, problem.sizes[0])),
        jnp.asarray(targets(problem.y).reshape(-1, problem.batch_size, *problem.y.shape[1:])),
    )
    params = [jnp.array(p.numpy()) for p in problem.weights]

    def run() -> None:
        nonlocal params
        params, losses = compiled(params, batches)
        jax.block_until_ready((params, losses))

    return run, lambda: [np.asarray(p) for p in params]


def targets(y: Tensor) -> Any:
    """Return targets as NumPy's, labels in 32 bits, as JAX has them."""
    return y.numpy() if y.is_floating_point() else y.numpy().astype(np.int32)


def products(problem: Problem) -> Peer:
    """Only the 3L − 1 matrix products, into preallocated buffers: a lower bound for a step."""
    layers = list(pairwise(problem.sizes))
    n = problem.batch_size
    a = [torch.rand(n, size) for size in problem.sizes]
    z = [torch.empty(n, size) for size in problem.sizes]
    delta = [1e-9 * torch.rand(n, size) for size in problem.sizes]
    below = [torch.empty(n, size) for size in problem.sizes]
    weights = [torch.rand(n_out, n_in) for n_in, n_out in layers]
    weights_t, delta_t = [w.t() for w in weights], [d.t() for d in delta]

    @torch.inference_mode()
    def run() -> None:
        for _ in problem.batches:
            for layer in range(len(layers)):
                torch.mm(a[layer], weights_t[layer], out=z[layer + 1])
            for layer in reversed(range(len(layers))):
                if layer:
                    torch.mm(delta[layer + 1], weights[layer], out=below[layer])
                weights[layer].addmm_(delta_t[layer + 1], a[layer], alpha=-LR)

    return run, lambda: []


def explicit_bf16(problem: Problem) -> Peer:
    """``ExplicitTrainer.epoch`` with bf16 products; its weights differ from the others by rounding.

    Raises:
        UserError: If the device does not support bf16.
    """
    model = problem.model()
    trainer = dp.ExplicitTrainer(model, problem.loss, dp.SGD(model.parameters(), lr=LR), precision="bf16")
    return lambda: trainer.epoch(problem.x, problem.y, problem.batch_size), lambda: []


PEERS: dict[str, Callable[[Problem], Peer]] = {
    "compiled .epoch": compiled_epoch,
    "explicit .epoch": explicit_epoch,
    "explicit .epoch again (A/A)": explicit_epoch,
    "explicit .step": explicit_step,
    "explicit .epoch, bf16": explicit_bf16,
    "autograd": autograd,
    "torch.nn, SGD loop": lambda problem: torch_nn(problem, foreach=False),
    "torch.nn, SGD foreach": lambda problem: torch_nn(problem, foreach=True),
    "torch.nn, SGD fused": lambda problem: torch_nn(problem, fused=True),
    "torch.compile": torch_compile,
    "NumPy": in_numpy,
    "JAX jit": jax_jit,
    "JAX lax.scan": jax_scan,
    "the products alone": products,
}
