"""Measures the rows of one table, in a process that is pinned to as many cores as threads before any import.

JAX uses every available core despite its flags, so the process gets only the cores that it should use.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import os
import sys
import time
from typing import Any


def main() -> None:
    """Print one line of JSON: the requested measurement of each peer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("measure", choices=["steps", "epochs", "memory"])
    parser.add_argument("--sizes", required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--rows", type=int, help="number of rows; by default some batches, fewer if they are large")
    parser.add_argument("--activation", default="relu")
    parser.add_argument("--peers", nargs="*")
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[-arguments.threads :]
    os.sched_setaffinity(0, cores)
    os.environ.update(OMP_NUM_THREADS=str(len(cores)), OPENBLAS_NUM_THREADS=str(len(cores)), JAX_PLATFORMS="cpu")

    import torch

    from benchmarks.problem import make_problem

    torch.set_num_threads(len(cores))
    sizes = tuple(map(int, arguments.sizes.split("-")))
    work = arguments.batch_size * sum(n_in * n_out for n_in, n_out in itertools.pairwise(sizes))
    # Enough batches that the work done once per epoch is negligible, as in real training.
    batches = arguments.rows // arguments.batch_size if arguments.rows else int(min(200, max(10, 2e9 // work)))
    problem = make_problem(sizes, arguments.batch_size, batches, arguments.activation)
    measure = {"steps": time_steps, "epochs": time_epochs, "memory": measure_memory}[arguments.measure]
    print(json.dumps(measure(problem, batches, arguments)))


def time_steps(problem: Any, batches: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the time per step of each peer in µs."""
    from benchmarks.peers import PEERS

    result = _time(PEERS, problem, arguments, seconds=0.03)
    result["figures"] = {name: [1e6 * q / batches for q in figures] for name, figures in result["figures"].items()}
    return result


def time_epochs(problem: Any, batches: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the time per epoch of each peer in s."""
    from benchmarks.epochs import EPOCHS

    return _time(EPOCHS, problem, arguments, seconds=0.0)


def measure_memory(problem: Any, batches: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the peak memory of one peer in MiB, beyond the data and the initial weights.

    Libraries are loaded and warmed up before the measurement, by a small problem and by the products of this one, for
    which PyTorch's BLAS always keeps some MB.
    """
    from benchmarks.peers import PEERS
    from benchmarks.problem import make_problem

    (name,) = arguments.peers
    try:
        small, _ = PEERS[name](make_problem((32, 32, problem.sizes[-1]), 8, 4))
    except ImportError as error:
        return {"figures": {}, "absent": {name: str(error)}}
    for _ in range(3):
        small()
    products, _ = PEERS["the products alone"](problem)
    products()
    del products
    ctypes.CDLL(None).malloc_trim(0)  # return freed memory to the system; otherwise its reuse would not be counted
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # reset the peak to the current size
    before = _status("VmRSS")
    run, _ = PEERS[name](problem)
    for _ in range(3):
        run()
    return {"figures": {name: (_status("VmHWM") - before) / 1024}, "absent": {}}


def _status(key: str) -> int:
    """Return a size of this process in KiB."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(f"{key}:"))


def _time(peers: Any, problem: Any, arguments: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Return the quartiles and the first call of each peer in seconds, peers with other weights, and missing peers."""
    import numpy as np

    from benchmarks.timing import interleave, quartiles
    from deltaprop import UserError

    wanted = [name for name in peers if not arguments.peers or any(name.startswith(p) for p in arguments.peers)]
    runs, reference, void, first, absent = {}, None, [], {}, {}
    for name in wanted:
        try:
            run, weights = peers[name](problem)
        except (ImportError, UserError) as error:
            absent[name] = str(error)
            continue
        start = time.perf_counter()
        run()
        first[name] = time.perf_counter() - start
        after = [np.array(weight) for weight in weights()]
        if after:
            reference = after if reference is None else reference
            ours, theirs, start = (
                np.concatenate([np.ravel(w) for w in ws]) for ws in (reference, after, problem.weights)
            )
            # Rounding after a pass is far below; a unit of relu that it switches is not, in the entry that it reaches.
            if np.linalg.norm(ours - theirs) > 1e-2 * np.linalg.norm(ours - start):
                void.append(name)
        runs[name] = run
    figures = interleave(runs, arguments.rounds, seconds)
    return {
        "figures": {name: quartiles(figures[name]) for name in runs},
        "rounds": arguments.rounds,
        "void": void,
        "first": first,
        "absent": absent,
    }


if __name__ == "__main__":
    sys.exit(main())
