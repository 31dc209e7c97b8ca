"""The shape of the package: which way its parts depend, what start-up imports, what the docs cover."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import shufflectl

PACKAGE = Path(shufflectl.__file__).parent
# A part may import those before it.
ORDER = ["errors", "models", "converters", "deploy", "benchmarks", "console", "render", "commands", "cli"]
HEAVY = {
    "torch",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "onnxscript",
    "coremltools",
    "ai_edge_litert",
    "numpy",
    "safetensors",
}


def part(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert 0 == node.level, f"{path}: relative import"
            found.add(str(node.module))
            if node.module == "shufflectl":
                found |= {f"shufflectl.{alias.name}" for alias in node.names}
    return {name for name in found if name.startswith("shufflectl.")}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_dependencies_run_one_way(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own.startswith("__"):
        return
    for name in imports(path):
        if part(name) not in ("__version__", own):
            assert ORDER.index(part(name)) < ORDER.index(own), f"{own} imports {name}"


@pytest.mark.parametrize("argv", [["--help"], ["export", "--help"], ["models", "--json"], ["--version"]])
def test_start_up_imports_nothing_heavy(argv: list[str]) -> None:
    code = (
        "import sys\nfrom shufflectl.cli import main\n"
        f"sys.argv = ['shufflectl', *{argv!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "[]" == done.stderr.splitlines()[-1]


def test_measuring_imports_nothing_that_converts() -> None:
    code = f"import sys, shufflectl.benchmarks.bench\nprint(sorted({HEAVY - {'numpy'}!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "[]\n" == done.stdout


def test_start_up_of_help_does_not_import_the_library() -> None:
    code = "import sys, shufflectl.cli\nprint(*(m for m in sys.modules if m.startswith('shufflectl.')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"cli", "commands", "console", "errors"} == {part(module) for module in done.stdout.split()}


def modules() -> list[str]:
    programs = {"tflite_worker.py", "round_worker.py"}  # of their own, which nothing imports
    paths = [p for p in PACKAGE.rglob("*.py") if not p.name.startswith("__") and p.name not in programs]
    packages = [p.parent for p in PACKAGE.rglob("__init__.py") if p.parent != PACKAGE]
    relative = [p.relative_to(PACKAGE.parent).with_suffix("") for p in (*paths, *packages)]
    return sorted(".".join(p.parts) for p in relative)


def test_every_module_says_what_is_public() -> None:
    for name in modules():
        module = importlib.import_module(name)
        if Path(str(module.__file__)).stat().st_size > 200:  # the marker of a package holds one docstring
            assert [] == [n for n in module.__all__ if n.startswith("_") or not hasattr(module, n)], name


def test_no_module_reaches_for_what_another_keeps_to_itself() -> None:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not str(node.module).startswith("shufflectl"):
                continue
            source = importlib.import_module(str(node.module))
            public = {*getattr(source, "__all__", ()), "__version__"}
            if hasattr(source, "__path__"):
                public |= {info.name for info in pkgutil.iter_modules(source.__path__)}
            hidden = sorted({alias.name for alias in node.names} - public)
            found += [f"{path.relative_to(PACKAGE)} takes {name} of {node.module}" for name in hidden]
    assert [] == found
