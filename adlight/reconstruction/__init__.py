"""Detectors that reconstruct an image through a bottleneck: the autoencoders that the papers compare with."""
