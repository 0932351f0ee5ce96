"""One code path from a laptop to a pod: a mesh, and where each array lies on it.

The mesh has three axes, see docs/scale.md. A batch is split over `data` and `fsdp`. Parameters are
split over `fsdp`, and so are moments and averages of them; what grows with the number of categories
is split over `model` first. XLA inserts the communication (GSPMD, arXiv 2105.04663).
"""

import math
import pickle
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rankseg_jax import processes

AXES = ('data', 'fsdp', 'model')
BATCH = ('data', 'fsdp')  # the axes that a batch is split over
# Class embeddings and the last layer of multi-label heads.
GROWS_WITH_K = r'(class_embedding|classes/embedding|classify/kernel)$'
SMALL = 2**14  # a parameter with fewer numbers is not worth the latency of gathering it


def print_once(*values: Any) -> None:
    """Prints on the first host only."""
    if jax.process_index() == 0:
        print(*values, flush=True)


def make_mesh(data: int = -1, fsdp: int = 1, model: int = 1) -> Mesh:
    """The mesh `config.mesh` over the first data × fsdp × model devices, those of a host in a row.

    Args:
      data: -1: as many as there are devices for.

    Raises:
      ValueError: there are fewer devices, or the devices of a host do not divide over the axes.
    """
    devices = sorted(jax.devices(), key=lambda device: device.process_index)
    given = f'config.mesh = {data} × {fsdp} × {model} (data × fsdp × model)'
    if data == -1:
        data, rest = divmod(len(devices), fsdp * model)
        if rest:
            raise ValueError(
                f'{given}: {len(devices)} devices are not a multiple of fsdp × model = '
                f'{fsdp * model}'
            )
    count = data * fsdp * model
    if not 1 <= count <= len(devices):
        raise ValueError(
            f'{given} needs {count} devices, but there are {len(devices)}; '
            'use data = -1 for as many as there are'
        )
    per_host = jax.local_device_count()
    if jax.process_count() > 1 and (count < len(devices) or per_host % model):
        raise ValueError(
            f'{given} must take all {len(devices)} devices, and model must divide the {per_host} '
            'of a host, since hosts read different images'
        )
    return Mesh(np.array(devices[:count]).reshape(data, fsdp, model), AXES)


def batch_parts(mesh: Mesh) -> int:
    """The number of parts that a batch is split into."""
    return math.prod(mesh.shape[axis] for axis in BATCH)


def split(mesh: Mesh) -> NamedSharding:
    """First axis over the mesh's `data` and `fsdp` axes."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def copied(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(mesh: Mesh, state: Any, params: Any, rules: Sequence = ()) -> Any:
    """A sharding for each leaf of a training state, or of part of it.

    A parameter lies where the first rule found in its path puts it, else where `default_spec` does.
    Whatever is kept of each parameter, such as moments and averages, lies with it; all else, such
    as counters and the statistics of batch norms, is copied.

    Args:
      params: shapes of the model's parameters.
      rules: `config.sharding`, (pattern, spec) pairs; see configs/common.py.

    Raises:
      ValueError: a pattern is found in no path, or a spec does not fit the mesh or a parameter.
    """
    shapes = {name: leaf.shape for name, leaf in named_leaves(params)}
    for pattern, _ in rules:
        if not any(re.search(pattern, name) for name in shapes):
            raise ValueError(
                f'config.sharding: {pattern!r} is found in no path of a parameter, such as '
                f'{next(iter(shapes))}'
            )

    def spec(name, shape):
        for pattern, axes in rules:
            if re.search(pattern, name):
                check_spec(axes, name, shape=shape, mesh=mesh)
                return PartitionSpec(*axes)
        return default_spec(name, shape, mesh)

    shardings = {name: NamedSharding(mesh, spec(name, shape)) for name, shape in shapes.items()}

    def find(path, _):
        keys = [jax.tree_util.keystr((key,), simple=True) for key in path]
        tails = ('/'.join(keys[i:]) for i in range(len(keys)))
        return next((shardings[tail] for tail in tails if tail in shardings), copied(mesh))

    return jax.tree_util.tree_map_with_path(find, state)


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """The leaves of a tree with their paths, such as decoder/classes/embedding."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator='/'), leaf) for path, leaf in leaves]


