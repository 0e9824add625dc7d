"""One process of several that save and restore one sharded state together.

Usage: peer.py DIRECTORY ADDRESS COUNT INDEX MODE
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

from encoders.checkpoints.store import CheckpointStore
from encoders.errors import CheckpointError

directory, address, count, index, mode = sys.argv[1:]
jax.distributed.initialize(address, int(count), int(index))
mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(-1), ("fsdp",))
split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


@jax.jit
def difference(a, b):
    return jax.tree.reduce(jnp.maximum, jax.tree.map(lambda x, y: jnp.abs(x - y).max(), a, b))


def make(step):
    return {"x": jnp.arange(64.0).reshape(16, 4) * step, "n": jnp.float32(step)}


places = {"x": split, "n": whole}
state = {step: jax.jit(make, static_argnums=0, out_shardings=places)(step) for step in (3, 4, 5)}
shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state[3]
)
with CheckpointStore(directory, keep_last=2) as store:
    if mode == "save":
        for step in (3, 4, 5):
            store.save(step, state[step], {"step": step})
        store.wait()
        assert store.steps() == [4, 5]
    if mode == "damaged":
        try:
            store.restore(shapes)
        except CheckpointError as error:
            print(error)
            sys.exit(0)
        sys.exit(1)
    for step in (4, 5):
        assert float(difference(store.restore(shapes, step), state[step])) == 0
print("ok")
