"""Scorers: a network and images in, scores and maps out."""
