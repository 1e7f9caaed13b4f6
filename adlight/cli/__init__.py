"""The command line: Hydra around a task, errors, sweeps."""
