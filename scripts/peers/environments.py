"""The environments that other converters and runtimes live in, built from their pinned requirements."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

PEERS = Path(__file__).resolve().parent
OWN = "this"
"""The environment that the script itself runs in."""


def requirements(name: str) -> Path:
    """Return the file with an environment's pins."""
    return PEERS / f"requirements-{name}.txt"


def interpreters(folder: Path, names: Iterable[str]) -> dict[str, Path]:
    """Build environments where they are not there yet, or their pins have changed; return each interpreter.

    Args:
        folder: Where they are kept.
        names: Each has a file of pins in this folder.

    Raises:
        subprocess.CalledProcessError: An environment cannot be built.
    """
    pythons = {OWN: Path(sys.executable)}
    for name in dict.fromkeys(names):
        pins = requirements(name)
        home = folder.expanduser().resolve() / name
        stamp = home / "requirements.sha256"
        digest = hashlib.sha256(pins.read_bytes()).hexdigest()
        python = home / ("Scripts" if os.name == "nt" else "bin") / "python"
        if not stamp.is_file() or stamp.read_text(encoding="utf-8") != digest:
            print(f"building the environment {home} from {pins.name}", file=sys.stderr)
            subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
            subprocess.run([str(python), "-m", "pip", "install", "-q", "-r", str(pins)], check=True)
            stamp.write_text(digest, encoding="utf-8")
        pythons[name] = python
    return pythons


def versions(pythons: Mapping[str, Path], packages: Mapping[str, Sequence[str]]) -> dict[str, dict[str, str]]:
    """Return the versions of packages, by environment."""
    code = (
        "import json, sys, importlib.metadata as m\n"
        "print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    )
    found: dict[str, dict[str, str]] = {}
    for environment, names in packages.items():
        command = [str(pythons[environment]), "-c", code, *names]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[environment] = json.loads(done.stdout)
    return found
