"""The thesis's GAN detector. Reading order: networks, objectives, module, inversion, scorer, detector, encoder."""
