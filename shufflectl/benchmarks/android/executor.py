"""Rounds on a phone: one process of a runner each, in a folder that is gone afterwards."""

import contextlib
import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from shufflectl.benchmarks.android import store
from shufflectl.benchmarks.android.conditions import Cooling, snapshot, spoiled, too_warm, usual_limits
from shufflectl.benchmarks.android.runners import Finished, Plan, Runner, runner
from shufflectl.benchmarks.executor import Job, Measured
from shufflectl.benchmarks.options import parse_cores
from shufflectl.benchmarks.results import RunnerInfo, Target
from shufflectl.deploy.devices import (
    FAREWELL,
    Adb,
    AndroidDevice,
    DeviceState,
    Workspace,
    fastest,
    find_device,
    fix_clocks,
    require_cores,
    require_program,
    require_quiet,
    require_room,
    require_tools,
)
from shufflectl.deploy.digests import digest
from shufflectl.errors import (
    ArtifactError,
    DeviceError,
    DeviceLostError,
    UnavailableError,
    UnstableError,
    UsageError,
)

__all__ = ["AndroidExecutor", "AndroidOptions", "open_executor"]

_PROGRAM: Final = "runner"
_MARGIN: Final = 4 << 20


@dataclass(frozen=True)
class AndroidOptions:
    """How to measure on a phone.

    Attributes:
        kind: What the runner's program is; by default what the cache or its words say.
        adb: The adb client's path; by default where it is usually found.
        fixed_performance: Whether to hold the clocks at what the phone can keep up.
        cooling: When the phone counts as cool.
        timeout: The longest that one round may take, in seconds.
    """

    kind: str = ""
    adb: str | None = None
    fixed_performance: bool = False
    cooling: Cooling = field(default_factory=Cooling)
    timeout: float = 600.0


