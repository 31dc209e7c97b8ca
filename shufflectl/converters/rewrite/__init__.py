"""Channel provenance and the lowerings of channel shuffles: the same function, moved in fewer bytes."""
