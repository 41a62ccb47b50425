"""Assigns objects to queries at the least cost, on the device.

`optax.assignment.hungarian_algorithm` also assigns the rows that only fill an image up to the most
objects of the data set, and these are most of them: 86 of COCO's 93 in an image of seven objects.
Here the number of objects is a number on the device (benchmarks/assignment.py).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

NONE = -1


def assign(
    cost: Float[Array, "objects queries"], real: Bool[Array, " objects"]
) -> Int[Array, " objects"]:
    """The query of each object where the sum of the costs of the real ones is least. Of an object
    that is not real, and of more real ones than there are queries, it is -1.

    Costs have to be finite. The method is that of shortest augmenting paths (D. F. Crouse, 2016,
    "On implementing 2D rectangular assignment algorithms", section II): objects come in one by
    one, and each takes the cheapest path that ends at a free query. `u` and `v` are the dual
    variables of objects and queries.
    """
    objects, queries = cost.shape
    order = jnp.argsort(~real, stable=True).astype(jnp.int32)  # the real ones first
    count = jnp.minimum(real.sum(), queries)

    def search(new, waits, u, v, holder):
        """The shortest path from an object to a free query: that query, its distance, and of every
        query the distance, the object before it, and whether the path may go on from it."""

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
            jnp.where(waits, NONE, 0), jnp.zeros((), cost.dtype), new,
            jnp.full(queries, jnp.inf, cost.dtype), jnp.full(queries, NONE, jnp.int32),
            jnp.zeros(queries, bool),
        )  # fmt: skip
        end, least, _, *rest = jax.lax.while_loop(lambda state: state[0] == NONE, scan, start)
        return end, least, *rest

    def add(state):
        position, u, v, holder, held = state
        new = order[position]
        # Under `vmap`, the images that are finished go through this as well, without effect. Their
        # inner loops must not run, because there may be no free query that would end them.
        waits = position < count
        end, least, distance, before, done = search(new, waits, u, v, holder)
        slack = jnp.where(done, least - distance, 0)
        u = u.at[jnp.where(holder == NONE, objects, holder)].add(slack, mode="drop")
        u, v = u.at[new].add(least), v - slack

        def turn(path):  # every object on the path takes the query that it leads to
            query, _, holder, held = path
            row = before[query]
            return held[row], row, holder.at[query].set(row), held.at[row].set(query)

        _, _, holder, held = jax.lax.while_loop(
            lambda path: path[1] != new, turn, (end, jnp.where(waits, NONE, new), holder, held)
        )
        return position + 1, u, v, holder, held

    start = (
        jnp.int32(0), jnp.zeros(objects, cost.dtype), jnp.zeros(queries, cost.dtype),
        jnp.full(queries, NONE, jnp.int32), jnp.full(objects, NONE, jnp.int32),
    )  # fmt: skip
    return jax.lax.while_loop(lambda state: state[0] < count, add, start)[-1]
