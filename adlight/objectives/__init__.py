"""Training objectives: pure functions to a scalar."""
