#!/usr/bin/env bash
# Makes DIR a root for `comfyd run --root DIR` with everything that installs a real ComfyUI on the CPU: examples/real,
# the shipping build/comm and fix_dependencies.sh, and a local git repository of ComfyUI.
#
#   scripts/dev/real_root.sh DIR      again on the same DIR: instances.json and what is installed are left as they are
#
# DIR/build.env then holds the variables that the daemon hands to install.sh. TORCH_VERSION and INDEX_URL may be set:
# TORCH_VERSION=2.13.0+cpu takes torch from PyTorch's own index of CPU builds instead of pip's index.
set -euo pipefail

[[ $# -eq 1 ]] || {
    echo "usage: $0 DIR" >&2
    exit 1
}
mkdir -p "$1"
root=$(cd "$1" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

tag=$(scripts/dev/local_comfyui_repository.sh "$root/comfyui-repository" | tail -n 1)
mkdir -p "$root/build"
cp -R build/comm "$root/build/"
cp -R examples/real/config "$root/"
cp config/environments/comm/fix_dependencies.sh "$root/config/environments/comm/"
[[ -e $root/instances.json ]] || cp examples/real/instances.json "$root/"
{
    printf 'COMFYUI_REPOSITORY=%q\n' "$root/comfyui-repository"
    printf 'COMFYUI_VERSION=%q\n' "$tag"
    printf 'TORCH_VERSION=%q\n' "${TORCH_VERSION:-2.13.0}"
    [[ -z ${INDEX_URL+given} ]] || printf 'INDEX_URL=%q\n' "$INDEX_URL"
} >"$root/build.env"
