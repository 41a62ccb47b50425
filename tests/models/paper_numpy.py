"""The Vision Transformer written a second time, in NumPy and float64, from the papers alone.

Equations 1-4 and 5-8 (appendix A) of arXiv 2010.11929, one image and one head at a time, with the
options of later papers: registers (2309.16588), LayerScale (2103.17239), query-key norm
(2302.05442), attention pooling (2106.04560) and fixed sines and cosines (2205.01580). It takes the
plain dict of parameters and shares no code with the package, so that the two can be compared.
"""

import math

import numpy as np

_erf = np.vectorize(math.erf, otypes=[np.float64])


def as_float64(params: dict) -> dict:
    """The same tree in double precision."""
    return {
        name: as_float64(leaf) if isinstance(leaf, dict) else np.asarray(leaf, np.float64)
        for name, leaf in params.items()
    }


def take_layer(stacked: dict, i: int) -> dict:
    """One layer's parameters of those stacked along a leading depth axis."""
    return {
        name: take_layer(leaf, i) if isinstance(leaf, dict) else leaf[i]
        for name, leaf in stacked.items()
    }


def stack_layers(layers: list[dict]) -> dict:
    """The inverse of `take_layer`."""
    return {
        name: stack_layers([layer[name] for layer in layers])
        if isinstance(leaf, dict)
        else np.stack([layer[name] for layer in layers])
        for name, leaf in layers[0].items()
    }


def blocks_of(params: dict) -> list[dict]:
    """The parameters of every block in order, from `encoder/block00/…` or a stacked `block`."""
    encoder = params["encoder"]
    if "block" in encoder:
        depth = encoder["block"]["norm1"]["scale"].shape[0]
        return [take_layer(encoder["block"], i) for i in range(depth)]
    return [encoder[name] for name in sorted(encoder)]


def gelu(x, kind: str):
    """x Φ(x), or its approximation by a hyperbolic tangent (arXiv 1606.08415, section 2)."""
    if kind == "exact":
        return 0.5 * x * (1 + _erf(x / math.sqrt(2)))
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def layer_norm(x, p, eps: float):
    """LN over the last axis (arXiv 1607.06450)."""
    centred = x - x.mean(axis=-1, keepdims=True)
    return (
        centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps) * p["scale"] + p["bias"]
    )


