"""The training algorithms as LightningModules."""
