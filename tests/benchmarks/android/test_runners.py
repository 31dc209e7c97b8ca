"""What the programs on phones are told, and how what they print is read: real logs, shortened."""

import contextlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shufflectl.benchmarks.android.runners import KINDS, Finished, kind_of, runner
from shufflectl.benchmarks.android.runners.benchmark_proto import read_benchmark_result
from shufflectl.benchmarks.executor import Job
from shufflectl.benchmarks.results import Delegation, Snapshot, Warmup
from shufflectl.errors import ArtifactError, ShufflectlError, UnavailableError, UsageError

TFLITE = """\
INFO: STARTING!
INFO: Loaded model model0.tflite
INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
VERBOSE: Replacing 539 out of 548 node(s) with delegate (TfLiteXNNPackDelegate) node, yielding 19 partitions.
INFO: Initialized session in 355.447ms.
INFO: Running benchmark for at least 1 iterations and at least 0.5 seconds.
INFO: count=53 first=45401 curr=8755 min=8433 max=45401 avg=9580.26 std=5040 p5=8500 median=8800 p95=9900

INFO: count=108 first=8622 curr=8726 min=8268 max=9464 avg=8708.66 std=193 p5=8407 median=8705 p95=8982

INFO: Inference timings in us: Init: 355447, First inference: 45401, Warmup (avg): 9580.26, \
Inference (avg): 8708.66
INFO: Memory footprint delta from the start of the tool (MB): init=14.4414 overall=14.8164
"""
GPU = (
    TFLITE.replace("TfLiteXNNPackDelegate", "TfLiteGpuDelegateV2")
    .replace("539 out of 548", "31 out of 31")
    .replace("19 partitions", "1 partitions")
)


def job(models: int = 1, **changes: Any) -> Job:
    settings = {
        "block": 0,
        "seed": 7,
        "warmup": Warmup(),
        "min_iterations": 50,
        "min_seconds": 0.5,
        **changes,
    }
    return Job(artifacts=tuple(Path(f"{index}.tflite") for index in range(models)), **settings)


def finished(stdout: str = "", output: bytes | None = None, status: int = 0) -> Finished:
    return Finished(status, stdout, "", output)


def message(*fields: tuple[int, float | int | bytes]) -> bytes:
    """Encode a message: floats as fixed32, integers as varints, bytes as they are."""
    data = b""
    for number, value in fields:
        if isinstance(value, bytes):
            data += bytes([number << 3 | 2, len(value)]) + value
        elif isinstance(value, float):
            data += bytes([number << 3 | 5]) + struct.pack("<f", value)
        else:
            data += bytes([number << 3, *varint(value)])
    return data


def varint(value: int) -> bytes:
    data = b""
    while value >= 0x80:
        data += bytes([value & 0x7F | 0x80])
        value >>= 7
    return data + bytes([value])


LATENCY = message(
    (1, 1.25), (2, 1.0), (3, 2.0), (4, 0.5), (5, 1.125), (6, 1.0), (7, 1.5), (8, 12.0), (9, 3.0), (10, 1.5)
)
RESULT = message(
    (1, b"name"), (2, LATENCY), (3, message((2, 100.0), (3, 64.0))), (4, message((1, 4.0), (2, 300)))
)


