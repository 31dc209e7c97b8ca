"""Numeric parity between formats."""
