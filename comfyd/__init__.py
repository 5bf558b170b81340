"""comfyd keeps the right ComfyUI instances alive on a GPU box and never loses a task."""

__version__ = "0.1.0"
