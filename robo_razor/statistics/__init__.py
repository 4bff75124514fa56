"""Numbers in, intervals out: pure functions."""
