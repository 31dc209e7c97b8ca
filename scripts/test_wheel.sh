#!/usr/bin/env bash
# Build the wheel, look into it, install it into an environment of its own, run the tests against it.
# usage: [PYTHON=python3] scripts/test_wheel.sh BIN_OF_THE_DEVELOPMENT_ENVIRONMENT [PYTEST_ARGUMENT...]
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$1
shift
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$bin/python" -m build --wheel --outdir "$work" . >"$work/build.log" || { cat "$work/build.log" >&2; exit 1; }
wheel=$(echo "$work"/shufflectl-*.whl)
foreign=$("$bin/python" -m zipfile -l "$wheel" | tail -n +2 | awk '{print $1}' | grep -vE '^shufflectl(/|-[^/]*\.dist-info/)' || true)
if [ -n "$foreign" ]; then
  echo "the wheel holds more than the package:" "$foreign" >&2
  exit 1
fi

"${PYTHON:-python3}" -m venv "$work/env"
"$work/env/bin/python" -m pip install --quiet -c constraints.txt "$wheel[dev]"
# The tests run from a folder without the source tree, so that only the installed package can be imported.
cp -r tests pyproject.toml scripts docs README.md CHANGELOG.md CONTRIBUTING.md LICENSE Makefile constraints.txt "$work"
cd "$work"
"$work/env/bin/python" -m pytest -n auto --dist loadfile "$@"
