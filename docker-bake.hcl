# Edit these two, or give them in the environment: REGISTRY_USER=me RELEASE=my-release docker buildx bake --push
variable "REGISTRY_USER" {
  default = "your-registry-user"
}
variable "RELEASE" {
  default = "v0.3.40"
}

# Everything else has a value that works.
variable "REGISTRY" {
  default = "docker.io"
}
variable "APP" {
  default = "comfyui"
}
variable "BASE_IMAGE_REPOSITORY" {
  default = "ashleykza/runpod-base"
}
variable "BASE_IMAGE_VERSION" {
  default = "2.4.2"
}
variable "COMFYUI_VERSION" {
  default = "v0.3.40"
}
variable "APP_MANAGER_VERSION" {
  default = "1.2.2"
}
variable "CIVITAI_DOWNLOADER_VERSION" {
  default = "2.1.0"
}
variable "FACEFUSION_VERSION" {
  default = "3.0.0"
}
variable "CACHE_MODELS" {
  default = "false"
}

group "default" {
  targets = ["cu128-py312"]
}
group "comm" {
  targets = ["cu124-py311", "cu124-py312", "cu128-py311", "cu128-py312"]
}
group "facefusion" {
  targets = ["facefusion-cu124-py312", "facefusion-cu128-py312"]
}
group "aua-us" {
  targets = ["aua-us-cu124-py312", "aua-us-cu128-py312"]
}
group "aua-sp" {
  targets = ["aua-sp-cu124-py312", "aua-sp-cu128-py312"]
}
group "all" {
  targets = ["comm", "facefusion", "aua-us", "aua-sp"]
}

# What the targets have in common; not built by themselves.
target "_image" {
  context    = "."
  dockerfile = "Dockerfile"
  platforms  = ["linux/amd64"]
  args = {
    RELEASE                    = "${RELEASE}"
    COMFYUI_VERSION            = "${COMFYUI_VERSION}"
    APP_MANAGER_VERSION        = "${APP_MANAGER_VERSION}"
    CIVITAI_DOWNLOADER_VERSION = "${CIVITAI_DOWNLOADER_VERSION}"
    FACEFUSION_VERSION         = "${FACEFUSION_VERSION}"
    CACHE_MODELS               = "${CACHE_MODELS}"
    VENV_PATH                  = "/ComfyUI/venv"
  }
}

# CUDA 12.4 on Ubuntu 22.04
target "_cu124" {
  inherits = ["_image"]
  args = {
    TORCH_VERSION    = "2.6.0+cu124"
    XFORMERS_VERSION = "0.0.29.post3"
    INDEX_URL        = "https://download.pytorch.org/whl/cu124"
  }
}

# CUDA 12.8 on Ubuntu 22.04
target "_cu128" {
  inherits = ["_image"]
  args = {
    TORCH_VERSION    = "2.7.0+cu128"
    XFORMERS_VERSION = "0.0.30"
    INDEX_URL        = "https://download.pytorch.org/whl/cu128"
  }
}

# Base images with Python 3.11.12 (py311) and 3.12.9 (py312)
target "_cu124-py311" {
  inherits = ["_cu124"]
  args = {
    BASE_IMAGE = "${BASE_IMAGE_REPOSITORY}:${BASE_IMAGE_VERSION}-python3.11-cuda12.4.1-torch2.6.0"
  }
}
target "_cu124-py312" {
  inherits = ["_cu124"]
  args = {
    BASE_IMAGE = "${BASE_IMAGE_REPOSITORY}:${BASE_IMAGE_VERSION}-python3.12-cuda12.4.1-torch2.6.0"
  }
}
target "_cu128-py311" {
  inherits = ["_cu128"]
  args = {
    BASE_IMAGE = "${BASE_IMAGE_REPOSITORY}:${BASE_IMAGE_VERSION}-python3.11-cuda12.8.1-torch2.7.0"
  }
}
target "_cu128-py312" {
  inherits = ["_cu128"]
  args = {
    BASE_IMAGE = "${BASE_IMAGE_REPOSITORY}:${BASE_IMAGE_VERSION}-python3.12-cuda12.8.1-torch2.7.0"
  }
}

