#!/bin/sh
# Installs the Debian packages whose programs the tests drive, where they are missing and this user may.
# Quick where nothing is missing. Elsewhere it says what is missing: the tests that need it skip themselves,
# or, with CI set, fail.
set -eu

# A package, and the programs of which one must be there.
wanted='
adb adb
chromium chromium chromium-browser google-chrome
dpkg dpkg
gcc cc
util-linux nsenter
util-linux setpriv
util-linux unshare
'

missing=$(printf '%s' "$wanted" | while read -r package programs; do
  found=${programs:+no}
  for program in $programs; do
    if command -v "$program" >/dev/null 2>&1; then found=yes; fi
  done
  if [ "$found" = no ]; then echo "$package"; fi
done)
# Without the C library's headers a compiler builds nothing.
if ! printf '#include <stdio.h>\n' | cc -E -o /dev/null - 2>/dev/null; then
  missing="$missing libc6-dev"
fi
missing=$(printf '%s\n' $missing | sort -u | paste -sd ' ' -)
if [ -z "$missing" ]; then
  exit 0
fi

if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
  echo "some tests need these packages of Debian, or what provides the same: $missing" >&2
  echo "install them (on Debian: sudo apt-get install $missing), or these tests are skipped" >&2
  exit 0
fi
echo "installing for the tests: $missing"
export DEBIAN_FRONTEND=noninteractive
if ! { apt-get -qq update && apt-get -qq install --yes --no-install-recommends $missing >/dev/null; }; then
  echo "apt-get cannot install $missing: the tests that need it will say so" >&2
fi
