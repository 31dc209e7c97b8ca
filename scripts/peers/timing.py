"""What every runtime's program of the latency comparison shares: the request, the timed loop, the reply.

A program loads all files of its request, in random order, and runs them in turns, in random order within each
turn. Before each timed run of a file come untimed ones of the same file (``settle``): they bring its weights
back into the caches, and give the other files' worker threads time to go to sleep, so that what is timed is a
file's steady state and not the company it keeps.

Usage of every program: run_RUNTIME.py REQUEST.json REPLY.json
"""

import gc
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Session(NamedTuple):
    """A file that is open in a runtime.

    Attributes:
        run: Runs it once; this is what is timed.
        logits: Returns the last run's result.
        feed: Sets the input, untimed, before every run.
    """

    run: Callable[[], object]
    logits: Callable[[], NDArray[Any]]
    feed: Callable[[], object]


class Runtime(NamedTuple):
    """A runtime's side of the comparison.

    Attributes:
        open: Opens a file with a number of threads, for an image [1, 3, H, W].
        settings: How the runtime is set up, in words.
    """

    open: Callable[[Path, NDArray[np.float32], int], Session]
    settings: str


def main(runtime: Runtime) -> None:
    """Do what the request says."""
    request, reply = Path(sys.argv[1]), Path(sys.argv[2])
    wanted = json.loads(request.read_text(encoding="utf-8"))
    image = np.load(wanted["reference"])["image"]
    order = random.Random(wanted["seed"])  # noqa: S311 - the order of runs is no secret
    files: dict[str, str] = wanted["files"]
    sessions = {
        label: runtime.open(Path(files[label]), image, wanted["threads"])
        for label in order.sample(list(files), len(files))
    }
    before = {label: _logits(session) for label, session in sessions.items()}
    samples = measure(sessions, order, wanted["warmup"], wanted["iterations"], wanted["settle"])
    after = {label: _logits(session) for label, session in sessions.items()}
    differing = [label for label in files if not np.array_equal(before[label], after[label])]
    if differing:
        raise SystemExit(f"after {wanted['iterations']} runs the result is another one: {differing}")
    logits = {label: array.astype(float).tolist() for label, array in before.items()}
    document = {"settings": runtime.settings, "samples_ns": samples, "logits": logits}
    reply.write_text(json.dumps(document), encoding="utf-8")


def measure(
    sessions: dict[str, Session], order: random.Random, warmup: int, iterations: int, settle: int
) -> dict[str, list[int]]:
    """Return the nanoseconds of each file's timed runs."""
    samples: dict[str, list[int]] = {label: [] for label in sessions}
    labels = list(sessions)
    gc.collect()
    gc.disable()
    for turn in range(warmup + iterations):
        for label in order.sample(labels, len(labels)):
            session = sessions[label]
            for _ in range(settle):
                session.feed()
                session.run()
            session.feed()
            begun = time.perf_counter_ns()
            session.run()
            taken = time.perf_counter_ns() - begun
            if turn >= warmup:
                samples[label].append(taken)
    return samples


def _logits(session: Session) -> NDArray[Any]:
    session.feed()
    session.run()
    return np.array(session.logits()).ravel()


def nothing() -> None:
    """Feed a runtime that keeps its input."""