def softmax(x):
    """Along the last axis."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def sincos2d(rows: int, columns: int, width: int):
    """Entry by entry: sin x, cos x, sin y, cos y at the frequencies 10000^(-i / (width/4 - 1))."""
    quarter = width // 4
    table = np.zeros((rows, columns, width))
    for y in range(rows):
        for x in range(columns):
            for i in range(quarter):
                omega = 1 / 10_000 ** (i / (quarter - 1)) if quarter > 1 else 1.0
                table[y, x, i] = math.sin(x * omega)
                table[y, x, quarter + i] = math.cos(x * omega)
                table[y, x, 2 * quarter + i] = math.sin(y * omega)
                table[y, x, 3 * quarter + i] = math.cos(y * omega)
    return table


def attention_heads(q, k, v):
    """Eq. 6 and 7 for each head: q, k, v (tokens, heads, dim). Returns (tokens, heads*dim), A."""
    heads, dim = q.shape[1:]
    weights = [softmax(q[:, h] @ k[:, h].T / math.sqrt(dim)) for h in range(heads)]
    return np.concatenate([weights[h] @ v[:, h] for h in range(heads)], axis=-1), np.stack(weights)


def msa(z, p, eps: float):
    """Eq. 5-8: [q, k, v] = z U_qkv; MSA(z) = [SA_1(z); …; SA_k(z)] U_msa."""
    q, k, v = (
        np.einsum("nd,dhe->nhe", z, p["qkv"]["kernel"][:, i]) + p["qkv"]["bias"][i]
        for i in range(3)
    )
    if "q_norm" in p:
        q, k = layer_norm(q, p["q_norm"], eps), layer_norm(k, p["k_norm"], eps)
    joined, weights = attention_heads(q, k, v)
    u_msa = p["out"]["kernel"].reshape(joined.shape[-1], -1)
    return joined @ u_msa + p["out"]["bias"], weights


def mlp(z, p, kind: str):
    """Two layers with a GELU non-linearity."""
    hidden = gelu(z @ p["fc1"]["kernel"] + p["fc1"]["bias"], kind)
    return hidden @ p["fc2"]["kernel"] + p["fc2"]["bias"]


def patch_embedding(image, p):
    """x_p E: patches from left to right and top to bottom, each projected to D."""
    kernel = p["kernel"]
    size = kernel.shape[0]
    rows, columns = image.shape[0] // size, image.shape[1] // size
    tokens = []
    for i in range(rows):
        for j in range(columns):
            patch = image[i * size : (i + 1) * size, j * size : (j + 1) * size]
            tokens.append(np.einsum("hwc,hwcd->d", patch, kernel) + p["bias"])
    return np.stack(tokens), (rows, columns)


def encoder_block(z, p, kind: str, eps: float):
    """Eq. 2 and 3, with a LayerScale on each branch where there is one."""
    y, weights = msa(layer_norm(z, p["norm1"], eps), p["attention"], eps)
    z = z + (y * p["scale1"]["gamma"] if "scale1" in p else y)
    y = mlp(layer_norm(z, p["norm2"], eps), p["mlp"], kind)
    return z + (y * p["scale2"]["gamma"] if "scale2" in p else y), weights


def attention_pool(x, p, kind: str, eps: float):
    """MAP: the learned probe attends over the tokens; y + MLP(LN(y))."""
    q = np.einsum("nd,dhe->nhe", p["probe"], p["q"]["kernel"]) + p["q"]["bias"]
    k, v = (
        np.einsum("nd,dhe->nhe", x, p["kv"]["kernel"][:, i]) + p["kv"]["bias"][i] for i in range(2)
    )
    joined, _ = attention_heads(q, k, v)
    y = joined @ p["out"]["kernel"].reshape(joined.shape[-1], -1) + p["out"]["bias"]
    return (y + mlp(layer_norm(y, p["norm"], eps), p["mlp"], kind))[0]


def forward_one(p, image, pool: str, kind: str, eps: float) -> dict:
    """Logits and every intermediate of one image [H, W, C]."""
    patches, (rows, columns) = patch_embedding(image, p["embed"])
    out = {"patches": patches}
    width = patches.shape[-1]
    learned = "pos_embed" in p
    positions = p["pos_embed"]["grid"] if learned else sincos2d(rows, columns, width)
    z = patches + positions.reshape(rows * columns, width)
    if "registers" in p:
        z = np.concatenate([p["registers"], z])
    if pool == "cls":
        z = np.concatenate([p["cls"] + p["pos_embed"]["prefix"] if learned else p["cls"], z])
    for i, block in enumerate(blocks_of(p)):
        z, weights = encoder_block(z, block, kind, eps)
        out |= {f"block{i:02d}": z, f"attention{i:02d}": weights}
    out["encoded"] = y = layer_norm(z, p["norm"], eps)
    of_patches = y[-rows * columns :]
    if pool == "cls":
        y = y[0]
    elif pool == "gap":
        y = of_patches.mean(axis=0)
    else:
        y = attention_pool(of_patches, p["pool"], kind, eps)
    if "pre_logits" in p:
        y = np.tanh(y @ p["pre_logits"]["kernel"] + p["pre_logits"]["bias"])
    out["pre_logits"] = y
    out["logits"] = y @ p["head"]["kernel"] + p["head"]["bias"] if "head" in p else y
    return out


def forward(params, images, *, pool="cls", gelu="tanh", eps=1e-6) -> dict:
    """Logits and intermediates by name, with a leading batch axis, in float64.

    What else the model has (registers, LayerScale, …) shows in which parameters there are.
    """
    params = as_float64(params)
    every = [forward_one(params, np.asarray(i, np.float64), pool, gelu, eps) for i in images]
    return {name: np.stack([one[name] for one in every]) for name in every[0]}
