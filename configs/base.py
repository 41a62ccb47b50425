"""Every key with its default. `vit train --help` lists them with what they mean.

vit describe --config=base.py --config.total_steps=100
"""

from vit_jax.config import base


def get_config():
    return base()
