import copy
import importlib.resources
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shufflectl.converters.metadata import ModelInfo
from shufflectl.deploy.digests import digest
from shufflectl.deploy.manifest import (
    MANIFEST,
    SCHEMA,
    ArtifactRecord,
    Manifest,
    merge_into,
    tool_versions,
)
from shufflectl.deploy.parity.nway import Member, ParityReport, check_parity
from shufflectl.deploy.publish import Staging
from shufflectl.errors import ArtifactError
from shufflectl.models.preprocess import DIGITS

IMAGES = np.random.default_rng(0).standard_normal((4, 3, 2, 2)).astype(np.float32)
LABELS = np.array([0, 1, 2, 0])


def report(files: list[str], error: float = 1e-6) -> ParityReport:
    def run(shift: float) -> Callable[[np.ndarray], tuple[np.ndarray, ...]]:
        return lambda images: (images.mean((2, 3)) + np.float32(shift),)

    members = [Member(file, "fp32", run(error * index)) for index, file in enumerate(files, 1)]
    reference = Member("torch", "fp32", run(0))
    return check_parity(
        reference, members, {"real": IMAGES}, labels={"real": LABELS}, output_names=["logits"]
    )


def record(file: str, content: str = "x") -> ArtifactRecord:
    import hashlib

    return ArtifactRecord(
        file=file,
        target=file.rpartition(".")[2],
        precision="fp32",
        sha256=hashlib.sha256(content.encode()).hexdigest(),
        bytes=len(content),
        operators=7,
        largest_rank=4,
        options={"layout": "nchw", "half_io": False},
        runtime="onnxruntime 1.31",
    )


def build(name: str = "net", files: tuple[str, ...] = ("onnx", "tflite"), **changes: Any) -> Manifest:
    names = [f"{name}-fp32.{kind}" for kind in files]
    content = changes.pop("content", "x")
    given: dict[str, Any] = {
        "num_classes": 3,
        "input_name": "image",
        "input_shape": (1, 3, 2, 2),
        "artifacts": [record(file, content) for file in names],
        "report": report(names),
        "options": {"images": 32, "targets": list(files[:0])},
        "tools": {"torch": "2.13.0", "shufflectl": "0.1.0"},
    }
    info = ModelInfo(
        name, changes.pop("weights", "digits"), "a" * 64, DIGITS, ("zero", "один", "two"), license="MIT"
    )
    return Manifest.build(info, **{**given, **changes})


def test_it_holds_what_an_export_is() -> None:
    document = build().to_json()
    (model,) = document["models"]
    assert SCHEMA == document["schema"]
    assert {"spec": "digits", "sha256": "a" * 64} == model["weights"]
    assert DIGITS.to_json() == model["input"]["preprocess"]
    assert ["net-fp32.onnx", "net-fp32.tflite"] == [row["file"] for row in model["artifacts"]]
    assert [("torch", "net-fp32.onnx")] == [
        (row["reference"], row["candidate"]) for row in model["artifacts"][0]["parity"]
    ]
    assert [("net-fp32.onnx", "net-fp32.tflite")] == [
        (row["reference"], row["candidate"]) for row in model["pairwise"]
    ]
    assert ["torch"] == [row["member"] for row in model["reference"]["accuracy"]]
    assert ["net-fp32.onnx"] == [row["member"] for row in model["artifacts"][0]["accuracy"]]
    assert [0] == [row["top1"]["flips"] for row in model["artifacts"][0]["parity"]]


def test_the_same_inputs_give_the_same_bytes() -> None:
    first, second = build().to_bytes(), build(options={"targets": [], "images": 32}).to_bytes()
    assert first == second
    assert first.endswith(b"}\n")
    assert "один".encode() in first


def test_reading_gives_what_was_written(tmp_path: Path) -> None:
    manifest = build()
    manifest.write(tmp_path / MANIFEST)
    assert manifest == Manifest.load(tmp_path)
    assert manifest == Manifest.load(tmp_path / MANIFEST)
    assert manifest.to_bytes() == Manifest.load(tmp_path).to_bytes()


def test_rows_lie_in_one_order() -> None:
    manifest = build(files=("tflite", "mlpackage", "onnx"))
    assert ["net-fp32.mlpackage", "net-fp32.onnx", "net-fp32.tflite"] == [
        row.file for row in manifest.artifacts
    ]


@pytest.mark.parametrize("path", ["/home/me/best.pt", "C:\\best.pt", "~/best.pt"])
def test_absolute_paths_are_refused(path: str) -> None:
    with pytest.raises(ValueError, match="no absolute path"):
        build(options={"calibration": path})
    with pytest.raises(ValueError, match="no absolute path"):
        build(weights=path)


