#!/usr/bin/env bash
# Runs the daemon in the foreground on a root that installs a real ComfyUI on the CPU (scripts/dev/real_root.sh).
set -euo pipefail
[[ $# -eq 1 ]] || {
    echo "usage: $0 DIR" >&2
    exit 1
}
root=$1
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
scripts/dev/real_root.sh "$root"
set -a
# shellcheck disable=SC1091 # written by real_root.sh
source "$root/build.env"
set +a
cat <<END
Installing a real ComfyUI into $root (about two minutes, 1.8 GB), then starting it on port 3001. In another terminal:
  .venv/bin/comfyd status --root $root
  .venv/bin/comfyd task submit invert --wait --output . --root $root
END
exec .venv/bin/comfyd run --root "$root"
