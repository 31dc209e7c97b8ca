#!/usr/bin/env python3
"""Run the commands that the README shows and put their real output between its markers.

usage: python scripts/readme_output.py
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
MODEL = "shufflenet_v2_x0_5"

sys.path.insert(0, str(ROOT / "tests"))
from support import mutate  # noqa: E402 - the path above makes it importable


def run(*argv: str, folder: Path, status: int) -> str:
    """Return what a command prints, without trailing blanks."""
    done = subprocess.run(
        [sys.executable, "-m", "shufflectl", *argv], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode != status:
        sys.exit(f"{argv} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    lines = [line.rstrip() for line in (done.stdout + done.stderr).splitlines()]
    return "\n".join(["$ shufflectl " + " ".join(argv), *lines])


def replace(text: str, marker: str, shown: str) -> str:
    """Return the page with another text between two markers."""
    begin, end = f"<!-- {marker}:begin -->", f"<!-- {marker}:end -->"
    block = f"{begin}\n```\n{shown.strip()}\n```\n{end}"
    return re.sub(f"{begin}.*?{end}", lambda _: block, text, flags=re.DOTALL)


def main() -> None:
    """Export, break a file, check, and write the page."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        demo = run(
            *("export", MODEL, "--weights", "digits", "--target", "all", "--images", "all", "--out", "dist"),
            folder=folder,
            status=0,
        )
        broken = f"{MODEL}-fp32.tflite"
        shutil.copy(folder / "dist" / broken, folder / broken)
        mutate.weight(folder / broken, "stage3.2.branch2.6", mutate.zero_column(7))
        failure = run("check", broken, folder=folder, status=4)
    page = README.read_text(encoding="utf-8")
    README.write_text(replace(replace(page, "demo", demo), "failure", failure), encoding="utf-8")


if __name__ == "__main__":
    main()
