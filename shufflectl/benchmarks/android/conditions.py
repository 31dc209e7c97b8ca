"""When a phone's figures count: not hot, not capped, and cooled down between rounds.

A phone slows down before its thermal status says so, and some never say so. What a round needs is therefore
three things: status none, no clock held below its usual limit, and sensors that have cooled down since.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from shufflectl.benchmarks.results import Snapshot
from shufflectl.deploy.devices import Core, DeviceState

__all__ = ["Cooling", "snapshot", "spoiled", "too_warm", "usual_limits"]

# Phones cap their clocks when the skin nears 40 °C; CPU sensors fall below 60 within seconds of idling.
_LIMITS: Final = MappingProxyType(
    {"skin": 38.0, "battery": 38.0, "cpu": 60.0, "gpu": 60.0, "npu": 60.0, "soc": 60.0}
)


@dataclass(frozen=True)
class Cooling:
    """When a phone counts as cool, and how long that is waited for.

    Attributes:
        limits: In °C, by kind of sensor.
        seconds: The longest wait before a round.
        poll: Seconds between two looks; the first ones follow sooner.
    """

    limits: Mapping[str, float] = field(default_factory=lambda: _LIMITS)
    seconds: float = 300.0
    poll: float = 2.0


def spoiled(state: DeviceState, usual: Mapping[int, int], cores: Iterable[int] = ()) -> str:
    """Return why a round at such a moment must not count; empty where it may.

    Args:
        state: The phone.
        usual: The highest clock that each core is usually allowed, in kHz.
        cores: The cores that are measured on; none for all.
    """
    thermal = state.thermal
    if thermal.overridden:
        return "the thermal status is fixed by hand"
    if thermal.status:
        return f"the phone is hot (thermal status {thermal.word})"
    if state.saving:
        return "battery saver is on"
    wanted = set(cores)
    for core in state.cores:
        limit = usual.get(core.index)
        if (
            limit
            and core.cap_khz is not None
            and core.cap_khz < limit
            and core.index in (wanted or {core.index})
        ):
            return f"core {core.index} is capped to {core.cap_khz / 1000:.0f} MHz of {limit / 1000:.0f} MHz"
    return ""


def too_warm(state: DeviceState, cooling: Cooling) -> str:
    """Return which sensor is still too warm to begin; empty where none is, or none is known."""
    sensors = [(t.name, t.kind, t.celsius) for t in state.thermal.temperatures]
    kinds = {kind for _, kind, _ in sensors}
    if "skin" not in kinds and "battery" not in kinds and state.battery.celsius is not None:
        sensors.append(("battery", "battery", state.battery.celsius))
    for name, kind, celsius in sensors:
        limit = cooling.limits.get(kind)
        if limit is not None and celsius > limit:
            return f"{name} is at {celsius:.1f} °C, the limit is {limit:.0f} °C"
    return ""


def usual_limits(cores: Iterable[Core], *, fixed: bool) -> dict[int, int]:
    """Return the highest clock that each core is usually allowed, in kHz.

    Args:
        cores: The cores.
        fixed: Whether the limits are those that fixed-performance mode has just set.
    """
    limits = {core.index: core.cap_khz if fixed else core.max_khz for core in cores}
    return {index: khz for index, khz in limits.items() if khz}


def snapshot(state: DeviceState) -> Snapshot:
    """Return a phone's state as results carry it."""
    governors = {core.governor for core in state.cores if core.governor}
    level = state.battery.level
    temperatures = {item.name: item.celsius for item in state.thermal.temperatures}
    if state.battery.celsius is not None:
        temperatures.setdefault("battery", state.battery.celsius)
    return Snapshot(
        load_1m=state.load,
        governor=", ".join(sorted(governors)),
        frequencies_khz={str(c.index): c.current_khz for c in state.cores if c.current_khz is not None},
        limits_khz={str(c.index): c.cap_khz for c in state.cores if c.cap_khz is not None},
        temperatures=temperatures,
        thermal_status=state.thermal.status,
        battery_percent=level,
        powered=state.battery.powered,
    )
