"""The HTTP hand: what a URL returns. Writes wishes (overrides, tasks) and shows facts; starts and stops nothing."""