def default_spec(name: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Where a parameter lies that no rule is about.

    What grows with K is split over `model`, then everything over `fsdp`: each takes the longest
    dimension left that it divides. Small parameters are copied.
    """
    spec: list[str | None] = [None] * len(shape)
    if math.prod(shape) < SMALL:
        return PartitionSpec()
    for axis in ('model', 'fsdp') if re.search(GROWS_WITH_K, name) else ('fsdp',):
        size = mesh.shape[axis]
        fits = [i for i, length in enumerate(shape) if spec[i] is None and length % size == 0]
        if size > 1 and fits:
            spec[max(fits, key=lambda i: shape[i])] = axis
    return PartitionSpec(*spec)


def check_spec(axes: Sequence[str | None], name: str, shape: tuple[int, ...], mesh: Mesh) -> None:
    """Raises a ValueError for a spec of `config.sharding` that a parameter cannot have."""
    where = f'config.sharding: {tuple(axes)} of {name} {list(shape)}'
    if len(axes) > len(shape):
        raise ValueError(f'{where} has more dimensions than the parameter')
    for axis, length in zip(axes, shape, strict=False):
        if axis is None:
            continue
        if axis not in mesh.shape:
            raise ValueError(f'{where}: {axis!r} is no axis of the mesh; use {", ".join(AXES)}')
        if length % mesh.shape[axis]:
            raise ValueError(f'{where}: {axis} = {mesh.shape[axis]} does not divide {length}')


def place(shapes: Any, shardings: Any) -> Any:
    """A tree of shapes with their shardings, to restore arrays into."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """Puts this host's part of a batch, arrays [b, …], on its devices as part of the global batch.

    Returns:
      Arrays [B, …].
    """
    sharding = split(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def gather(value: Any) -> list:
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


def local_part(x: jax.Array) -> np.ndarray:
    """This host's part [b, …] of an array [B, …] that is split: the inverse of `shard_batch`.

    Devices along other axes of the mesh hold copies, each of which counts once.
    """
    shards = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate([shards[start] for start in sorted(shards)])


def one_device() -> Mesh:
    """A mesh of this host's first device."""
    return Mesh(np.array(jax.local_devices()[:1]).reshape(1, 1, 1), AXES)


def local_mesh(mesh: Mesh) -> Mesh:
    """The mesh of this host's devices alone.

    `fsdp` becomes as long as they allow, so that they share what the hosts shared.
    """
    if not mesh.is_multi_process:
        return mesh
    per_host = len(mesh.local_devices) // mesh.shape['model']
    fsdp = math.gcd(mesh.shape['fsdp'], per_host)
    shape = per_host // fsdp, fsdp, mesh.shape['model']
    return Mesh(np.array(mesh.local_devices).reshape(shape), AXES)


def local(mesh: Mesh, variables: Any) -> tuple[Mesh, Any]:
    """`local_mesh` and the variables on it, without the other hosts.

    Args:
      variables: tree of arrays on the devices of `mesh`.
    """
    if not mesh.is_multi_process:
        return mesh, variables
    whole, mesh = mesh, local_mesh(mesh)
    hosts = Mesh(whole.devices.reshape(-1, *mesh.devices.shape), ('hosts', *AXES))

    def part(x):
        shards = [shard.data for shard in x.addressable_shards]
        sharding = NamedSharding(mesh, x.sharding.spec)
        return jax.make_array_from_single_device_arrays(x.shape, sharding, shards)

    shardings = jax.tree.map(lambda x: NamedSharding(hosts, x.sharding.spec), variables)
    every_host = jax.jit(lambda x: x, out_shardings=shardings)(variables)
    return mesh, jax.tree.map(part, every_host)


def host_copy(tree: Any, mesh: Mesh) -> Any:
    """NumPy copies of arrays that may be spread over several hosts."""
    whole = jax.jit(lambda x: x, out_shardings=copied(mesh))(tree)
    return jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), whole)
