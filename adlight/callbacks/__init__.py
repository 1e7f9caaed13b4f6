"""Callbacks that only observe: without them, all results are the same."""