class TestMerge:
    def test_two_models_share_a_folder(self) -> None:
        merged = build("b").merge(build("a"))
        assert ["a", "b"] == [record.name for record in merged.models]
        assert merged.to_bytes() == build("a").merge(build("b")).to_bytes()

    def test_the_same_export_again_changes_nothing(self) -> None:
        assert build().to_bytes() == build().merge(build()).to_bytes()

    def test_the_same_file_is_replaced(self) -> None:
        merged = build().merge(build(content="new"))
        assert build(content="new").to_bytes() == merged.to_bytes()

    def test_another_format_of_the_same_export_joins_its_record(self) -> None:
        merged = build(files=("onnx",)).merge(build(files=("tflite",)))
        assert 1 == len(merged.models)
        assert ["net-fp32.onnx", "net-fp32.tflite"] == [row.file for row in merged.artifacts]

    def test_files_of_other_weights_keep_a_record_of_their_own(self) -> None:
        merged = build().merge(build(files=("onnx",), weights="random:0"))
        found = {record.info.weights: [row.file for row in record.artifacts] for record in merged.models}
        assert {"random:0": ["net-fp32.onnx"], "digits": ["net-fp32.tflite"]} == found
        old = next(record for record in merged.models if record.info.weights == "digits")
        assert () == old.pairwise

    @settings(max_examples=30, deadline=None)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from("ab"),
                st.sets(st.sampled_from(["onnx", "tflite"]), min_size=1),
                st.integers(0, 1),
            ),
            min_size=1,
            max_size=4,
        )
    )
    def test_the_last_export_of_every_file_is_the_one_on_record(
        self, exports: list[tuple[str, set[str], int]]
    ) -> None:
        merged = Manifest(())
        last = {}
        for name, kinds, seed in exports:
            newer = build(name, tuple(sorted(kinds)), weights=f"random:{seed}", content=str(seed))
            merged = merged.merge(newer)
            last.update({row.file: f"random:{seed}" for row in newer.artifacts})
        found = {row.file: record.info.weights for record in merged.models for row in record.artifacts}
        assert last == found
        assert merged == Manifest.from_json(json.loads(merged.to_bytes()))


def test_publishing_merges_with_what_is_there(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with Staging(tmp_path) as staging:
            for kind in ("onnx", "tflite"):
                staging.path(f"{name}-fp32.{kind}").write_bytes(b"x")
            manifest = build(name)
            staging.publish(lambda out, manifest=manifest: merge_into(out, manifest))
    loaded = Manifest.load(tmp_path)
    assert ["a", "b"] == [record.name for record in loaded.models]
    assert {digest(row.path_in(tmp_path)) for row in loaded.artifacts} == {
        row.sha256 for row in loaded.artifacts
    }


def test_a_manifest_that_cannot_be_read_stops_the_publication(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text("{}")
    with pytest.raises(ArtifactError, match="not a valid manifest"), Staging(tmp_path) as staging:  # noqa: PT012
        staging.path("net-fp32.onnx").write_bytes(b"x")
        staging.publish(lambda out: merge_into(out, build()))
    assert [MANIFEST] == [path.name for path in tmp_path.iterdir()]


def changed(path: str, value: Any) -> bytes:
    document = build().to_json()
    *parents, last = path.split("/")
    place = document
    for key in parents:
        place = place[int(key) if isinstance(place, list) else key]
    if value is KeyError:
        del place[last]
    else:
        place[int(last) if isinstance(place, list) else last] = value
    return json.dumps(document).encode()


ROW = "models/0/artifacts/0"
BAD = {
    "empty": (b"", "is not JSON"),
    "truncated": (build().to_bytes()[:-40], "is not JSON"),
    "binary": (b"\x00\xff\xfe", "is not JSON"),
    "not UTF-8": (b'{"schema": "\xff"}', "is not JSON"),
    "deep": (b"[" * 200_000, "is not JSON: it is nested too deeply"),
    "NaN": (changed(f"{ROW}/bytes", 5).replace(b'"bytes": 5', b'"bytes": NaN'), "NaN is not JSON"),
    "twice": (b'{"schema": "x", "schema": "y"}', "a key occurs twice"),
    "a list": (b"[]", r"\$: \[\] is not of type 'object'"),
    "another document": (b'{"schema": "shufflectl.parity/1"}', "not a valid manifest"),
    "newer": (changed("schema", "shufflectl.manifest/2"), "has version 'shufflectl.manifest/2'"),
    "no version": (changed("schema", KeyError), "not a valid manifest"),
    "up": (changed(f"{ROW}/file", "../../etc/passwd"), r"artifacts\[0\]\.file"),
    "absolute": (changed(f"{ROW}/file", "/etc/passwd"), r"artifacts\[0\]\.file"),
    "windows": (changed(f"{ROW}/file", "C:\\x"), r"artifacts\[0\]\.file"),
    "hidden": (changed(f"{ROW}/file", ".bashrc"), r"artifacts\[0\]\.file"),
    "newline": (changed(f"{ROW}/file", "net.onnx\n"), "is not the name of a file in its folder"),
    "same file twice": (changed(f"{ROW}/file", "net-fp32.tflite"), "two artifacts have one name"),
    "digest": (changed(f"{ROW}/sha256", "abc"), r"artifacts\[0\]\.sha256"),
    "size": (changed(f"{ROW}/bytes", -1), r"artifacts\[0\]\.bytes"),
    "type": (changed(f"{ROW}/operators", "7"), r"artifacts\[0\]\.operators"),
    "unknown key": (changed(f"{ROW}/command", "rm -rf"), "'command' was unexpected"),
    "missing key": (changed(f"{ROW}/target", KeyError), "'target' is a required property"),
    "preprocess": (changed("models/0/input/preprocess/mean", [1]), "preprocess.mean"),
    "verdict": (changed(f"{ROW}/parity/0/sqnr_db", "high"), "sqnr_db"),
    "no artifacts": (changed("models/0/artifacts", []), r"models\[0\]\.artifacts"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_manifest_is_refused_with_a_remedy(case: str, tmp_path: Path) -> None:
    data, message = BAD[case]
    (tmp_path / MANIFEST).write_bytes(data)
    with pytest.raises(ArtifactError, match=message) as caught:
        Manifest.load(tmp_path)
    assert caught.value.hint
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 500 + len(str(tmp_path))


def test_a_missing_a_huge_and_an_unreadable_manifest_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        Manifest.load(tmp_path / MANIFEST)
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(17 << 20)
    with pytest.raises(ArtifactError, match="is larger than 16 MiB"):
        Manifest.load(tmp_path / "huge")
    (tmp_path / MANIFEST).mkdir()
    with pytest.raises(ArtifactError, match="cannot be read: Is a directory"):
        Manifest.load(tmp_path)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_change_of_one_value_gives_another_error(data: st.DataObject) -> None:
    document = copy.deepcopy(build(files=("onnx",)).to_json())
    place: Any = document
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[key], (dict, list)) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    values = st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.just([]), st.just({})
    )
    place[key] = data.draw(values)
    try:
        manifest = Manifest.from_json(document)
    except ArtifactError:
        return
    assert manifest.to_json() == document


class TestPathIn:
    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match=r"net-fp32\.onnx is in .* but does not exist"):
            record("net-fp32.onnx").path_in(tmp_path)

    def test_a_link_out_of_the_folder_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "secret").write_text("x")
        (tmp_path / "dist").mkdir()
        (tmp_path / "dist" / "net-fp32.onnx").symlink_to(tmp_path / "secret")
        with pytest.raises(ArtifactError, match="outside of its folder"):
            record("net-fp32.onnx").path_in(tmp_path / "dist")


