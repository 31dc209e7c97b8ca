"""Under which conditions benchmarks were measured, as words beside words; equal ones are said once."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from shufflectl.benchmarks.results import Benchmark, Snapshot

__all__ = ["Conditions", "conditions"]


@dataclass(frozen=True)
class Conditions:
    """The conditions of some benchmarks.

    Attributes:
        names: Of the benchmarks.
        groups: By heading, pairs of what and how. What is not known is left out.
    """

    names: tuple[str, ...]
    groups: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]


def conditions(benchmarks: Sequence[Benchmark]) -> tuple[Conditions, ...]:
    """Return the conditions, one entry for each distinct device, runner and configuration."""
    found: dict[str, list[Benchmark]] = {}
    for benchmark in benchmarks:
        # The file's own precision may differ, and so may what a paired run was paired with.
        shared = (benchmark.target, benchmark.runner, replace(benchmark.config, precision=""))
        found.setdefault(repr(shared), []).append(benchmark)
    return tuple(_of(members) for members in found.values())


def _of(members: Sequence[Benchmark]) -> Conditions:
    first = members[0]
    groups = (
        ("Device", _device(first)),
        ("Runner", _runner(first)),
        ("Protocol", _protocol(first, members)),
        ("State of the machine", _state(members)),
    )
    filled = tuple((name, tuple((what, how) for what, how in rows if how)) for name, rows in groups)
    return Conditions(
        tuple(member.name for member in members), tuple((name, rows) for name, rows in filled if rows)
    )


def _device(benchmark: Benchmark) -> list[tuple[str, str]]:
    target = benchmark.target
    memory = "" if target.memory_bytes is None else f"{target.memory_bytes / 2**30:.1f} GiB"
    virtual = {True: "yes: other machines may share its cores", False: "no", None: ""}[target.virtual]
    return [
        ("kind", {"local": "this machine", "android": "Android over adb"}[target.kind]),
        ("model", target.model),
        ("system on chip", target.soc),
        ("processor", target.cpu),
        ("cores", _text(target.cores)),
        ("memory", memory),
        ("system", target.os),
        ("Android API level", _text(target.sdk)),
        ("ABI", target.abi),
        ("build", target.fingerprint),
        ("serial number, hashed", target.serial_hash),
        ("virtual machine", virtual),
    ]


def _runner(benchmark: Benchmark) -> list[tuple[str, str]]:
    runner = benchmark.runner
    return [
        ("name", runner.name),
        ("version", runner.version),
        ("SHA-256", runner.sha256),
        ("command line", " ".join(runner.argv)),
        ("gives every run", "yes" if runner.provides_samples else "no: its own figures only"),
    ]


def _protocol(benchmark: Benchmark, members: Sequence[Benchmark]) -> list[tuple[str, str]]:
    config = benchmark.config
    warmup = config.warmup
    mode = {"absolute": "one artifact a process", "paired": "two artifacts a process, in turns"}[config.mode]
    return [
        ("accelerator", config.accelerator),
        ("threads", _text(config.threads) or "chosen by the runtime"),
        ("pinned to cores", config.affinity or "no"),
        ("precision", ", ".join(dict.fromkeys(member.config.precision for member in members))),
        ("mode", mode),
        ("processes asked for", str(config.rounds)),
        ("runs in a process", f"at least {config.min_iterations}, for at least {config.min_seconds:g} s"),
        ("untimed runs before each", str(config.settle) if config.settle else ""),
        (
            "warm-up",
            (
                f"at least {warmup.min_iterations} runs and {warmup.min_seconds:g} s, until {warmup.window} "
                f"runs agree within {warmup.tolerance:.0%}, at most {warmup.max_seconds:g} s"
            ),
        ),
        ("seed", str(config.seed)),
    ]


def _state(members: Sequence[Benchmark]) -> list[tuple[str, str]]:
    rounds = [entry for member in members for entry in member.rounds]
    states = [state for entry in rounds for state in (entry.before, entry.after) if state is not None]
    delegations = {
        f"{d.accelerator}: {_text(d.replaced) or '?'} of {_text(d.total) or '?'} operators"
        f" in {_text(d.partitions) or '?'} partitions"
        for d in (entry.delegation for entry in rounds)
        if d is not None
    }
    hottest: dict[str, float] = {}
    for state in states:
        for sensor, degrees in state.temperatures.items():
            hottest[sensor] = max(hottest.get(sensor, degrees), degrees)
    powered = {state.powered for state in states if state.powered is not None}
    return [
        ("delegation", "; ".join(sorted(delegations))),
        ("load average, one minute", _range(states, lambda s: s.load_1m, "{:.2f}")),
        ("governor", ", ".join(sorted({state.governor for state in states if state.governor}))),
        ("clocks", _clocks([khz for state in states for khz in state.frequencies_khz.values()])),
        ("clocks allowed", _clocks([khz for state in states for khz in state.limits_khz.values()])),
        ("time given to other machines", _range(states, lambda s: s.stolen, "{:.1%}")),
        ("time that other processes took", _range(states, lambda s: s.others, "{:.1%}")),
        ("time without a core", _range(states, lambda s: s.waited, "{:.1%}")),
        ("highest temperatures", ", ".join(f"{k} {v:.1f} °C" for k, v in sorted(hottest.items())[:20])),
        ("thermal status", _range(states, lambda s: s.thermal_status, "{:.0f}")),
        ("battery", _range(states, lambda s: s.battery_percent, "{:.0f} %")),
        ("charging", {frozenset({True}): "yes", frozenset({False}): "no"}.get(frozenset(powered), "")),
    ]


def _range(states: Iterable[Snapshot], read: Callable[[Snapshot], float | None], form: str) -> str:
    values = [value for state in states if (value := read(state)) is not None]
    return _ends([form.format(min(values)), form.format(max(values))]) if values else ""


def _clocks(khz: Sequence[int]) -> str:
    return _ends([f"{value / 1e6:.2f} GHz" for value in (min(khz), max(khz))]) if khz else ""


def _ends(texts: Sequence[str]) -> str:
    return " to ".join(dict.fromkeys(texts))


def _text(value: int | None) -> str:
    return "" if value is None else str(value)
