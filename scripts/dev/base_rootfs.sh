#!/usr/bin/env bash
# Makes a small Debian with Python as a tar file: the base that the image tests build on. Run as root.
#
#   scripts/dev/base_rootfs.sh FILE.tar      a finished FILE.tar is left as it is; MIRROR names another than debootstrap's
set -euo pipefail

SUITE=bookworm
MIRROR=${MIRROR:-}

[[ $# -eq 1 ]] || {
    echo "usage: $0 FILE.tar" >&2
    exit 1
}
target=$1
[[ ! -e $target ]] || exit 0
mkdir -p "$(dirname "$target")"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates "$SUITE" "$scratch/root" ${MIRROR:+"$MIRROR"} \
    >"$scratch/log" 2>&1 || {
    tail -n 20 "$scratch/log" >&2
    echo "base_rootfs: debootstrap failed: is ${MIRROR:-its default mirror} reachable? MIRROR=URL names another" >&2
    exit 1
}
rm -rf "$scratch"/root/var/cache/apt/* "$scratch"/root/var/lib/apt/lists/* "$scratch"/root/usr/share/{doc,locale,man}/*
tar --create --file "$target.$$.part" --directory "$scratch/root" --numeric-owner .
mv "$target.$$.part" "$target"
