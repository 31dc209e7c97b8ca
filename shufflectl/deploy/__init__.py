"""Run exported files, prove that they agree, describe them in a manifest."""
