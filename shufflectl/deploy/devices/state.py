"""What a phone says about itself, read from the text of its own programs.

Formats: ``getprop``, ``dumpsys thermalservice`` of Android 10 and later (ThermalManagerService.dump),
``dumpsys battery``, and the files of Linux's cpufreq. Everything here comes from a device and is believed
only where it has the expected form; what is missing is None or empty.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

__all__ = [
    "Battery",
    "Core",
    "DeviceState",
    "Identity",
    "Temperature",
    "Thermal",
    "read_battery",
    "read_cores",
    "read_identity",
    "read_properties",
    "read_thermal",
]

_PROPERTY: Final = re.compile(r"^\[([^\]\n]+)\]: \[(.*?)\]$", re.MULTILINE | re.DOTALL)
_TEMPERATURE: Final = re.compile(
    r"Temperature\{mValue=(-?\d+(?:\.\d+)?), mType=(-?\d+), mName=(.*), mStatus=(\d+)\}"
)
_STATUS: Final = re.compile(r"^\s*Thermal Status: (\d+)\s*$", re.MULTILINE)
_OVERRIDE: Final = re.compile(r"^\s*IsStatusOverride: (true|false)\s*$", re.MULTILINE)
_CORE_FILE: Final = re.compile(r"^\S*/cpu(\d{1,4})/cpufreq/(\w+):(\S+)$", re.MULTILINE)
_CURRENT: Final = "Current temperatures from HAL:"

# android.os.Temperature.
_KINDS: Final = {0: "cpu", 1: "gpu", 2: "battery", 3: "skin", 9: "npu", 13: "soc"}
# android.os.PowerManager.THERMAL_STATUS_*.
_STATUS_WORDS: Final = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")


@dataclass(frozen=True)
class Identity:
    """Which device it is.

    Attributes:
        model: Manufacturer and model, as people call it.
        soc: The chip; its vendor's name for it where the device tells.
        abis: The instruction sets that its programs may have, the preferred one first.
        sdk: The API level; None where the device does not tell.
        release: Android's version, for example ``14``.
        fingerprint: What names the build of its system.
    """

    model: str
    soc: str
    abis: tuple[str, ...]
    sdk: int | None
    release: str
    fingerprint: str


@dataclass(frozen=True)
class Battery:
    """The battery.

    Attributes:
        level: In per cent.
        celsius: Its temperature.
        powered: Whether a charger is connected; a USB cable counts.
    """

    level: float | None
    celsius: float | None
    powered: bool | None


@dataclass(frozen=True)
class Temperature:
    """One sensor, now.

    Attributes:
        name: The vendor's name for it.
        kind: ``cpu``, ``gpu``, ``battery``, ``skin``, ``npu``, ``soc``, or ``other``.
        celsius: What it reads.
        status: How hot that is, 0 (not at all) to 6 (the phone turns itself off).
    """

    name: str
    kind: str
    celsius: float
    status: int


@dataclass(frozen=True)
class Thermal:
    """What the thermal service says.

    Attributes:
        status: The worst of the phone's own status and its sensors', 0 to 6; None where it says none. Some
            phones report 0 however hot they are, so that 0 alone proves nothing.
        overridden: Whether somebody fixed the status by hand, so that it says nothing.
        temperatures: Of the sensors, current. The service's cached ones are never read: they can be off by
            tens of degrees.
    """

    status: int | None
    overridden: bool
    temperatures: tuple[Temperature, ...]

    @property
    def word(self) -> str:
        """The status as people read it."""
        return "unknown" if self.status is None else _STATUS_WORDS[min(self.status, 6)]


@dataclass(frozen=True)
class Core:
    """One CPU core and its clock, in kHz.

    Attributes:
        index: Its number.
        max_khz: The fastest that the hardware does.
        cap_khz: The fastest that is allowed now.
        min_khz: The slowest that is allowed now.
        current_khz: What it does now.
        governor: What decides.
    """

    index: int
    max_khz: int | None = None
    cap_khz: int | None = None
    min_khz: int | None = None
    current_khz: int | None = None
    governor: str = ""

    @property
    def capped(self) -> bool:
        """Whether it is held below what it can."""
        return self.max_khz is not None and self.cap_khz is not None and self.cap_khz < self.max_khz


@dataclass(frozen=True)
class DeviceState:
    """A phone at one moment: whether what is measured now means anything.

    Attributes:
        thermal: Temperatures and status.
        battery: The battery.
        cores: CPU cores by number; empty where the device hides them.
        saving: Whether battery saver is on; None where it does not tell.
        load: Processes that ran or waited in the last minute, on average.
    """

    thermal: Thermal
    battery: Battery
    cores: tuple[Core, ...]
    saving: bool | None = None
    load: float | None = None


def read_properties(text: str) -> dict[str, str]:
    """Read ``getprop``."""
    return {match[1]: match[2] for match in _PROPERTY.finditer(text)}


def read_identity(properties: Mapping[str, str]) -> Identity:
    """Read what names a device from its properties."""

    def first(*names: str) -> str:
        found = (_clean(properties.get(name, "")) for name in names)
        return next((value for value in found if value), "")

    maker, model = first("ro.product.manufacturer"), first("ro.product.model")
    named = model if model.lower().startswith(maker.lower()) else f"{maker} {model}"
    chip, vendor = first("ro.soc.model"), first("ro.soc.manufacturer")
    soc = (
        " ".join(word for word in (vendor, chip) if word)
        if chip
        else first("ro.board.platform", "ro.hardware")
    )
    abis = first("ro.product.cpu.abilist", "ro.product.cpu.abi")
    sdk = first("ro.build.version.sdk")
    return Identity(
        model=named.strip(),
        soc=soc,
        abis=tuple(abi.strip() for abi in abis.split(",") if abi.strip()),
        sdk=int(sdk) if re.fullmatch(r"\d{1,4}", sdk) else None,
        release=first("ro.build.version.release"),
        fingerprint=first("ro.build.fingerprint"),
    )


def read_thermal(text: str) -> Thermal:
    """Read ``dumpsys thermalservice``: the status, and the section of current temperatures only."""
    temperatures = []
    current = False
    for line in text.splitlines():
        match = _TEMPERATURE.fullmatch(line.strip())
        if match is None:
            current = line.strip() == _CURRENT
        elif current:
            celsius = float(match[1])
            if celsius == 0.0 or not -40.0 <= celsius <= 200.0:  # a sensor that is off, or no temperature
                continue
            kind = _KINDS.get(int(match[2]), "other")
            temperatures.append(Temperature(_clean(match[3]), kind, celsius, min(int(match[4]), 6)))
    status = _STATUS.search(text)
    override = _OVERRIDE.search(text)
    if status is None:
        return Thermal(None, override is not None and override[1] == "true", tuple(temperatures))
    worst = max([min(int(status[1]), 6), *(item.status for item in temperatures)])
    return Thermal(worst, override is not None and override[1] == "true", tuple(temperatures))


def read_battery(text: str) -> Battery:
    """Read ``dumpsys battery``; its temperature is in tenths of a degree."""
    fields = dict(re.findall(r"^\s*([A-Za-z ]+): (\S+)\s*$", text, re.MULTILINE))
    level, scale, tenths = (_number(fields.get(name)) for name in ("level", "scale", "temperature"))
    powers = [value for name, value in fields.items() if name.endswith("powered")]
    full = scale or 100.0
    return Battery(
        level=None if level is None or not 0 <= level <= full else 100.0 * level / full,
        celsius=None if tenths is None or not -400 <= tenths <= 1500 or tenths == 0 else tenths / 10.0,
        powered=("true" in powers) if powers else None,
    )


def read_cores(text: str) -> tuple[Core, ...]:
    """Read what ``grep -H .`` prints of the files of cpufreq, ``PATH:VALUE`` a line."""
    names = {
        "cpuinfo_max_freq": "max_khz",
        "scaling_max_freq": "cap_khz",
        "scaling_min_freq": "min_khz",
        "scaling_cur_freq": "current_khz",
    }
    found: dict[int, dict[str, int]] = {}
    governors: dict[int, str] = {}
    for match in _CORE_FILE.finditer(text):
        index, name, value = int(match[1]), match[2], match[3]
        if name in names and re.fullmatch(r"\d{1,9}", value):
            found.setdefault(index, {})[names[name]] = int(value)
        elif name == "scaling_governor":
            governors[index] = _clean(value)
    return tuple(
        Core(index, governor=governors.get(index, ""), **values) for index, values in sorted(found.items())
    )


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _clean(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text.strip())[:200]
