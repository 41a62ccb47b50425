"""L blocks in a row, unrolled (`block00`, `block01`, …) or stacked under one scan (`block`)."""

import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Key

# The name of what a block keeps under `dots`, if it names that itself.
KEPT = "kept"
# JAX's primitive for cuDNN's attention. It gives what its backward pass needs, too.
FUSED = "dot_product_attention_fwd"


def _named_or_fused(primitive, *inputs, **parameters):
    named = jax.checkpoint_policies.save_only_these_names(KEPT)
    return primitive.name.startswith(FUSED) or named(primitive, *inputs, **parameters)


# What the backward pass need not compute again. full: the input of a block alone. dots: the outputs
# of dense layers, too.
REMAT_POLICIES = {"full": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}
# The same of blocks that name what they keep: after the bias, so that cuBLAS can add it.
NAMED_POLICIES = REMAT_POLICIES | {"dots": _named_or_fused}


class Encoder(nnx.Module):
    """A stack of blocks. `make_block(key)` makes a block, and
    `block(z, key, drop_path_rate, return_weights, **more)` returns (z, attention weights or None).
    `z` is an array, or a tuple of arrays where nothing is `added`.

    A layer has the same parameters and the same dropout, unrolled or stacked. `name` is the name of
    this module in the model: `gather` finds the rows of its parameters by it.
    """

    def __init__(
        self, num_layers: int, make_block: Callable[[Key[Array, ""]], nnx.Module], *,
        drop_path: float, scan: bool, remat: str, key: Key[Array, ""], name: str = "encoder",
        names_kept: bool = False,
    ):  # fmt: skip
        keys = jax.random.split(key, num_layers)
        if scan:
            graph, _ = nnx.split(nnx.eval_shape(lambda: make_block(keys[0])))
            stack = jax.vmap(lambda key: nnx.to_pure_dict(nnx.state(make_block(key), nnx.Param)))
            self.block = nnx.merge(graph, stack(keys))
        else:
            for layer in range(num_layers):
                setattr(self, f"block{layer:02d}", make_block(keys[layer]))
        self.num_layers, self.drop_path, self.scan, self.remat = num_layers, drop_path, scan, remat
        self.name, self.policies = name, NAMED_POLICIES if names_kept else REMAT_POLICIES

    def __call__(
        self, z, key, *, return_weights=False, gather=None, added=None, attention_added=None, **more
    ):
        """`gather(params, name)` maps one block's sharded parameters to those that it computes with
        (parallel/sharding.py). `added` [layers, tokens, width] is added before each block, and
        `attention_added` [layers, batch, heads, queries, keys] to the weights of its attention.
        `more` is the same for every block."""
        rates = jnp.linspace(0.0, self.drop_path, self.num_layers, dtype=jnp.float32)
        keys = None if key is None else jax.random.split(key, self.num_layers)
        first = self.block if self.scan else self.block00
        graph, _ = nnx.split(first)

        def body(z, layer):
            params, key, rate, positions, weights_added = layer
            of_layer = {} if weights_added is None else {"attention_added": weights_added}
            z = z if positions is None else z + positions.astype(z.dtype)
            block = nnx.merge(graph, params if gather is None else gather(params, self.name))
            z, weights = block(z, key, rate, return_weights, **more, **of_layer)
            return z, (z, weights)

        if self.remat != "none":
            policy = self.policies[self.remat]
            body = jax.checkpoint(body, prevent_cse=not self.scan, policy=policy)
        if self.scan:
            layers = (_params(self.block), keys, rates, added, attention_added)
            z, (stacked, weights) = jax.lax.scan(body, z, layers)
            outputs = [
                jax.tree.map(operator.itemgetter(i), stacked) for i in range(self.num_layers)
            ]
        else:
            outputs, weights = [], []
            for i in range(self.num_layers):
                layer_key = None if keys is None else keys[i]
                params = _params(getattr(self, f"block{i:02d}"))
                both = (None if one is None else one[i] for one in (added, attention_added))
                z, (output, weight) = body(z, (params, layer_key, rates[i], *both))
                outputs.append(output)
                weights.append(weight)
        out = {f"block{i:02d}": outputs[i] for i in range(self.num_layers)}
        if return_weights:
            out |= {f"attention{i:02d}": weights[i] for i in range(self.num_layers)}
        return z, out


def _params(module: nnx.Module):
    return nnx.to_pure_dict(nnx.state(module, nnx.Param))
