"""Android devices behind adb: what they are, how they are, and running programs on them.

`Adb.find` finds the client, `find_device` a device, `Workspace` makes a folder there that is gone afterwards.
"""

from shufflectl.deploy.devices.adb import Adb, Waits
from shufflectl.deploy.devices.cores import fastest
from shufflectl.deploy.devices.device import AndroidDevice, Device, Ran
from shufflectl.deploy.devices.performance import FAREWELL, fix_clocks
from shufflectl.deploy.devices.preflight import (
    MIN_BATTERY,
    find_device,
    problems,
    program_abi,
    require_cores,
    require_program,
    require_quiet,
    require_room,
    require_tools,
)
from shufflectl.deploy.devices.state import Core, DeviceState, Identity
from shufflectl.deploy.devices.survey import Found, survey
from shufflectl.deploy.devices.workspace import ROOT, Workspace

__all__ = [
    "FAREWELL",
    "MIN_BATTERY",
    "ROOT",
    "Adb",
    "AndroidDevice",
    "Core",
    "Device",
    "DeviceState",
    "Found",
    "Identity",
    "Ran",
    "Waits",
    "Workspace",
    "fastest",
    "find_device",
    "fix_clocks",
    "problems",
    "program_abi",
    "require_cores",
    "require_program",
    "require_quiet",
    "require_room",
    "require_tools",
    "survey",
]
