#!/usr/bin/env bash
# install_tools.sh PROGRAM...: installs what is missing of the programs that some tests need, from Debian packages of the
# same names, if this is root on Debian or Ubuntu. Elsewhere it says what to install and goes on: the tests then skip
# with that reason, and fail in CI (CI=true).
set -euo pipefail

missing=()
for program in "$@"; do
    command -v "$program" >/dev/null || missing+=("$program")
done
[[ ${#missing[@]} -gt 0 ]] || exit 0
if [[ $EUID -ne 0 ]] || ! command -v apt-get >/dev/null; then
    echo "install_tools: some tests need ${missing[*]}: install them as root (Debian: apt install ${missing[*]})" >&2
    exit 0
fi
echo "installing ${missing[*]}"
apt-get update --quiet --quiet
DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --quiet --no-install-recommends "${missing[@]}" >/dev/null
