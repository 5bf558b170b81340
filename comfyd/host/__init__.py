"""The operating system: processes and signals, guarded HTTP, files, clock, GPUs. Decides nothing. Imports only errors."""
