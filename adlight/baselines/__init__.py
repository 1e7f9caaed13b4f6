"""Baselines that any detector has to beat: nearest neighbours and principal components of pixels."""
