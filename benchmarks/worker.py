"""One table's rows in a process of its own: pinned to as many cores as it has threads, before anything is imported.

JAX takes every core that it may run on, whatever its flags say; so the process is given no more than it should take.
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
    """Print one line of JSON: what is asked for, of each peer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("measure", choices=["steps", "epochs", "memory"])
    parser.add_argument("--sizes", required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--rows", type=int, help="of the data; by default some batches, fewer of the large ones")
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
    # As many that what is done once an epoch counts for little, as in any real one.
    batches = arguments.rows // arguments.batch_size if arguments.rows else int(min(200, max(10, 2e9 // work)))
    problem = make_problem(sizes, arguments.batch_size, batches, arguments.activation)
    measure = {"steps": time_steps, "epochs": time_epochs, "memory": measure_memory}[arguments.measure]
    print(json.dumps(measure(problem, batches, arguments)))


def time_steps(problem: Any, batches: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return µs a step of each peer."""
    from benchmarks.peers import PEERS

    result = _time(PEERS, problem, arguments, seconds=0.03)
    result["figures"] = {name: [1e6 * q / batches for q in figures] for name, figures in result["figures"].items()}
    return result


def time_epochs(problem: Any, batches: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return seconds an epoch of each peer."""
    from benchmarks.epochs import EPOCHS

    return _time(EPOCHS, problem, arguments, seconds=0.0)


def measure_memory(problem: Any, batches: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return MB of the one peer that is asked for: at the peak, beyond the data and the weights it starts from.

    Libraries are loaded and warmed up before the count begins: by a small problem, and by the products of this one, for
    which PyTorch's BLAS keeps some MB of its own, whoever asks for them.
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
    ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back: it would not count when it is taken again
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak begins anew from what there is now
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
    """Return each peer's quartiles and first call in seconds, who parts from us, and who is not here."""
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
            parted = max(
                float(np.abs(ours - theirs).max() / np.abs(ours).max())
                for ours, theirs in zip(reference, after, strict=True)
            )
            if parted > 1e-3:  # float32, after a pass: rounding stays far below
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