# comm
target "cu124-py311" {
  inherits = ["_cu124-py311"]
  args     = { WORKFLOW = "comm" }
  tags = [
    "${REGISTRY}/${REGISTRY_USER}/${APP}:cu124-py311-${RELEASE}",
    "${REGISTRY}/${REGISTRY_USER}/${APP}:cu124-py311-latest",
  ]
}
target "cu124-py312" {
  inherits = ["_cu124-py312"]
  args     = { WORKFLOW = "comm" }
  tags = [
    "${REGISTRY}/${REGISTRY_USER}/${APP}:cu124-py312-${RELEASE}",
    "${REGISTRY}/${REGISTRY_USER}/${APP}:cu124-py312-latest",
  ]
}
target "cu128-py311" {
  inherits = ["_cu128-py311"]
  args     = { WORKFLOW = "comm" }
  tags = [
    "${REGISTRY}/${REGISTRY_USER}/${APP}:cu128-py311-${RELEASE}",
    "${REGISTRY}/${REGISTRY_USER}/${APP}:cu128-py311-latest",
  ]
}
target "cu128-py312" {
  inherits = ["_cu128-py312"]
  args     = { WORKFLOW = "comm" }
  tags = [
    "${REGISTRY}/${REGISTRY_USER}/${APP}:cu128-py312-${RELEASE}",
    "${REGISTRY}/${REGISTRY_USER}/${APP}:cu128-py312-latest",
    "${REGISTRY}/${REGISTRY_USER}/${APP}:latest",
  ]
}

# facefusion
target "facefusion-cu124-py312" {
  inherits = ["_cu124-py312"]
  args     = { WORKFLOW = "facefusion" }
  tags = [
    "${REGISTRY}/${REGISTRY_USER}/${APP}:facefusion-cu124-py312-${RELEASE}",
    "${REGISTRY}/${REGISTRY_USER}/${APP}:facefusion-cu124-py312-latest",
  ]
}
target "facefusion-cu128-py312" {
  inherits = ["_cu128-py312"]
  args     = { WORKFLOW = "facefusion" }
  tags = [
    "${REGISTRY}/${REGISTRY_USER}/${APP}:facefusion-cu128-py312-${RELEASE}",
    "${REGISTRY}/${REGISTRY_USER}/${APP}:facefusion-cu128-py312-latest",
  ]
}

# aua-us
target "aua-us-cu124-py312" {
  inherits = ["_cu124-py312"]
  args     = { WORKFLOW = "aua-us" }
  tags = [
    "${REGISTRY}/${REGISTRY_USER}/${APP}:aua-us-cu124-py312-${RELEASE}",
    "${REGISTRY}/${REGISTRY_USER}/${APP}:aua-us-cu124-py312-latest",
  ]
}
target "aua-us-cu128-py312" {
  inherits = ["_cu128-py312"]
  args     = { WORKFLOW = "aua-us" }
  tags = [
    "${REGISTRY}/${REGISTRY_USER}/${APP}:aua-us-cu128-py312-${RELEASE}",
    "${REGISTRY}/${REGISTRY_USER}/${APP}:aua-us-cu128-py312-latest",
  ]
}

# aua-sp
target "aua-sp-cu124-py312" {
  inherits = ["_cu124-py312"]
  args     = { WORKFLOW = "aua-sp" }
  tags = [
    "${REGISTRY}/${REGISTRY_USER}/${APP}:aua-sp-cu124-py312-${RELEASE}",
    "${REGISTRY}/${REGISTRY_USER}/${APP}:aua-sp-cu124-py312-latest",
  ]
}
target "aua-sp-cu128-py312" {
  inherits = ["_cu128-py312"]
  args     = { WORKFLOW = "aua-sp" }
  tags = [
    "${REGISTRY}/${REGISTRY_USER}/${APP}:aua-sp-cu128-py312-${RELEASE}",
    "${REGISTRY}/${REGISTRY_USER}/${APP}:aua-sp-cu128-py312-latest",
  ]
}
