"""One code path from a laptop to a pod: a mesh with a `data` axis, images split over it, the state a copy on each device."""

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def start_distributed():
    """Joins the other hosts if this process is part of a cluster that JAX recognises; otherwise runs alone."""
    try:
        jax.distributed.initialize()
    except ValueError:
        return  # no cluster
    logging.info('Host %d of %d', jax.process_index(), jax.process_count())


def make_mesh(num_devices: int = -1) -> Mesh:
    """The mesh over the first `num_devices` devices; -1: all.

    Raises:
      ValueError: there are fewer devices.
    """
    devices = jax.devices()
    if not (num_devices == -1 or 1 <= num_devices <= len(devices)):
        raise ValueError(
            f'config.mesh_data = {num_devices}, but there are {len(devices)} devices; use -1 for all of them'
        )
    return Mesh(np.array(devices[:num_devices] if num_devices > 0 else devices), ('data',))


def split(mesh: Mesh) -> NamedSharding:
    """First axis over the mesh's devices."""
    return NamedSharding(mesh, PartitionSpec('data'))


def copied(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def shard_batch(batch, mesh: Mesh):
    """Puts this host's part of a batch (arrays [b, …]) on its devices, as part of the global [B, …] arrays."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(split(mesh), x), batch)


def local_part(x):
    """This host's part, NumPy [b, …], of an array [B, …] whose first axis is split over the mesh: what `shard_batch` put there."""
    shards = sorted(x.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([shard.data for shard in shards])
