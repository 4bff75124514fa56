"""Measure the success of a policy and its distance to the base."""
