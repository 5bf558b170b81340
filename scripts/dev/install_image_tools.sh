#!/usr/bin/env bash
# Installs what the image tests need: buildah and debootstrap, if they are missing and this is root on Debian or Ubuntu.
# Elsewhere it says what to install and goes on: the tests then skip with that reason, and fail in CI (CI=true).
set -euo pipefail

PACKAGES=(buildah debootstrap)

missing=()
for package in "${PACKAGES[@]}"; do
    command -v "$package" >/dev/null || missing+=("$package")
done
[[ ${#missing[@]} -gt 0 ]] || exit 0
if [[ $EUID -ne 0 ]] || ! command -v apt-get >/dev/null; then
    echo "install_image_tools: the image tests need ${missing[*]}: install them as root (Debian: apt install ${missing[*]})" >&2
    exit 0
fi
echo "installing ${missing[*]}"
apt-get update --quiet --quiet
DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --quiet --no-install-recommends "${missing[@]}" >/dev/null
