"""What a model sees, as arrays: attention, evidence, positions, filters, tokens, neighbours; and
what a masked autoencoder reconstructs.

    model, params, _ = vit_jax.load_pretrained("runs/flowers")
    seen = look.see(model, params, images)        # images as uint8 [batch, height, width, channels]
    look.rollout(seen.attention)

`vit look` makes a page of them (`page.py`).
"""

from vit_jax.look.attention import distance, evidence, of_boxes, read, rollout
from vit_jax.look.embeddings import (
    filters,
    nearest,
    position_similarity,
    positions,
    token_colours,
)
from vit_jax.look.reconstruction import Reconstructed, reconstruct
from vit_jax.look.seen import Seen, see

__all__ = [
    "Reconstructed", "Seen", "distance", "evidence", "filters", "nearest", "of_boxes",
    "position_similarity", "positions", "read", "reconstruct", "rollout", "see", "token_colours",
]  # fmt: skip
