"""Detectors by reconstruction through a bottleneck: the autoencoders that the papers compare with."""
