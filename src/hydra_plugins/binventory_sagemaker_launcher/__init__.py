"""Hydra plugin: `hydra/launcher=sagemaker` and its presets."""