class TestTflite:
    """TensorFlow Lite's benchmark_model."""

    def test_what_it_is_told(self) -> None:
        plan = runner("tflite").plan(job(threads=4), "./runner", ["model0.tflite"], None)
        assert (
            "./runner",
            "--graph=model0.tflite",
            "--num_threads=4",
            "--num_runs=50",
            "--min_secs=0.5",
            "--warmup_runs=30",
            "--warmup_min_secs=0.25",
            "--use_xnnpack=true",
        ) == plan.argv

    def test_the_timed_runs_are_read_and_not_the_warm_up(self) -> None:
        (measured,) = runner("tflite").read(job(), finished(TFLITE))
        assert (355_447_000, 45_401_000, 8_705_000.0) == (
            measured.init_ns,
            measured.first_ns,
            measured.median_ns,
        )
        assert (8_708_660.0, 8_982_000.0) == (measured.reported["mean"], measured.reported["p95"])
        assert () == measured.samples_ns
        assert Delegation("xnnpack", 539, 548, 19) == measured.delegation

    def test_a_flag_that_was_ignored_is_an_error(self) -> None:
        log = TFLITE.replace("STARTING!", "STARTING!\nWARN: Unconsumed cmdline flags: --use_xnnpack=true")
        with pytest.raises(UnavailableError, match="ignored --use_xnnpack=true"):
            runner("tflite").read(job(), finished(log))

    def test_a_model_that_runs_on_the_gpu_whole(self) -> None:
        (measured,) = runner("tflite").read(job(accelerator="gpu"), finished(GPU))
        assert Delegation("gpu", 31, 31, 1) == measured.delegation

    def test_opengl_in_place_of_opencl_is_marked(self) -> None:
        log = GPU + "INFO: Falling back to OpenGL\n"
        (measured,) = runner("tflite").read(job(accelerator="gpu"), finished(log))
        assert measured.delegation is not None
        assert "OpenGL" in measured.delegation.accelerator

    @pytest.mark.parametrize(
        ("log", "words"),
        [
            (TFLITE, "does not say that the accelerator took"),
            (GPU.replace("31 out of 31", "30 out of 31"), "30 of 31 operators"),
            (GPU.replace("31 out of 31", "31"), "31 operators ran there"),
            (GPU + "ERROR: Failed to apply GPU delegate.\n", "Failed to apply GPU delegate"),
            (GPU + TFLITE, "TfLiteXNNPackDelegate took operators as well"),
            ("GPU acceleration is unsupported on this platform.\n" + TFLITE, "unsupported on this platform"),
        ],
    )
    def test_a_fallback_is_an_error(self, log: str, words: str) -> None:
        with pytest.raises(UnavailableError, match=words):
            runner("tflite").read(job(accelerator="gpu"), finished(log))

    def test_a_fallback_that_also_fails_names_the_fallback(self) -> None:
        log = "ERROR: Failed to apply GPU delegate.\nERROR: Benchmarking failed.\n"
        with pytest.raises(UnavailableError, match="Failed to apply GPU"):
            runner("tflite").read(job(accelerator="gpu"), finished(log, status=1))

    def test_a_cpu_that_was_no_cpu_is_an_error(self) -> None:
        with pytest.raises(UnavailableError, match="TfLiteGpuDelegateV2 took operators"):
            runner("tflite").read(job(), finished(GPU))

    def test_nnapi_may_not_use_its_own_cpu(self) -> None:
        plan = runner("tflite").plan(job(accelerator="nnapi"), "./runner", ["m"], None)
        assert {"--use_nnapi=true", "--disable_nnapi_cpu=true", "--require_full_delegation=true"} <= set(
            plan.argv
        )

    def test_an_old_tool_without_a_median_is_refused(self) -> None:
        with pytest.raises(UnavailableError, match="too old"):
            runner("tflite").read(job(), finished(TFLITE.replace(" median=8705", "")))

    def test_too_few_runs_are_refused(self) -> None:
        with pytest.raises(UnavailableError, match="ran 108 times"):
            runner("tflite").read(job(min_iterations=109), finished(TFLITE))

    def test_a_failure_says_what_it_said(self) -> None:
        with pytest.raises(ArtifactError, match="status 1: ERROR: Failed to allocate tensors!"):
            runner("tflite").read(
                job(), finished("INFO: a\nERROR: Failed to allocate tensors!\nINFO: b\n", status=1)
            )


class TestLitert:
    """LiteRT's benchmark_model."""

    def test_the_result_file_is_read(self) -> None:
        log = GPU.replace("TfLiteGpuDelegateV2", "LITERT_CL")
        (measured,) = runner("litert").read(job(accelerator="gpu"), finished(log, RESULT))
        assert (1_125_000.0, 12_000_000, 3_000_000) == (
            measured.median_ns,
            measured.init_ns,
            measured.first_ns,
        )
        assert (64 << 20, 1_250_000.0) == (measured.peak_rss_bytes, measured.reported["mean"])
        assert Delegation("gpu", 31, 31, 1) == measured.delegation

    def test_a_gpu_has_no_cpu_to_fall_back_to(self) -> None:
        plan = runner("litert").plan(job(accelerator="gpu"), "./runner", ["m"], None)
        assert {"--use_cpu=false", "--use_gpu=true", "--require_full_delegation=true"} <= set(plan.argv)
        assert f"--result_file_path={plan.output}" in plan.argv

    @pytest.mark.parametrize(
        ("output", "words"),
        [
            (None, "no result file"),
            (b"", "no median"),
            (b"\xff\xff", "behind the end"),
            (message((2, message((5, float("nan"))))), "no number"),
            (message((2, message((5, -1.0)))), "no time"),
            (message((2, LATENCY), (4, message((2, 3)))), "ran 3 times"),
        ],
    )
    def test_a_result_that_is_none_is_refused(self, output: bytes | None, words: str) -> None:
        with pytest.raises(UnavailableError, match=words):
            runner("litert").read(job(), finished(TFLITE, output))

    def test_fields_that_are_not_known_are_skipped(self) -> None:
        more = message((9, 5), (15, b"new"), (14, 1.0)) + bytes([13 << 3 | 1]) + bytes(8)
        assert read_benchmark_result(RESULT) == read_benchmark_result(more + RESULT)

    @given(st.binary(max_size=200))
    def test_noise_is_refused_or_has_no_figures(self, data: bytes) -> None:
        with contextlib.suppress(ValueError):
            read_benchmark_result(data)

    @given(st.integers(0, len(RESULT) - 1))
    def test_a_truncated_file_is_refused_or_lacks_its_end(self, size: int) -> None:
        with contextlib.suppress(ValueError):
            assert read_benchmark_result(RESULT[:size]) != read_benchmark_result(RESULT)


