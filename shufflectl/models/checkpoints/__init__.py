"""Checkpoints: reading files that nobody vouches for, and mapping other libraries' layouts to ours."""
