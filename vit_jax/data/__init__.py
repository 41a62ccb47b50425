"""Images from where they are to uint8 batches on the device, in an order that is a function of
(seed, examples seen)."""

# They register their operations beside those of ops.py.
from vit_jax.data import augment as augment
from vit_jax.data import box_ops as box_ops
from vit_jax.data import views as views
