#!/usr/bin/env bash
# Makes the checkout's own .venv and installs comfyd into it in place (editable).
#
#   scripts/dev/make_venv.sh [EXTRAS]      EXTRAS like "test,lint"; PYTHON chooses the interpreter (python3)
set -euo pipefail

die() {
    echo "make_venv: $*" >&2
    exit 1
}

is_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
extras=${1:-}
python=${PYTHON:-python3}

if ! is_new_enough .venv/bin/python; then
    command -v "$python" >/dev/null ||
        die "$python is missing: install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3.12 ..."
    is_new_enough "$python" ||
        die "$("$python" --version) is too old: Python 3.11 or newer is needed, name one: make PYTHON=python3.11 ..."
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        die "$python cannot make a venv: install its venv package (Debian, Ubuntu: apt install python3-venv)"
    echo "making .venv with $("$python" --version)"
    "$python" -m venv --clear .venv
fi
.venv/bin/python -c 'import pip' 2>/dev/null || .venv/bin/python -m ensurepip >/dev/null
echo "installing comfyd${extras:+ with $extras} into .venv"
.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".${extras:+[$extras]}" ||
    die "pip could not install comfyd's dependencies: check the network and pip's index, then run make again"
