"""Hydra plugin: `hydra/sweeper=binventory_grid`."""
