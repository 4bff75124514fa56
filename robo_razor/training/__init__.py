"""Change a policy: the training loop, methods, and the recipe of the base."""
