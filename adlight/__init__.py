"""adlight: experiments in industrial image anomaly detection with PyTorch Lightning and Hydra."""

__version__ = "0.2.0"
