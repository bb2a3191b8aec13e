"""BPF programs, and a typed Python view of each of their maps."""
