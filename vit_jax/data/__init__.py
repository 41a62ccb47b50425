"""Images from where they are to uint8 batches on the device, in an order that is a function of
(seed, examples seen)."""

from vit_jax.data import augment as augment  # registers its operations beside those of ops.py
