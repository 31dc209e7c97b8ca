"""The Core ML target: ML programs, built node by node."""
