"""Detection by reconstruction through a bottleneck: the autoencoders with which the papers compare."""
