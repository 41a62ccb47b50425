"""Every key with its default and a comment: see vit_jax/config.py.

vit describe --config=base.py --config.total_steps=100
"""

from vit_jax.config import base


def get_config():
    return base()
