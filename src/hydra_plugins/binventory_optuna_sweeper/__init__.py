"""Hydra plugin: `hydra/sweeper=binventory_optuna`."""
