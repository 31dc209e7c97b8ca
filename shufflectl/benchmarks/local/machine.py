"""This machine: what it is, and what it is doing."""

import contextlib
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shufflectl.benchmarks.options import parse_cores
from shufflectl.benchmarks.results import Snapshot, Target
from shufflectl.errors import UsageError

__all__ = ["affinity", "noise", "pinned", "processor_time", "snapshot", "target"]

_CPUS: Final = Path("/sys/devices/system/cpu")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def target() -> Target:
    """Return what this machine is. Its name and address are nobody's business."""
    memory = None
    with contextlib.suppress(ValueError, OSError, AttributeError):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    flags = _field(_read(Path("/proc/cpuinfo")), "flags").split()
    return Target(
        "local",
        abi=platform.machine(),
        os=f"{platform.system()} {platform.release()}",
        cpu=_field(_read(Path("/proc/cpuinfo")), "model name") or platform.processor(),
        cores=os.cpu_count(),
        memory_bytes=memory,
        virtual="hypervisor" in flags if flags else None,
    )


def _field(text: str, name: str) -> str:
    lines = (line.partition(":") for line in text.splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() == name), "")


def snapshot(*, noise: dict[str, float] | None = None) -> Snapshot:
    """Return what this machine is doing.

    Args:
        noise: What a worker saw of other programs: stolen, others, waited.
    """
    load = None
    with contextlib.suppress(OSError, AttributeError):
        load = os.getloadavg()[0]
    clocks = {key: _clocks(f"cpufreq/scaling_{key}_freq") for key in ("cur", "max")}
    shares = noise or {}
    return Snapshot(
        load_1m=load,
        governor=_read(_CPUS / "cpu0/cpufreq/scaling_governor"),
        frequencies_khz=clocks["cur"],
        limits_khz=clocks["max"],
        stolen=shares.get("stolen"),
        others=shares.get("others"),
        waited=shares.get("waited"),
    )


def _clocks(name: str) -> dict[str, int]:
    found = {}
    for folder in sorted(_CPUS.glob("cpu[0-9]*")):
        with contextlib.suppress(ValueError):
            found[folder.name.removeprefix("cpu")] = int(_read(folder / name) or "none")
    return found


def affinity(text: str) -> tuple[int, ...]:
    """Return the cores that a user names, as in ``0,1``; none for an empty text.

    Raises:
        UsageError: It names no cores, or some that this process may not use, or this system cannot pin.
    """
    cores = parse_cores(text)
    if not cores:
        return ()
    if not hasattr(os, "sched_setaffinity"):
        raise UsageError(
            f"{platform.system()} cannot pin a process to cores", hint="leave --affinity out on this machine"
        )
    allowed = os.sched_getaffinity(0)
    missing = sorted(set(cores) - allowed)
    if missing:
        raise UsageError(
            f"this process may not use core {missing[0]}",
            hint="choose from: " + ", ".join(map(str, sorted(allowed))),
        )
    return cores


@contextlib.contextmanager
def pinned(cores: Sequence[int]) -> Iterator[None]:
    """Pin this thread, and what it starts meanwhile, to cores; where none is named, do nothing."""
    if not cores:
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


@dataclass(frozen=True)
class ProcessorTime:
    """CPU time so far, in seconds.

    Attributes:
        total: Of all cores, idle ones included.
        busy: What programs took of it.
        stolen: What a hypervisor gave to others.
        children: What programs took that this process started, and that have ended.
    """

    total: float
    busy: float
    stolen: float
    children: float


def processor_time() -> ProcessorTime | None:
    """Return the CPU time so far; None where the system does not tell."""
    try:
        with Path("/proc/stat").open(encoding="ascii") as stream:
            ticks = [int(word) / os.sysconf("SC_CLK_TCK") for word in stream.readline().split()[1:9]]
        user, nice, system, _idle, _iowait, irq, softirq, stolen = ticks
    except (OSError, ValueError):
        return None
    used = os.times()
    busy = user + nice + system + irq + softirq
    return ProcessorTime(sum(ticks), busy, stolen, used.children_user + used.children_system)


def noise(begin: ProcessorTime | None, end: ProcessorTime | None) -> dict[str, float]:
    """Return what others than this process's children took of the CPU between two moments, as shares."""
    if begin is None or end is None or end.total <= begin.total:
        return {}
    total, children = end.total - begin.total, end.children - begin.children
    return {
        "stolen": min(1.0, max(0.0, (end.stolen - begin.stolen) / total)),
        "others": min(1.0, max(0.0, (end.busy - begin.busy - children) / total)),
    }
