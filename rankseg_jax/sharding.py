"""One code path from a laptop to a pod: a mesh, and where each array lies on it."""

import pickle
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rankseg_jax import processes


def print_once(*values) -> None:
    """Prints on the first host only."""
    if jax.process_index() == 0:
        print(*values, flush=True)


def make_mesh(num_devices: int = -1) -> Mesh:
    """The mesh over the first `num_devices` devices; -1: all.

    Raises:
      ValueError: there are fewer devices.
    """
    devices = jax.devices()
    if not (num_devices == -1 or 1 <= num_devices <= len(devices)):
        raise ValueError(
            f'config.mesh_data = {num_devices}, but there are {len(devices)} devices; '
            'use -1 for all of them'
        )
    return Mesh(np.array(devices[:num_devices] if num_devices > 0 else devices), ('data',))


def local_mesh(num_devices: int = -1) -> Mesh:
    """The mesh over this host's devices, at most the first `num_devices`; -1: all.

    Raises:
      ValueError: as `make_mesh`.
    """
    make_mesh(num_devices)
    devices = jax.local_devices()
    return Mesh(np.array(devices[:num_devices] if num_devices > 0 else devices), ('data',))


def split(mesh: Mesh) -> NamedSharding:
    """First axis over the mesh's `data` axis."""
    return NamedSharding(mesh, PartitionSpec('data'))


def copied(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(mesh: Mesh, state):
    """A sharding for each leaf of a training state, or of part of it: a copy on every device."""
    return jax.tree.map(lambda _: copied(mesh), state)


def place(shapes, shardings):
    """A tree of shapes with their shardings, to restore arrays into."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def shard_batch(batch, mesh: Mesh):
    """Puts this host's part of a batch, arrays [b, …], on its devices as part of the global batch.

    Returns:
      Arrays [B, …].
    """
    sharding = split(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def gather(value) -> list:
    """The values of all hosts, of this one alone if there are no others; any that pickles."""
    if jax.process_count() == 1:
        return [value]
    processes.wait()
    data = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(len(data))).tolist()
    padded = np.zeros(max(sizes), np.uint8)
    padded[: len(data)] = data
    parts = np.asarray(multihost_utils.process_allgather(padded))  # [hosts, bytes]
    return [pickle.loads(part[:size].tobytes()) for part, size in zip(parts, sizes, strict=True)]


def local_part(x) -> np.ndarray:
    """This host's part [b, …] of an array [B, …] split over `data`: the inverse of `shard_batch`.

    Devices along other axes of the mesh hold copies, each of which counts once.
    """
    shards = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate([shards[start] for start in sorted(shards)])


def local(mesh: Mesh, variables) -> tuple[Mesh, Any]:
    """The mesh of this host's devices and the variables on them, without the other hosts.

    Args:
      variables: tree of arrays that every device of `mesh` holds a copy of.
    """
    if mesh.is_multi_process:
        mesh = Mesh(np.array(mesh.local_devices), ('data',))

        def part(x):
            shards = [shard.data for shard in x.addressable_shards]
            return jax.make_array_from_single_device_arrays(x.shape, copied(mesh), shards)

        variables = jax.tree.map(part, variables)
    return mesh, variables


def host_copy(tree, mesh: Mesh):
    """NumPy copies of arrays that may be spread over several hosts."""
    whole = jax.jit(lambda x: x, out_shardings=copied(mesh))(tree)
    return jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), whole)
