"""A task of one's own, in one file: the mean colours of an image's four quadrants."""

import jax.numpy as jnp

from vit_jax.tasks import Task


class Quadrants(Task):
    """Regresses the mean of each quadrant, in 0 … 1; it needs no labels."""

    best = "min error"

    @staticmethod
    def outputs(config, facts):
        return 4 * facts.channels

    def errors(self, params, batch, **how):
        """Squared error of each example."""
        images = batch["image"].astype(jnp.float32) / 255
        size, height, width, channels = images.shape
        halves = images.reshape(size, 2, height // 2, 2, width // 2, channels)
        wanted = halves.mean(axis=(2, 4)).reshape(size, -1)
        shown = self.model.data_config.normalise(batch["image"])
        told, _ = self.model.apply(params, shown, **how)
        return jnp.square(told - wanted)

    def loss(self, params, batch, key, *, gather=None, held=None):
        errors = self.errors(params, batch, train=True, key=key, gather=gather)
        return errors.mean(), {"top": errors[:, : errors.shape[1] // 2].mean()}

    def judge(self, gather=None):
        def rows(params, batch):
            return {"error": self.errors(params, batch, gather=gather).mean(axis=-1)}

        return {"rows": rows}
