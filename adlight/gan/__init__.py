"""The GAN detector. Reading order: networks, residual, objectives, module, inversion, scorer, detector, encoder."""
