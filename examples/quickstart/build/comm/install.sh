#!/usr/bin/env bash
# Builds the environment at /ComfyUI; comfyd runs a rewritten copy that builds below the workspace instead.
set -e

HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

mkdir -p /ComfyUI
cp -r "$HERE"/comfyui/. /ComfyUI/

cd /ComfyUI
python3 -m venv /ComfyUI/venv

mkdir -p /ComfyUI/custom_nodes
mkdir -p /ComfyUI/models/checkpoints /ComfyUI/models/loras /ComfyUI/models/vae

/ComfyUI/venv/bin/python main.py --help > /dev/null
echo "ComfyUI stand-in installed in /ComfyUI"
