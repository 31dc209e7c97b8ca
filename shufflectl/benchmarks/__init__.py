"""Latency: how it is measured, what is kept of it, and how two measurements are compared."""
