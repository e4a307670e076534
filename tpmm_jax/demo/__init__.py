"""A world small enough to learn in seconds, in which the true reward is known."""
