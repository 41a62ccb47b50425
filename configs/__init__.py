"""Recipes: `get_config(arguments)` sets what differs from `vit_jax.config.base`."""
