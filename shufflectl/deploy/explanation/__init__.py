"""What becomes of every channel shuffle of a model: where it is, what it moves, the form it gets and why."""
