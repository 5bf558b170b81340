#!/usr/bin/env bash
# Installs ComfyUI with its own venv to /ComfyUI. comfyd copies this folder, puts an environment's own path in the
# place of /ComfyUI and runs it; an image build runs it as it stands. Custom nodes and models are comfyd's work.
#
# Everything it can be told (an empty value counts as given, except where it says otherwise):
#   COMFYUI_VERSION     tag or branch (v0.3.40)
#   COMFYUI_COMMIT      exact commit; wins over COMFYUI_VERSION if not empty
#   COMFYUI_REPOSITORY  what git fetches from (upstream)
#   TORCH_VERSION       2.7.0+cu128, 2.6.0+cu124, 2.7.0+cpu, or without a suffix: what pip's index has (2.7.0+cu128);
#                       none: no torch here, fix_dependencies.sh or requirements.txt brings it
#   INDEX_URL           index for torch; unset: derived from the suffix; empty: pip's own configuration
#   XFORMERS_VERSION    unset: the one that fits a CUDA torch; empty: none. A torch for the CPU never gets one
#   VENV_PATH           where the venv goes (/ComfyUI/venv)
#   PYTHON              interpreter that makes the venv (python3)
#   SKIP_MODEL_DOWNLOAD is accepted for all build scripts; this one downloads no models
set -euo pipefail

COMFYUI_VERSION=${COMFYUI_VERSION:-v0.3.40}
COMFYUI_REPOSITORY=${COMFYUI_REPOSITORY:-https://github.com/comfyanonymous/ComfyUI.git}
TORCH_VERSION=${TORCH_VERSION:-2.7.0+cu128}
VENV_PATH=${VENV_PATH:-/ComfyUI/venv}
PYTHON=${PYTHON:-python3}

step() {
    echo "COMFYUI: $*"
}

die() {
    echo "COMFYUI: error: $*" >&2
    exit 1
}

# "cu128" of "2.7.0+cu128"; empty without a suffix.
torch_build() {
    [[ $TORCH_VERSION != *+* ]] || echo "${TORCH_VERSION#*+}"
}

index_url() {
    local build
    build=$(torch_build)
    if [[ -n ${INDEX_URL+given} ]]; then
        echo "$INDEX_URL"
    elif [[ -n $build ]]; then
        echo "https://download.pytorch.org/whl/$build"
    fi
}

# "torchvision torchaudio" versions released with a torch; nothing if not known, then pip finds a fitting pair.
companions() {
    case ${TORCH_VERSION%%+*} in
    2.6.0) echo "0.21.0 2.6.0" ;;
    2.7.0) echo "0.22.0 2.7.0" ;;
    2.7.1) echo "0.22.1 2.7.1" ;;
    2.8.0) echo "0.23.0 2.8.0" ;;
    2.9.0) echo "0.24.0 2.9.0" ;;
    2.9.1) echo "0.24.1 2.9.1" ;;
    2.13.0) echo "0.28.0 2.11.0" ;;
    esac
}

xformers_version() {
    [[ $(torch_build) == cu* ]] || return 0
    if [[ -n ${XFORMERS_VERSION+given} ]]; then
        echo "$XFORMERS_VERSION"
        return
    fi
    case ${TORCH_VERSION%%+*} in
    2.6.0) echo "0.0.29.post3" ;;
    2.7.0) echo "0.0.30" ;;
    esac
}

check_tools() {
    command -v git >/dev/null || die "git is missing: install it (Debian: apt install git)"
    command -v "$PYTHON" >/dev/null || die "$PYTHON is missing: install Python or set PYTHON"
    "$PYTHON" -c "import venv, ensurepip" 2>/dev/null ||
        die "$PYTHON cannot make a venv: install it (Debian: apt install python3-venv)"
}

fetch_source() {
    local ref=${COMFYUI_COMMIT:-$COMFYUI_VERSION}
    step "fetching $ref from $COMFYUI_REPOSITORY"
    git init --quiet /ComfyUI
    cd /ComfyUI
    git remote add origin "$COMFYUI_REPOSITORY" 2>/dev/null || git remote set-url origin "$COMFYUI_REPOSITORY"
    GIT_TERMINAL_PROMPT=0 git fetch --quiet --depth 1 origin "$ref" ||
        die "cannot fetch $ref: check COMFYUI_VERSION or COMFYUI_COMMIT, COMFYUI_REPOSITORY and the network"
    git -c advice.detachedHead=false checkout --quiet --detach FETCH_HEAD
    step "checked out $(git rev-parse HEAD)"
}

make_venv() {
    step "making the venv $VENV_PATH"
    "$PYTHON" -m venv "$VENV_PATH"
    # wherever it lies, the environment is used through its own venv folder
    [[ $VENV_PATH -ef /ComfyUI/venv ]] || ln -sfn "$VENV_PATH" /ComfyUI/venv
    # shellcheck disable=SC1091 # written by the line above
    source "$VENV_PATH/bin/activate"
}

install_torch() {
    local suffix="" vision audio xformers index packages
    if [[ $TORCH_VERSION == none ]]; then
        step "TORCH_VERSION=none: installing no torch"
        return
    fi
    [[ $TORCH_VERSION != *+* ]] || suffix="+$(torch_build)"
    read -r vision audio < <(companions) || true
    packages=("torch==$TORCH_VERSION" "torchvision${vision:+==$vision$suffix}" "torchaudio${audio:+==$audio$suffix}")
    xformers=$(xformers_version)
    [[ -z $xformers ]] || packages+=("xformers==$xformers")
    index=$(index_url)
    step "installing ${packages[*]}${index:+ from $index}"
    pip install ${index:+--index-url "$index"} "${packages[@]}" ||
        die "pip cannot install torch $TORCH_VERSION: check TORCH_VERSION, XFORMERS_VERSION, INDEX_URL and the network"
}

install_requirements() {
    step "installing requirements.txt"
    # torch is held at the version above; requests and uv are what nodes and their installers expect to find
    pip freeze | { grep -E "^(torch|torchvision|torchaudio|xformers)==" || true; } >"$VENV_PATH/constraints.txt"
    pip install -r requirements.txt -c "$VENV_PATH/constraints.txt" requests uv ||
        die "pip cannot install ComfyUI's requirements.txt: see the lines above"
}

check_tools
fetch_source
make_venv
install_torch
install_requirements
step "installed to /ComfyUI"
