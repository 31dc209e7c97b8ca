"""Made-up results with the shape of real ones."""

import random
from dataclasses import replace
from typing import Literal

from shufflectl.benchmarks.results import (
    Benchmark,
    Comparison,
    Config,
    Delegation,
    Flag,
    ModelFile,
    Round,
    RunnerInfo,
    Snapshot,
    Suite,
    Summary,
    Target,
    Warmup,
)

__all__ = ["benchmark", "hostile", "small", "suite"]

CONFIG = Config("cpu", 2, "0,1", "fp32", "absolute", 10, Warmup(), 100, 0.5, 1, 7)
RUNNER = RunnerInfo("onnxruntime", "1.31.1", "a" * 64, ("python", "worker.py", "--threads", "2"), True, True)
TARGET = Target(
    "local", os="Linux 6.1", cpu="Example CPU @ 2.8 GHz", cores=2, memory_bytes=8 << 30, virtual=True
)


def benchmark(
    name: str,
    median: float,
    *,
    rounds: int = 10,
    runs: int = 120,
    status: Literal["ok", "unstable", "failed"] = "ok",
    seed: int = 0,
) -> Benchmark:
    """Return a benchmark around a median in ns; with ``runs=0`` as of a runner that gives no samples."""
    rng = random.Random(f"{name} {seed}")
    found = []
    for index in range(rounds):
        level = median * rng.lognormvariate(0, 0.015)
        samples = tuple(
            int(level * rng.lognormvariate(0, 0.03) * (rng.uniform(1.5, 4) if rng.random() < 0.01 else 1))
            for _ in range(runs)
        )
        middle = float(sorted(samples)[len(samples) // 2]) if samples else level
        state = Snapshot(
            0.4 + rng.random(), "performance", {"0": 2_800_000}, {"0": 3_100_000}, {"package": 51.5}
        )
        found.append(
            Round(
                index,
                index,
                index,
                seed,
                valid := index != 3,
                "" if valid else "other processes took 35 % of the cores",
                30_000_000,
                int(level * 3),
                (int(level * 3), int(level)),
                True,
                samples,
                middle,
                {} if samples else {"p5": level * 0.97, "p95": level * 1.1, "min": level * 0.95},
                90_000_000,
                Delegation("xnnpack", 120, 124, 1),
                state,
                replace(state, stolen=0.01, others=0.05),
            )
        )
    counted = sorted(entry.median_ns or 0.0 for entry in found if entry.valid)
    flags = (
        (
            Flag("noisy machine", "other processes took 35 % of the cores", "stop them"),
            Flag("few samples", "runs are few", "measure longer"),
        )
        if status == "unstable"
        else ()
    )
    summary = None
    if status != "failed":
        summary = Summary(
            counted[len(counted) // 2],
            (counted[1], counted[-2]) if len(counted) > 5 else None,
            median * 1.06 if runs else None,
            None,
            0.015,
            3e7,
            median * 3,
            9e7,
            len(counted),
            runs * len(counted),
            flags,
        )
    reasons = () if status == "ok" else ("2 of 10 rounds do not count",)
    model = ModelFile(f"dist/{name}", "b" * 64, name.rpartition(".")[2], 5_400_000)
    kept = tuple(found) if status != "failed" else ()
    return Benchmark(name, status, reasons, model, TARGET, RUNNER, CONFIG, kept, summary)


def suite() -> Suite:
    """Return a result with each status, and comparisons of each verdict."""
    entries = (
        benchmark("shufflenet_v2_x1_0-native-fp32.onnx", 4.1e6),
        benchmark("shufflenet_v2_x1_0-fold-fp32.onnx", 3.4e6, status="unstable"),
        benchmark("shufflenet_v2_x1_0-rank4-fp32.onnx", 3.9e6, runs=0),
        benchmark("shufflenet_v2_x1_0-broken-fp32.onnx", 3.9e6, status="failed"),
    )
    base = entries[0].name
    rows = [
        (entries[1].name, 0.83, (0.815, 0.846), "pass", "at most 3 % slower"),
        (entries[2].name, 0.99, (0.94, 1.05), "inconclusive", "the interval reaches beyond 3 %"),
        (entries[3].name, 1.12, None, None, ""),
    ]
    comparisons = tuple(
        Comparison(
            base,
            name,
            "b" * 64,
            "c" * 64,
            "onnxruntime",
            2,
            "paired",
            ratio,
            interval,
            0.03 if verdict else None,
            verdict,  # type: ignore[arg-type]
            reason,
            10,
        )
        for name, ratio, interval, verdict, reason in rows
    )
    return Suite("2026-01-31T12:00:00Z", "shufflectl 0.1.0", entries, comparisons, 187.0, 0.06)


def small() -> Suite:
    """Return a result in which every field holds something, and few enough do to vary each."""
    entry = benchmark("a.tflite", 2e6, rounds=1, runs=3, status="unstable")
    assert entry.summary is not None
    state = Snapshot(0.5, "performance", {"0": 1}, {"0": 2}, {"SKIN": 31.5}, 0, 80.0, False, 0.01, 0.02, 0.03)
    rounds = (
        replace(entry.rounds[0], reported={"mean": 2.0}, before=state, after=Snapshot(), partner=1),
        Round(1, 0, 1, 8, False, "hot"),
    )
    summary = replace(entry.summary, interval_ns=(1.5e6, 2.5e6), flags=entry.summary.flags[:1])
    whole = suite()
    return replace(
        whole,
        benchmarks=(replace(entry, rounds=rounds, summary=summary),),
        comparisons=whole.comparisons[:1],
    )


def hostile() -> Suite:
    """Return a result in which every word is an attack, or far too long."""
    attack = "</title><script>alert(1)</script><img src=//attacker.invalid/x onerror=alert(1)>"
    attack += "\"'{{7*7}}\u202e\x1b[2J" + "W" * 300
    entry = benchmark(attack, 1e17, status="unstable", rounds=3)
    flag = Flag(attack[:100], attack, attack)
    assert entry.summary is not None
    entry = replace(
        entry,
        reasons=(attack,),
        model=replace(entry.model, path=attack, format=attack[:100]),
        target=replace(entry.target, cpu=attack[:200], model=attack[:200]),
        runner=replace(entry.runner, name=attack[:200], argv=(attack,)),
        config=replace(entry.config, affinity=attack, precision=attack[:100], accelerator=attack[:100]),
        summary=replace(entry.summary, flags=(flag,)),
        rounds=tuple(replace(r, valid=False, reason=attack) for r in entry.rounds),
    )
    comparison = Comparison(
        attack, attack, "", "", attack[:200], 1, "unpaired", 0.0, (0.0, 1e18), 1e18, "fail", attack, 0
    )
    return Suite(attack[:20], attack[:100], (entry, replace(entry, rounds=(), summary=None)), (comparison,))
