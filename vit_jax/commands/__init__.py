"""The commands of `vit`, one file each; `vit_jax.cli` lists them."""
