"""Hydra plugin: `hydra/launcher=local`."""
