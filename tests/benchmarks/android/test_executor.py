"""What an executor says of itself; rounds are in tests/integration/test_adb_rounds.py."""

from pathlib import Path
from typing import Any, cast

from shufflectl.benchmarks.android.executor import AndroidExecutor, AndroidOptions
from shufflectl.benchmarks.android.store import Program
from shufflectl.deploy.digests import digest


def test_a_library_stands_in_the_version_by_its_hash(tmp_path: Path) -> None:
    library = tmp_path / "libonnxruntime.so"
    versions = []
    for libraries, data in (((), b""), ((library,), b"one"), ((library,), b"two")):
        library.write_bytes(data)
        program = Program("perf", "onnxruntime", tmp_path / "perf", libraries, "0" * 64, "arm64-v8a")
        versions.append(AndroidExecutor(cast("Any", None), program, AndroidOptions()).runner.version)
        assert versions[-1] == (f"libonnxruntime.so {digest(library)[:12]}" if libraries else "")
    assert 3 == len(set(versions))
