"""Detection by rotation: a network that learned to tell rotations of normal images is unsure about other images."""