class AndroidExecutor:
    """Runs jobs on one device with one runner. See `shufflectl.benchmarks.executor.Executor`.

    Args:
        device: The device.
        program: The runner's program.
        options: How to measure.
        notify: Told what is being waited for.
    """

    def __init__(
        self,
        device: AndroidDevice,
        program: store.Program,
        options: AndroidOptions,
        notify: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._device = device
        self._program = program
        self._options = options
        self._notify = notify
        self._runner: Runner = runner(program.kind)
        self._workspace: Workspace | None = None
        self._names: dict[Path, str] = {}
        self._probes: dict[tuple[object, ...], Finished | None] = {}
        self._usual: dict[int, int] = {}
        self._cores: tuple[int, ...] = ()
        self._state: DeviceState | None = None
        self._argv: tuple[str, ...] = ()
        self._version = ", ".join(f"{file.name} {digest(file)[:12]}" for file in program.libraries)

    @property
    def runner(self) -> RunnerInfo:
        """What runs the artifacts; the command line is that of the last round.

        A program does not tell its runtime's version. Where the runtime is a library of its own, its hash
        stands in place of one: the program's says nothing about it.
        """
        return RunnerInfo(
            name=self._runner.name,
            version=self._version,
            sha256=self._program.sha256,
            argv=self._argv,
            provides_samples=self._runner.provides_samples,
            can_pair=self._runner.can_pair,
        )

    @property
    def target(self) -> Target:
        """The device; its serial number only as a hash."""
        identity = self._device.identity
        known = self._state.cores if self._state is not None else ()
        return Target(
            kind="android",
            model=identity.model,
            soc=identity.soc,
            sdk=identity.sdk,
            abi=self._program.abi,
            fingerprint=identity.fingerprint,
            serial_hash=hashlib.sha256(self._device.serial.encode()).hexdigest()[:16],
            os=f"Android {identity.release}".strip(),
            cpu=identity.soc,
            cores=len(known) or None,
        )

    @contextlib.contextmanager
    def open(self, artifacts: Sequence[Path]) -> Iterator[None]:
        """Send the runner and the artifacts to a folder on the device; it is removed in every ending.

        Raises:
            ArtifactError: An artifact is missing or of a kind that the runner does not take.
            UnstableError: The phone's figures would mean nothing now: battery, override, heat that stays.
            UnavailableError: The device lacks something, has no room, or was lost.
        """
        device, program = self._device, self._program
        files = list(dict.fromkeys(artifacts))
        for path in files:
            self._require_artifact(path)
        require_tools(device)
        require_program(device, program.path)
        sent = [program.path, *program.libraries, *files]
        require_room(device, sum(path.stat().st_size for path in sent) + _MARGIN)
        self._state = device.snapshot()
        require_quiet(device, self._state)
        fixed = self._options.fixed_performance
        with ExitStack() as stack:
            workspace = stack.enter_context(Workspace(device, [FAREWELL] if fixed else []))
            stack.callback(self._forget)
            self._workspace = workspace
            self._push(workspace, files)
            cores = fix_clocks(device) if fixed else self._state.cores
            self._usual = usual_limits(cores, fixed=fixed)
            self.settle()
            yield

    def run(self, job: Job) -> tuple[Measured, ...]:
        """Run one job in a fresh process, between two looks at the phone.

        Raises:
            UnstableError: The phone is hot or capped before it begins.
            UsageError: The runner cannot do what the job asks for.
            ArtifactError: The runner fails on the artifact.
            UnavailableError: The device was lost, the runner did not end, left nothing to read, or did not
                use the accelerator.
        """
        self._require_job(job)
        self._pin(job)
        before = self._look()
        why = spoiled(before, self._usual, self._cores)
        if why:
            raise UnstableError(
                f"{self._device.serial} cannot be measured now: {why}", hint="let it cool down"
            )
        models = [self._names[path] for path in job.artifacts]
        plan = self._runner.plan(job, f"./{_PROGRAM}", models, self._probe(job, models))
        finished = self._execute(plan)
        self._argv = plan.argv
        after = self._look()
        results = self._runner.read(job, finished)
        why = spoiled(after, self._usual, self._cores)
        return tuple(
            replace(
                result,
                before=snapshot(before),
                after=replace(snapshot(after), waited=result.after.waited if result.after else None),
                spoiled=why,
            )
            for result in results
        )

    def settle(self) -> None:
        """Wait until the phone is cool and its clocks are free again, by current temperatures.

        Raises:
            UnstableError: It does not get there in time.
            DeviceLostError: The device does not answer.
        """
        cooling = self._options.cooling
        deadline = time.monotonic() + cooling.seconds
        pause = cooling.poll / 8
        while True:
            state = self._look()
            why = spoiled(state, self._usual, self._cores) or too_warm(state, cooling)
            if not why:
                return
            if time.monotonic() >= deadline:
                raise UnstableError(
                    f"{self._device.serial} did not get ready within {cooling.seconds:g} s: {why}",
                    hint="let it cool down: out of its case, not in the sun, not on a fast charger",
                )
            self._notify(f"waiting: {why}")
            time.sleep(pause)
            pause = min(2 * pause, cooling.poll)

    def _require_artifact(self, path: Path) -> None:
        if not path.is_file():
            raise ArtifactError(
                f"{path} is not a file that a phone runs", hint="pass an .onnx or a .tflite file"
            )
        if path.suffix not in self._runner.suffixes:
            kinds = " and ".join(self._runner.suffixes)
            raise ArtifactError(
                f"the {self._runner.name} runner takes {kinds} files, not {path.name}",
                hint="choose another runner with --runner (shufflectl runner list)",
            )

    def _require_job(self, job: Job) -> None:
        if job.accelerator not in self._runner.accelerators:
            raise UsageError(
                f"the {self._runner.name} runner does not run on {job.accelerator!r}",
                hint=f"it knows {', '.join(self._runner.accelerators)}",
            )
        if len(job.artifacts) > 1 and not self._runner.can_pair:
            raise UsageError(
                f"a process of the {self._runner.name} runner holds one model",
                hint="compare with our own runner, which holds two (docs/runner.md)",
            )
        if self._workspace is None:
            raise UsageError("the executor is not open")

    def _pin(self, job: Job) -> None:
        cores = self._affinity(job)
        if cores and cores != self._cores:
            require_cores(self._device, cores)
        self._cores = cores

    def _affinity(self, job: Job) -> tuple[int, ...]:
        known = self._state.cores if self._state is not None else ()
        if job.affinity == "big":
            return fastest(known, job.threads)
        if job.affinity == "none":
            return ()
        return parse_cores(job.affinity)

    def _look(self) -> DeviceState:
        if self._workspace is None or not self._workspace.alive:
            raise DeviceLostError(
                f"{self._device.serial} was lost in between: the connection broke or it was restarted",
                hint="reconnect it and measure again",
            )
        return self._device.snapshot()

    def _push(self, workspace: Workspace, files: Sequence[Path]) -> None:
        self._notify(f"sending {self._program.name}")
        arrived = self._device.push(self._program.path, f"{workspace.path}/{_PROGRAM}", executable=True)
        if arrived != self._program.sha256:
            raise ArtifactError(f"{self._program.path} was changed while it was sent")
        for library in self._program.libraries:
            self._notify(f"sending {library.name}")
            self._device.push(library, f"{workspace.path}/{library.name}")
        for index, path in enumerate(files):
            self._notify(f"sending {path.name}")
            # Names of ours: the user's may hold anything.
            name = f"model{index}{path.suffix}"
            self._device.push(path, f"{workspace.path}/{name}")
            self._names[path] = name

    def _forget(self) -> None:
        self._workspace = None
        self._names.clear()
        self._probes.clear()

    def _probe(self, job: Job, models: Sequence[str]) -> Finished | None:
        key = (*models, job.threads, job.accelerator, self._cores)
        if key not in self._probes:
            plan = self._runner.probe(job, f"./{_PROGRAM}", models)
            self._probes[key] = None if plan is None else self._execute(plan)
        return self._probes[key]

    def _execute(self, plan: Plan) -> Finished:
        """Run a command line, and fetch what it wrote."""
        workspace = self._workspace
        if workspace is None:
            raise UsageError("the executor is not open")
        device, options = self._device, self._options
        output = f"{workspace.path}/{plan.output}"
        if plan.output:
            device.shell(f"rm -f {output}")
        ran = device.run(
            plan.argv,
            timeout=options.timeout,
            folder=workspace.path,
            env={"LD_LIBRARY_PATH": workspace.path, **plan.env},
            cores=self._cores,
        )
        if ran.timed_out:
            raise DeviceError(
                f"the {self._runner.name} runner did not end within {options.timeout:g} s on {device.serial}",
                hint="measure fewer iterations",
            )
        if ran.status == 137:
            raise DeviceError(
                f"something on {device.serial} killed the {self._runner.name} runner",
                hint="phones kill what takes too much memory: free some, or measure a smaller model",
            )
        if ran.status in (126, 127):
            raise UnavailableError(
                f"{self._program.name} cannot be started on {device.serial}: "
                f"{ran.stderr.strip().splitlines()[-1][:200] if ran.stderr.strip() else ran.status}",
                hint="is it built for Android, with the libraries that it needs? (docs/runner.md)",
            )
        if not plan.output or ran.status != 0:
            return Finished(ran.status, ran.stdout, ran.stderr)
        if device.shell(f"[ -f {output} ]").status != 0:
            return Finished(ran.status, ran.stdout, ran.stderr)
        with tempfile.TemporaryDirectory(prefix="shufflectl-") as folder:
            local = Path(folder) / "output"
            device.pull(output, local)
            return Finished(ran.status, ran.stdout, ran.stderr, local.read_bytes())


def open_executor(
    serial: str | None,
    runner: str | None,
    *,
    options: AndroidOptions | None = None,
    notify: Callable[[str], None] = lambda _: None,
    client: Adb | None = None,
) -> AndroidExecutor:
    """Find the device and the runner.

    Args:
        serial: Which device; None for the only one.
        runner: The name of a runner in the cache, or the path of a program; None for the only one in the
            cache that the device runs.
        options: How to measure.
        notify: Told what is being done and waited for.
        client: The adb client; by default what the options say.

    Raises:
        UsageError: There are several devices or runners and none is named, or no such one.
        ArtifactError: The runner is no program for Android.
        UnavailableError: adb is missing, no device lets us in, or it does not tell exit statuses.
    """
    options = options or AndroidOptions()
    program = None if runner is None else store.find(runner, kind=options.kind)
    if program is None and not store.installed():
        raise UsageError(
            "no program is there that could run files on a phone",
            hint="shufflectl runner build makes ours, and shufflectl runner add takes it or another one: "
            "docs/android.md says how",
        )
    device = find_device(client or Adb.find(options.adb), serial or "")
    if program is None:
        program = _only_runner(device, options.kind)
    return AndroidExecutor(device, program, options, notify)


def _only_runner(device: AndroidDevice, kind: str) -> store.Program:
    """Return the only runner in the cache that the device runs."""
    abis = device.identity.abis
    known = store.installed()
    fitting = [program.name for program in known if not abis or program.abi in abis]
    if not fitting:
        there = ", ".join(f"{program.name} ({program.abi})" for program in known)
        raise UsageError(
            f"no program in the cache is for {device.serial}, which runs {', '.join(abis)}: {there}",
            hint=f"add one for {abis[0]} with shufflectl runner add (docs/android.md)",
        )
    if len(fitting) > 1:
        raise UsageError(
            f"which program is to run the files on {device.serial}?",
            hint=f"choose with --runner: {', '.join(fitting)}",
        )
    return store.find(fitting[0], kind=kind)
