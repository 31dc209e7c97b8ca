"""MIL operations on tensors."""
