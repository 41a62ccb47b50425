"""Any sizes that are accepted give logits [batch, classes]: traced, with nothing computed."""

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.tiny_vit import tiny

models = st.fixed_dictionaries(
    {
        "grid": st.tuples(st.integers(1, 5), st.integers(1, 5)),
        "patch_size": st.integers(1, 6),
        "channels": st.integers(1, 5),
        "num_classes": st.integers(0, 9),
        "pool": st.sampled_from(["cls", "gap", "map"]),
        "posemb": st.sampled_from(["learned", "sincos2d"]),
        "registers": st.integers(0, 3),
        "num_heads": st.sampled_from([1, 2, 4]),
        "num_layers": st.integers(1, 3),
        "pre_logits": st.booleans(),
        "qk_norm": st.booleans(),
        "layer_scale": st.sampled_from([0.0, 0.1]),
        "scan": st.booleans(),
        "remat": st.sampled_from(["none", "full", "dots"]),
        "dtype": st.sampled_from(["float32", "bfloat16"]),
    }
)


@given(sizes=models, batch=st.integers(1, 4), train=st.booleans())
@settings(max_examples=25, deadline=None, derandomize=True)
def test_any_model_maps_images_to_float32_logits_and_named_intermediates(sizes, batch, train):
    rows, columns = sizes.pop("grid")
    patch = sizes["patch_size"]
    model = tiny(**sizes, image_size=(rows * patch, columns * patch), dropout=0.1, drop_path=0.1)
    images = jax.ShapeDtypeStruct(
        (batch, rows * patch, columns * patch, sizes["channels"]), np.float32
    )

    def forward(params, images, key):
        return model.apply(params, images, train=train, key=key)

    key = jax.eval_shape(lambda: jax.random.key(0))
    logits, out = jax.eval_shape(forward, model.abstract_params, images, key)
    assert logits.shape == (batch, sizes["num_classes"] or 8)  # no classes: the representation
    assert logits.dtype == np.float32
    tokens = rows * columns + sizes["registers"] + (sizes["pool"] == "cls")
    assert model.config.num_tokens == tokens
    blocks = {f"block{i:02d}": (batch, tokens, 8) for i in range(sizes["num_layers"])}
    assert {name: leaf.shape for name, leaf in out.items()} == blocks | {
        "patches": (batch, rows * columns, 8),
        "encoded": (batch, tokens, 8),
        "pre_logits": (batch, 8),
    }
