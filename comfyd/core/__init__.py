"""All decisions: pure, synchronous, no clock, no I/O. Imports only model and errors."""
