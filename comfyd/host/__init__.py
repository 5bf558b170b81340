"""The operating system: processes, guarded HTTP, files, clock, GPUs. Decides nothing. Imports only errors."""