def csv(*seconds: float) -> bytes:
    return "".join(f"a,b,{value:g},50000000,99,{i}\n" for i, value in enumerate(seconds)).encode()


NNAPI = "All nodes placed on [NnapiExecutionProvider]. Number of nodes: 1\n"


class TestOnnxRuntime:
    """ONNX Runtime's onnxruntime_perf_test."""

    LOG = "Session creation time cost: 0.0512 s\nFirst inference time cost: 12 ms\n"

    def test_how_often_it_runs_follows_from_a_few_runs(self) -> None:
        tool = runner("onnxruntime")
        plan = tool.plan(job(min_seconds=2.0), "./runner", ["m.onnx"], finished(self.LOG, csv(0.002, 0.001)))
        assert str(2000 + 250) == plan.argv[plan.argv.index("-r") + 1]
        assert ("m.onnx", "result.csv") == plan.argv[-2:]
        assert "-v" not in plan.argv

    def test_the_first_runs_are_warm_up(self) -> None:
        (measured,) = runner("onnxruntime").read(
            job(min_iterations=3, warmup=Warmup(min_iterations=2, min_seconds=0.0)),
            finished(self.LOG, csv(0.009, 0.002, 0.001, 0.001, 0.001)),
        )
        assert ((9_000_000, 2_000_000), (1_000_000,) * 3) == (measured.warmup_ns, measured.samples_ns)
        assert (51_200_000, 12_000_000, 50_000_000) == (
            measured.init_ns,
            measured.first_ns,
            measured.peak_rss_bytes,
        )

    @pytest.mark.parametrize(
        ("log", "words"),
        [
            ("", "does not say where"),
            ("Node(s) placed on [CPUExecutionProvider]. Number of nodes: 3\n", "3 on CPUExecutionProvider"),
            (
                f"{NNAPI}placed on [CPUExecutionProvider]. Number of nodes: 2\n",
                "1 on NnapiExecutionProvider, 2 on CPU",
            ),
        ],
    )
    def test_nnapi_that_did_not_take_all_is_an_error(self, log: str, words: str) -> None:
        with pytest.raises(UnavailableError, match=words):
            runner("onnxruntime").plan(job(accelerator="nnapi"), "./r", ["m"], finished(log, csv(0.001)))

    def test_nnapi_that_took_all_is_measured(self) -> None:
        plan = runner("onnxruntime").plan(job(accelerator="nnapi"), "./r", ["m"], finished(NNAPI, csv(0.001)))
        assert "NNAPI_FLAG_CPU_DISABLED" in plan.argv

    @pytest.mark.parametrize(
        "output", [None, b"", b"m,0,1,2,3\n", b"m,nan,1,2,3\n", b"m,-1,1,2,3\n", b"m,x,1,2,3\n"]
    )
    def test_a_file_without_times_is_refused(self, output: bytes | None) -> None:
        with pytest.raises(UnavailableError, match="no result that can be read"):
            runner("onnxruntime").read(job(), finished(self.LOG, output))


