"""Calls of the command line in processes of their own that need not import torch again.

Most calls of a test run spend their time on importing torch and what comes with it. `Nursery` keeps a process
that has imported them (`MODULES`: nothing of ours, and nothing that starts threads) and forks one for each
call. `command` is what `subprocess` calls in place of ``python -m shufflectl``: a client that hands its
standard streams, environment, folder and words to such a process and ends as it ends.

Three things differ from a new interpreter, and tests about them take one: modules in the current folder do
not come before those of `MODULES`, all calls have the same hash seed, and limits that a test has set for its
own process do not hold.
"""

import atexit
import gc
import json
import os
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["Nursery", "keep_translations"]

MODULES = (
    *("numpy", "onnx", "onnx_ir", "onnxscript", "onnxscript.function_libs.torch_lib.ops"),
    *("torch", "torch.onnx", "torch.export._trace"),
)


class Nursery:
    """A process that forks others, for as long as this one lives."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="nursery-")
        self._address = Path(self._folder.name) / "socket"
        self._process = subprocess.Popen(
            [sys.executable, __file__, "serve", self._address], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        assert b"ready\n" == self._process.stdout.readline()

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    @property
    def command(self) -> list[str]:
        """The words that stand for ``python -m shufflectl``."""
        return [sys.executable, "-I", "-S", __file__, "call", str(self._address)]

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()
        self._folder.cleanup()


def call(address: str, words: list[str]) -> int:
    """Run the command line in a process that is forked for it, and return its status."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        request = json.dumps({"words": words, "env": dict(os.environ), "folder": str(Path.cwd())}).encode()
        socket.send_fds(server, [len(request).to_bytes(4, "big")], [0, 1, 2])
        server.sendall(request)
        status = int(server.makefile().read())
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


def keep_translations() -> None:
    """Let torch's exporter parse onnxscript's translations once; it would parse them all in each export."""
    from torch.onnx._internal._lazy_import import onnxscript_apis

    onnxscript_apis.get_torchlib_ops = cache(onnxscript_apis.get_torchlib_ops)
    onnxscript_apis.get_torchlib_ops()


def serve(address: str) -> None:
    """Fork a process for every call, and tell how it ended; return in that process, as the call wants it."""
    for module in MODULES:
        __import__(module)
    keep_translations()
    gc.freeze()  # what is imported lives as long as each process
    calls = socket.socket(socket.AF_UNIX)
    calls.bind(address)
    calls.listen()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    running: dict[int, tuple[int, socket.socket]] = {}  # by a file descriptor of the process
    while True:
        clients = {client: ended for ended, (_, client) in running.items()}
        ready, _, _ = select.select([sys.stdin, calls, *running, *clients], [], [])
        if sys.stdin in ready:  # whoever wanted the calls is gone
            os._exit(0)
        for ended in [found for found in ready if found in running]:
            process, client = running.pop(ended)
            _, status = os.waitpid(process, 0)
            os.close(ended)
            with client, suppress(OSError):
                client.sendall(str(os.waitstatus_to_exitcode(status)).encode())
        for client, ended in clients.items():
            if client in ready and ended in running:  # it does not wait any more
                os.kill(running[ended][0], signal.SIGKILL)
        if calls in ready:
            client, _ = calls.accept()
            size, streams, _, _ = socket.recv_fds(client, 4, 3)
            request = json.loads(client.makefile("rb").read(int.from_bytes(size, "big")))
            process = os.fork()
            if process == 0:
                for held in (calls, client, *(other for _, other in running.values())):
                    held.close()
                for ended in running:
                    os.close(ended)
                become(request, streams)
                return
            for stream in streams:
                os.close(stream)
            running[os.pidfd_open(process)] = (process, client)


def become(request: dict[str, Any], streams: list[int]) -> None:
    """Take on a call's streams, environment, folder and words."""
    for target, stream in enumerate(streams):
        os.dup2(stream, target)
        os.close(stream)
    sys.stdin = os.fdopen(0)
    sys.stdout = os.fdopen(1, "w")
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace")
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["folder"])
    sys.argv[1:] = request["words"]
    sys.path[0] = request["folder"]
    random.seed()


def run() -> None:
    """Run the command line as ``python -m shufflectl`` does, but end without taking torch apart, slowly."""
    status = 1

    def end() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    atexit.register(end)  # the first to be registered is the last to be called
    try:
        runpy.run_module("shufflectl", run_name="__main__", alter_sys=True)
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            status = error.code or 0
        raise
    status = 0


if __name__ == "__main__":
    if sys.argv[1] == "call":
        sys.exit(call(sys.argv[2], sys.argv[3:]))
    serve(sys.argv[2])
    run()
