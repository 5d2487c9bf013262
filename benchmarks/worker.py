"""One table's row set in a process of its own: pinned to as many cores as it has threads, before anything is imported.

JAX takes every core that it may run on, whatever its flags say; so the process is given no more than it should take.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time


def main() -> None:
    """Print one line of JSON: µs a step of each peer as quartiles, and which peers part from us."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--peers", nargs="*")
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[-arguments.threads :]
    os.sched_setaffinity(0, cores)
    os.environ.update(OMP_NUM_THREADS=str(len(cores)), OPENBLAS_NUM_THREADS=str(len(cores)), JAX_PLATFORMS="cpu")

    import numpy as np
    import torch

    from benchmarks.peers import PEERS
    from benchmarks.problem import make_problem
    from benchmarks.timing import interleave, quartiles

    torch.set_num_threads(len(cores))
    sizes = tuple(map(int, arguments.sizes.split("-")))
    work = arguments.batch_size * sum(n_in * n_out for n_in, n_out in itertools.pairwise(sizes))
    batches = int(min(200, max(4, 2e8 // work)))
    problem = make_problem(sizes, arguments.batch_size, batches)
    names = [name for name in PEERS if not arguments.peers or any(name.startswith(p) for p in arguments.peers)]
    runs, reference, void, first = {}, None, [], {}
    for name in names:
        try:
            run, weights = PEERS[name](problem)
            start = time.perf_counter()
            run()
            first[name] = time.perf_counter() - start
        except ImportError as error:
            print(f"{name}: {error}", file=sys.stderr)
            continue
        after = weights()
        if after:
            reference = after if reference is None else reference
            parted = max(
                float(np.abs(ours - theirs).max() / np.abs(ours).max())
                for ours, theirs in zip(reference, after, strict=True)
            )
            if parted > 1e-3:  # float32, after a pass: rounding stays far below
                void.append(name)
        runs[name] = run
    figures = interleave(runs, arguments.rounds, seconds=0.03)
    steps = {name: [1e6 * q / batches for q in quartiles(figures[name])] for name in runs}
    print(json.dumps({"steps": steps, "void": void, "first": first, "batches": batches}))


if __name__ == "__main__":
    main()
