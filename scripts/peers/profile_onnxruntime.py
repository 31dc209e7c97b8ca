"""Where ONNX Runtime spends its time in a file, by kind of operator, one thread.

Usage: profile_onnxruntime.py FILE.onnx REFERENCE.npz

Prints JSON: for each kind the number of operators in the optimised graph, and microseconds in one inference
(each operator's median over the runs). The profiler itself takes time, so the sum is more than a run without.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime as ort
from run_onnxruntime import options

WARMUP, RUNS = 20, 100


def main(path: str, reference: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        chosen = options(1)
        chosen.enable_profiling = True
        chosen.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(path, chosen, providers=["CPUExecutionProvider"])
        feed = {session.get_inputs()[0].name: np.load(reference)["image"]}
        for _ in range(WARMUP + RUNS):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    nodes: dict[tuple[str, str], list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            nodes.setdefault((event["args"]["op_name"], event["name"]), []).append(event["dur"])
    kinds: dict[str, tuple[int, float]] = {}
    for (kind, _), spent in nodes.items():
        count, total = kinds.get(kind, (0, 0.0))
        kinds[kind] = (count + 1, total + float(np.median(spent[WARMUP:])))
    print(json.dumps(kinds))


if __name__ == "__main__":
    main(*sys.argv[1:])
