"""What a layer that diverges may have gone wrong by: one family of causes a module."""
