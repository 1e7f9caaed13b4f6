"""Detectors by rotation: a network learns which way up normal images are, and is unsure of images of anything else."""
