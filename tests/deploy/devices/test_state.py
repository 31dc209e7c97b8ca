"""What a phone says about itself, as real phones print it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shufflectl.deploy.devices.state import (
    Battery,
    Core,
    Temperature,
    read_battery,
    read_cores,
    read_identity,
    read_properties,
    read_thermal,
)

# Shortened from a phone with Android 13, the vendor's odd names kept.
THERMAL = """\
IsStatusOverride: false
ThermalEventListeners:
\tcallbacks: 1
\tkilled: false
ThermalStatusListeners:
\tcallbacks: 2
Thermal Status: 0
Cached temperatures:
\tTemperature{mValue=84.2, mType=0, mName=CPU0, mStatus=0}
\tTemperature{mValue=36.0, mType=3, mName=VIRTUAL-SKIN, mStatus=0}
HAL Ready: true
HAL connection:
\tThermalHAL 2.0 connected: yes
Current temperatures from HAL:
\tTemperature{mValue=57.9, mType=0, mName=CPU0, mStatus=0}
\tTemperature{mValue=35.1, mType=3, mName=test temperature sensor, mStatus=0}
\tTemperature{mValue=0.0, mType=1, mName=GPU, mStatus=0}
\tTemperature{mValue=31.0, mType=2, mName=battery, mStatus=0}
\tTemperature{mValue=-274.0, mType=4, mName=USB, mStatus=0}
\tTemperature{mValue=41.0, mType=13, mName=soc, mStatus=0}
Current cooling devices from HAL:
\tCoolingDevice{mValue=0, mType=2, mName=cpu}
Temperature static thresholds from HAL:
\tTemperatureThreshold{mType=3, mName=skin, mHotThrottlingThresholds=[NaN, 39.0, 43.0]}
"""

BATTERY = """\
Current Battery Service state:
  AC powered: false
  USB powered: true
  Wireless powered: false
  Max charging current: 500000
  Charge counter: 2881000
  status: 2
  health: 2
  present: true
  level: 67
  scale: 100
  voltage: 4190
  temperature: 312
  technology: Li-ion
"""


def test_current_temperatures_are_read_and_cached_ones_never() -> None:
    thermal = read_thermal(THERMAL)
    assert (
        Temperature("CPU0", "cpu", 57.9, 0),
        Temperature("test temperature sensor", "skin", 35.1, 0),
        Temperature("battery", "battery", 31.0, 0),
        Temperature("soc", "soc", 41.0, 0),
    ) == thermal.temperatures
    assert (0, "none", False) == (thermal.status, thermal.word, thermal.overridden)


def test_a_phone_without_current_temperatures_has_none() -> None:
    text = THERMAL.partition("HAL Ready")[0] + "HAL Ready: false\n"
    assert () == read_thermal(text).temperatures


def test_a_sensor_that_is_hotter_than_the_phone_counts() -> None:
    assert 2 == read_thermal(THERMAL.replace("mName=soc, mStatus=0", "mName=soc, mStatus=2")).status


def test_an_override_is_seen() -> None:
    assert read_thermal(THERMAL.replace("Override: false", "Override: true")).overridden


def test_a_phone_without_the_service_has_no_status() -> None:
    thermal = read_thermal("Can't find service: thermalservice\n")
    assert (None, "unknown", ()) == (thermal.status, thermal.word, thermal.temperatures)


def test_the_battery_is_in_per_cent_and_degrees() -> None:
    assert Battery(67.0, 31.2, powered=True) == read_battery(BATTERY)


def test_a_battery_with_another_scale_is_in_per_cent_too() -> None:
    assert (
        50.0
        == read_battery(BATTERY.replace("level: 67", "level: 100").replace("scale: 100", "scale: 200")).level
    )


def test_a_battery_that_is_not_there_says_nothing() -> None:
    assert Battery(None, None, None) == read_battery("Can't find service: battery\n")


def test_properties_may_span_lines() -> None:
    text = "[a.b]: [1]\n[multi]: [x\ny]\n[empty]: []\nnoise\n[last]: [z]\n"
    assert {"a.b": "1", "multi": "x\ny", "empty": "", "last": "z"} == read_properties(text)


@pytest.mark.parametrize(
    ("properties", "model", "soc"),
    [
        ({"ro.product.manufacturer": "Google", "ro.product.model": "Pixel 7"}, "Google Pixel 7", ""),
        ({"ro.product.manufacturer": "vivo", "ro.product.model": "vivo 1906"}, "vivo 1906", ""),
        (
            {"ro.soc.manufacturer": "QTI", "ro.soc.model": "SM8550", "ro.board.platform": "kalama"},
            "",
            "QTI SM8550",
        ),
        ({"ro.board.platform": "kona", "ro.hardware": "qcom"}, "", "kona"),
    ],
)
def test_names_are_those_that_people_use(properties: dict[str, str], model: str, soc: str) -> None:
    identity = read_identity(properties)
    assert (model, soc) == (identity.model, identity.soc)


def test_an_old_phone_has_one_instruction_set() -> None:
    identity = read_identity({"ro.product.cpu.abi": "armeabi-v7a", "ro.build.version.sdk": "x"})
    assert (("armeabi-v7a",), None) == (identity.abis, identity.sdk)


def test_clocks_are_read_for_each_core() -> None:
    folder = "/sys/devices/system/cpu/cpu4/cpufreq"
    text = (
        f"{folder}/cpuinfo_max_freq:2800000\n{folder}/scaling_max_freq:1747200\n{folder}/scaling_min_freq:300000\n"
        f"{folder}/scaling_cur_freq:1200000\n{folder}/scaling_governor:schedutil\n"
        "grep: /sys/devices/system/cpu/cpu5/cpufreq/scaling_cur_freq: Permission denied\n"
    )
    (core,) = read_cores(text)
    assert Core(4, 2_800_000, 1_747_200, 300_000, 1_200_000, "schedutil") == core
    assert core.capped


@given(st.text())
def test_noise_is_read_as_nothing(text: str) -> None:
    read_thermal(text)
    read_battery(text)
    read_cores(text)
    read_identity(read_properties(text))


@given(
    st.from_regex(
        r"\tTemperature\{mValue=\d{1,400}\.?\d*, mType=-?\d{1,30}, mName=.{0,20}, mStatus=\d{1,30}\}"
    )
)
def test_figures_of_any_size_are_read(line: str) -> None:
    thermal = read_thermal(f"Thermal Status: 1\nCurrent temperatures from HAL:\n{line}\n")
    assert all(-40 <= item.celsius <= 200 and 0 <= item.status <= 6 for item in thermal.temperatures)
