# An image of comfyd and one ready ComfyUI. Every value is an argument: newer versions need no edit here.
# docker-bake.hcl sets them for each published tag; the defaults below are those of its default target.
# docs/image.md explains the arguments, the ports and what runs at the start.
ARG BASE_IMAGE=ashleykza/runpod-base:2.4.2-python3.12-cuda12.8.1-torch2.7.0
FROM ${BASE_IMAGE}

# What the scripts, `docker exec` and people look for; installed only where the base lacks it. A base with a python3 of
# its own keeps it, if that can make venvs.
# hadolint ignore=DL3008
RUN set -eu; \
    for tool in bash:bash curl:curl git:git lsof:lsof netstat:net-tools ps:procps tini:tini; do \
        command -v "${tool%:*}" >/dev/null 2>&1 || set -- "$@" "${tool#*:}"; \
    done; \
    python3 -c 'import ensurepip, venv' 2>/dev/null || set -- "$@" python3 python3-venv; \
    [ -e /etc/ssl/certs/ca-certificates.crt ] || set -- "$@" ca-certificates; \
    if [ $# -gt 0 ]; then \
        apt-get update; \
        DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"; \
        rm -rf /var/lib/apt/lists/*; \
    fi; \
    python3 -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' \
        || { echo "BASE_IMAGE needs a python3 of 3.11 or newer that can make venvs" >&2; exit 1; }

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# ComfyUI, installed by the build script of one workflow: /build/<WORKFLOW>/install.sh
ARG WORKFLOW=comm
ARG TORCH_VERSION=2.7.0+cu128
ARG XFORMERS_VERSION=0.0.30
ARG INDEX_URL=https://download.pytorch.org/whl/cu128
ARG COMFYUI_VERSION=v0.3.40
ARG COMFYUI_COMMIT=
ARG COMFYUI_REPOSITORY=https://github.com/comfyanonymous/ComfyUI.git
ARG FACEFUSION_VERSION=3.0.0
ARG VENV_PATH=/ComfyUI/venv
COPY build/${WORKFLOW} /build/${WORKFLOW}
WORKDIR /build/${WORKFLOW}
RUN PIP_NO_CACHE_DIR=1 SKIP_MODEL_DOWNLOAD=true ./install.sh

# -- Cached models: these lines may be removed. CACHE_MODELS=true runs the build folder's own cache_models.sh, which loads
# -- models into /ComfyUI/models; the machine that builds then needs about 32 GB of memory.
ARG CACHE_MODELS=false
RUN case "$CACHE_MODELS" in \
        true) [ -x cache_models.sh ] \
            || { echo "build/$WORKFLOW has no cache_models.sh: build with CACHE_MODELS=false" >&2; exit 1; }; \
            ./cache_models.sh ;; \
        false) ;; \
        *) echo "CACHE_MODELS=$CACHE_MODELS: must be true or false" >&2; exit 1 ;; \
    esac
# -- End of cached models.

# comfyd in a venv of its own, so that nothing an environment installs can break it.
COPY LICENSE README.md pyproject.toml /usr/local/src/comfyd/
COPY comfyd /usr/local/src/comfyd/comfyd
RUN python3 -m venv /opt/comfyd && \
    /opt/comfyd/bin/pip install --no-cache-dir '/usr/local/src/comfyd[gpu]' && \
    ln -s /opt/comfyd/bin/comfyd /usr/local/bin/comfyd

# All build scripts and environments, for installs at run time. The stock file launches nothing by itself.
COPY build /build
COPY config /config
COPY config/instances.stock.json /instances.json

# Handed to build scripts at run time as well: an environment installed later gets the same versions.
ENV WORKFLOW=${WORKFLOW} \
    TORCH_VERSION=${TORCH_VERSION} \
    XFORMERS_VERSION=${XFORMERS_VERSION} \
    INDEX_URL=${INDEX_URL} \
    COMFYUI_VERSION=${COMFYUI_VERSION} \
    COMFYUI_COMMIT=${COMFYUI_COMMIT} \
    COMFYUI_REPOSITORY=${COMFYUI_REPOSITORY} \
    FACEFUSION_VERSION=${FACEFUSION_VERSION}

ARG APP_MANAGER_VERSION=1.2.2
ARG CIVITAI_DOWNLOADER_VERSION=2.1.0
ARG RELEASE=v0.3.40
ENV APP_MANAGER_VERSION=${APP_MANAGER_VERSION} \
    CIVITAI_DOWNLOADER_VERSION=${CIVITAI_DOWNLOADER_VERSION} \
    TEMPLATE_VERSION=${RELEASE} \
    COMFYD_INSTANCE_LISTEN=0.0.0.0

LABEL org.opencontainers.image.title="comfyd" \
      org.opencontainers.image.description="Keeps the right ComfyUI instances alive, installs what is missing and never loses a task" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${RELEASE}"

# 3001-3011 ComfyUI (published as 3000-3010), 8001 the API
EXPOSE 3001-3011 8001
WORKDIR /workspace
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s --retries=3 CMD ["comfyd", "health"]
ENTRYPOINT ["tini", "--"]
CMD ["comfyd", "run"]