def own_document(count: int = 1, **changes: Any) -> dict[str, Any]:
    model = {
        "path": "model0.tflite",
        "bytes": 10,
        "init_ns": 12,
        "first_ns": 9,
        "steady": True,
        "warmup_ns": [9, 8],
        "samples_ns": [7] * 50,
        "output_fnv1a": "cbf29ce484222325",
        "delegation": {"accelerator": "xnnpack", "replaced": 150, "total": 151, "partitions": 1},
    }
    document: dict[str, Any] = {
        "schema": "shufflectl.runner/1",
        "version": "1.0",
        "accelerator": "cpu",
        "threads": 1,
    }
    document |= {"measured_ns": 2_000_000_000, "waited_ns": 500_000_000}
    return {**document, "peak_rss_bytes": 41, "models": [model] * count, **changes}


class TestOwn:
    """Our own runner."""

    def read(self, document: Any, models: int = 1) -> Any:
        return runner("shufflectl").read(job(models), finished(output=json.dumps(document).encode()))

    def test_what_it_is_told(self) -> None:
        plan = runner("shufflectl").plan(
            job(2, settle=1), "./runner", ["model0.tflite", "model1.tflite"], None
        )
        words = list(plan.argv)
        assert ["--model", "model0.tflite", "--model", "model1.tflite"] == words[1:5]
        assert ("1", "7", plan.output) == tuple(
            words[words.index(name) + 1] for name in ("--settle", "--seed", "--output")
        )

    def test_every_run_is_read(self) -> None:
        first, second = self.read(own_document(2), 2)
        assert first == second
        assert ((9, 8), (7,) * 50, True, 41) == (
            first.warmup_ns,
            first.samples_ns,
            first.steady,
            first.peak_rss_bytes,
        )
        assert Delegation("xnnpack", 150, 151, 1) == first.delegation

    def test_how_long_the_process_measured_and_waited_for_a_core_is_read(self) -> None:
        (found,) = self.read(own_document())
        assert (2.0, Snapshot(waited=0.25)) == (found.measured_s, found.after)
        (found,) = self.read(own_document(waited_ns=None))
        assert found.after is None

    @pytest.mark.parametrize(
        "document",
        [
            [],
            {},
            own_document(schema="shufflectl.runner/2"),
            own_document(threads=2),
            own_document(accelerator="gpu"),
            own_document(2),
            own_document(peak_rss_bytes=-1),
            own_document(measured_ns=1.5),
            own_document(waited_ns=-1),
            own_document(models=[{**own_document()["models"][0], "samples_ns": [1.5] * 50}]),
            own_document(models=[{**own_document()["models"][0], "samples_ns": [True] * 50}]),
            own_document(models=[{**own_document()["models"][0], "samples_ns": [7] * 49}]),
            own_document(models=[{**own_document()["models"][0], "init_ns": 10**18}]),
        ],
    )
    def test_a_document_that_is_another_is_refused(self, document: Any) -> None:
        with pytest.raises(UnavailableError, match="no result that can be read"):
            self.read(document)

    @pytest.mark.parametrize(
        ("status", "kind"), [(2, UnavailableError), (7, UnavailableError), (3, ArtifactError)]
    )
    def test_a_failure_says_whose_it_is(self, status: int, kind: type[ShufflectlError]) -> None:
        with pytest.raises(kind, match=r"libLiteRt\.so: not found") as caught:
            runner("shufflectl").read(job(), finished("error: libLiteRt.so: not found\n", status=status))
        assert kind is type(caught.value)


@pytest.mark.parametrize("kind", KINDS)
@given(log=st.text(), output=st.none() | st.binary())
def test_noise_is_never_a_result(kind: str, log: str, output: bytes | None) -> None:
    with pytest.raises(ShufflectlError):
        runner(kind).read(job(), finished(log, output))


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (b"..Inference timings in us: ..", "tflite"),
        (b"..Inference timings in us: ..BENCHMARK RESULTS..use_npu", "litert"),
        (b"..onnxruntime_perf_test..", "onnxruntime"),
        (b"..shufflectl.runner/1..", "shufflectl"),
    ],
)
def test_a_program_is_known_by_its_words(tmp_path: Path, words: bytes, kind: str) -> None:
    path = tmp_path / "program"
    path.write_bytes(words)
    assert kind == kind_of(path)


@pytest.mark.parametrize("data", [b"", b"something else"])
def test_a_program_that_is_none_of_them_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "program"
    path.write_bytes(data)
    with pytest.raises(ArtifactError):
        kind_of(path)


def test_a_kind_that_is_not_known_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown kind of runner 'litrt'"):
        runner("litrt")