def test_measure_reads_size_and_digest(tmp_path: Path) -> None:
    (tmp_path / "p.mlpackage").mkdir()
    (tmp_path / "p.mlpackage" / "a").write_bytes(b"abc")
    row = ArtifactRecord.measure(
        tmp_path / "p.mlpackage", target="coreml", precision="fp16", operators=3, largest_rank=4
    )
    assert ("p.mlpackage", 3, digest(tmp_path / "p.mlpackage")) == (row.file, row.bytes, row.sha256)
    with pytest.raises(ArtifactError):
        ArtifactRecord.measure(tmp_path / "x", target="onnx", precision="fp32", operators=1, largest_rank=4)


def test_building_with_a_name_that_escapes_is_refused() -> None:
    with pytest.raises(ArtifactError):
        build(artifacts=[replace(record("x.onnx"), file="../x.onnx")])


def test_versions_name_the_packages_that_shape_an_export() -> None:
    versions = tool_versions()
    assert {"python", "shufflectl", "torch", "onnx", "onnxruntime", "numpy"} <= set(versions)
    assert sorted(versions) == list(versions)


def schema(name: str) -> dict[str, Any]:
    text = (
        importlib.resources.files("shufflectl.deploy")
        .joinpath(f"schemas/{name}.schema.json")
        .read_text("utf-8")
    )
    return dict(json.loads(text))


@pytest.mark.parametrize("name", ["manifest-1", "parity-1"])
def test_schemas_are_valid_and_closed(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(schema(name))

    def objects(node: Any) -> list[dict[str, Any]]:
        if isinstance(node, list):
            return [found for item in node for found in objects(item)]
        if not isinstance(node, dict):
            return []
        own = [node] if node.get("type") == "object" and "properties" in node else []
        return own + [found for item in node.values() for found in objects(item)]

    assert all(node["additionalProperties"] is False for node in objects(schema(name)))


def test_parity_reports_satisfy_their_schema() -> None:
    found = report(["a.onnx", "b.onnx"])
    jsonschema.validate(found.to_json(), schema("parity-1"))
    broken = check_parity(
        Member("torch", "fp32", lambda x: (x.mean((2, 3)),)),
        [
            Member("nan", "fp32", lambda x: (x.mean((2, 3)) * np.nan,)),
            Member("zero", "fp16", lambda x: (x.mean((2, 3)) * 0,)),
        ],
        {"real": IMAGES},
    )
    jsonschema.validate(broken.to_json(), schema("parity-1"))


def test_both_schemas_mean_the_same_by_a_comparison() -> None:
    manifest, parity = schema("manifest-1")["$defs"], schema("parity-1")["$defs"]
    assert parity == {key: manifest[key] for key in parity}
