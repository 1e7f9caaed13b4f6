"""The GAN detector. Reading order: networks, objectives, module, terms, inversion, scorer, detector, encoder."""
