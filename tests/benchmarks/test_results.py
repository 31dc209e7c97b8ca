"""The records of measurements, and their JSON, which may come from anywhere."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shufflectl.benchmarks.results import SCHEMA, Suite, Target, read_suite
from shufflectl.errors import ArtifactError
from support.results import small

SUITE = small()


def document() -> Any:
    return json.loads(json.dumps(SUITE.to_json()))


def test_a_suite_survives_json(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps(SUITE.to_json()))
    assert SUITE == read_suite(path)


def test_the_text_in_pieces_is_that_of_the_document() -> None:
    assert json.dumps(SUITE.to_json()) == "".join(SUITE.to_text())
    assert SUITE.to_json() == json.loads("".join(SUITE.to_text(indent=2)))
    empty = Suite("", "", ())
    assert json.dumps(empty.to_json()) == "".join(empty.to_text())


def test_a_suite_without_figures_survives_json() -> None:
    failed = replace(SUITE.benchmarks[0], status="failed", reasons=("gone",), rounds=(), summary=None)
    suite = Suite("2026-01-31T12:00:00Z", "x", (failed,))
    assert suite == Suite.from_json(json.loads(json.dumps(suite.to_json())))


def test_an_integer_where_a_float_belongs_becomes_one() -> None:
    data = document()
    data["benchmarks"][0]["rounds"][0]["median_ns"] = 2
    assert isinstance(Suite.from_json(data).benchmarks[0].rounds[0].median_ns, float)


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(p for key, entry in items for p in paths(entry, (*at, key)))]


def put(data: Any, at: tuple[Any, ...], value: Any) -> Any:
    if not at:
        return value
    spot = data
    for key in at[:-1]:
        spot = spot[key]
    spot[at[-1]] = value
    return data


@pytest.mark.parametrize("junk", [None, -1, 2**80, "x", [], {}, [[]], True, "\x1b[2J" * 9999, 1e300])
def test_any_value_anywhere_is_read_or_refused_with_a_sentence(junk: Any) -> None:
    base = document()
    for at in paths(base):
        changed = put(copy.deepcopy(base), at, copy.deepcopy(junk))
        try:
            suite = Suite.from_json(changed)
        except ArtifactError as error:
            assert len(error.message) < 400  # noqa: PT017
        else:
            json.dumps(suite.to_json(), allow_nan=False)


def test_a_result_of_before_interrupts_were_recorded_is_whole() -> None:
    data = document()
    del data["interrupted"]
    assert SUITE == Suite.from_json(data)


def test_a_missing_or_unknown_key_is_refused() -> None:
    base = document()
    for at in paths(base):
        spot = base
        for key in at:
            spot = spot[key]
        open_ended = at and at[-1] in ("reported", "frequencies_khz", "limits_khz", "temperatures")
        if isinstance(spot, dict) and not open_ended:
            for key in spot.keys() - {"interrupted"}:
                changed = copy.deepcopy(base)
                part = changed
                for step in at:
                    part = part[step]
                del part[key]
                with pytest.raises(ArtifactError):
                    Suite.from_json(changed)
            with pytest.raises(ArtifactError):
                Suite.from_json(put(copy.deepcopy(base), (*at, "surplus"), 1))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not JSON"),
        ("[1, 2", "not JSON"),
        ('{"schema": NaN}', "NaN is not JSON"),
        ('{"schema": 1, "schema": 2}', "a key occurs twice"),
        ("[" * 100_000, "nested too deeply"),
        ("\xff\xfe", "not"),
        ("[]", "not a result of bench"),
        ('{"schema": "shufflectl.bench/2"}', "'shufflectl.bench/2'"),
        ('{"schema": "shufflectl.manifest/1"}', f"a result of bench is '{SCHEMA}'"),
        ('{"schema": "shufflectl.bench/1", "created": ' + "9" * 5000 + "}", "not"),
    ],
)
def test_a_file_that_is_no_result_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ArtifactError) as caught:
        read_suite(path)
    assert says in caught.value.message
    assert caught.value.hint


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.json"):
        with pytest.raises(ArtifactError):
            read_suite(path)


def test_a_round_that_counts_has_a_median() -> None:
    data = document()
    data["benchmarks"][0]["rounds"][0]["median_ns"] = None
    with pytest.raises(ArtifactError, match="without a median"):
        Suite.from_json(data)


def test_two_phones_of_one_model_are_two_devices() -> None:
    phones = [Target("android", model="Pixel", serial_hash=serial, fingerprint="f") for serial in ("a", "b")]
    assert phones[0].identity != phones[1].identity
    assert phones[0].identity == Target("android", model="Pixel", serial_hash="a", fingerprint="g").identity
