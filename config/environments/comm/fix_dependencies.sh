#!/usr/bin/env bash
# Run by comfyd inside the installed environment: working folder = the environment, its venv first on PATH.
# Puts right what pip leaves broken. Safe to run again.
set -euo pipefail

# A new file in place of the old one: a package cache may share the old one's bytes with other environments.
empty() {
    rm -f "$1"
    : >"$1"
}

site_packages=$(python -c 'import sysconfig; print(sysconfig.get_path("platlib"))')

# A torch for the CPU beside torchvision and torchaudio built for CUDA: their compiled parts cannot be loaded, and the
# registrations that name them fail the import. Without both, everything written in Python works on the CPU.
if python -c 'import sys, torch; sys.exit(torch.version.cuda is not None)'; then
    if ! python -c 'import torchvision' 2>/dev/null; then
        echo "torch is for the CPU: leaving out the compiled operators of torchvision"
        empty "$site_packages/torchvision/_meta_registrations.py"
        empty "$site_packages/torchvision/_autograd_registrations.py"
    fi
    if ! python -c 'import torchaudio' 2>/dev/null; then
        echo "torch is for the CPU: leaving out the compiled operators of torchaudio"
        find "$site_packages/torchaudio/lib" -name '*.so' -delete
    fi
fi

python -c 'import torch, torchvision, torchaudio' || {
    echo "torch $(python -c 'import torch; print(torch.__version__)') and its companions do not fit together:" \
        "check TORCH_VERSION and INDEX_URL, then install the environment again" >&2
    exit 1
}
