"""Assigns objects to queries at the least cost, on the device.

Every image has as many rows as the image of the data set with the most objects, and most rows hold
no object: 86 of 93 in an image of COCO with seven objects. `optax.assignment.hungarian_algorithm`
assigns these rows, too. The method here assigns the objects alone (benchmarks/assignment.py).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

NONE = -1


def assign(
    cost: Float[Array, "objects queries"], real: Bool[Array, " objects"]
) -> Int[Array, " objects"]:
    """The query of each object, so that the sum of the costs of the real objects is the least. A
    row that is no real object has -1. If there are more real objects than queries, the last ones
    have -1.

    Costs have to be finite. The method is that of shortest augmenting paths (D. F. Crouse, 2016,
    "On implementing 2D rectangular assignment algorithms", section II). The objects are added one
    after the other. A new object may take the query of an earlier one, which then takes another
    query, and so on, until a free query is reached: the cheapest such path is chosen. `u` and `v`
    are the dual variables of objects and queries.
    """
    objects, queries = cost.shape
    order = jnp.argsort(~real, stable=True).astype(jnp.int32)  # the real ones first
    count = jnp.minimum(real.sum(), queries)

    def search(new, unfinished, u, v, holder):
        """The shortest path from a new object to a free query. Returns that query and its distance;
        and of every query its distance, the object before it, and whether it was scanned."""

        def scan(state):
            _, least, row, distance, before, done = state
            through = least + cost[row] - u[row] - v
            nearer = ~done & (through < distance)
            distance = jnp.where(nearer, through, distance)
            before = jnp.where(nearer, row, before)
            open_ = jnp.where(done, jnp.inf, distance)
            query = jax.lax.argmin(open_, 0, jnp.int32)
            end = jnp.where(holder[query] == NONE, query, NONE)
            return end, open_[query], holder[query], distance, before, done.at[query].set(True)

        start = (
            jnp.where(unfinished, NONE, 0), jnp.zeros((), cost.dtype), new,
            jnp.full(queries, jnp.inf, cost.dtype), jnp.full(queries, NONE, jnp.int32),
            jnp.zeros(queries, bool),
        )  # fmt: skip
        end, least, _, *rest = jax.lax.while_loop(lambda state: state[0] == NONE, scan, start)
        return end, least, *rest

    def add(state):
        position, u, v, holder, held = state
        new = order[position]
        # Under `vmap`, finished images compute this as well, and the result is dropped. Their inner
        # loops must not run, because there may be no free query that ends them.
        unfinished = position < count
        end, least, distance, before, done = search(new, unfinished, u, v, holder)
        slack = jnp.where(done, least - distance, 0)
        u = u.at[jnp.where(holder == NONE, objects, holder)].add(slack, mode="drop")
        u, v = u.at[new].add(least), v - slack

        def turn(path):  # every object on the path takes the query that it leads to
            query, _, holder, held = path
            row = before[query]
            return held[row], row, holder.at[query].set(row), held.at[row].set(query)

        _, _, holder, held = jax.lax.while_loop(
            lambda path: path[1] != new, turn, (end, jnp.where(unfinished, NONE, new), holder, held)
        )
        return position + 1, u, v, holder, held

    start = (
        jnp.int32(0), jnp.zeros(objects, cost.dtype), jnp.zeros(queries, cost.dtype),
        jnp.full(queries, NONE, jnp.int32), jnp.full(objects, NONE, jnp.int32),
    )  # fmt: skip
    return jax.lax.while_loop(lambda state: state[0] < count, add, start)[-1]
