"""What several test modules need."""

import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import jax
import numpy as np

from tests import FAST_COMPILATION


def random_variables(model, *inputs, seed=0):
    """Variables of a module that takes `train`; see `random_like`."""
    return random_like(
        jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs, train=False)), seed
    )


def random_like(shapes, seed=0):
    """Arrays of these shapes: kernels scaled as by He et al., other floats 0.5 to 1, integers 0.

    Much faster than compiling a model's own random initialization.
    """
    rng = np.random.default_rng(seed)

    def draw(leaf):
        if not np.issubdtype(leaf.dtype, np.floating):
            return np.zeros(leaf.shape, leaf.dtype)
        if len(leaf.shape) > 1:
            scale = np.sqrt(2 / np.prod(leaf.shape[:-1]))
            return (rng.normal(size=leaf.shape) * scale).astype(leaf.dtype)
        return rng.uniform(0.5, 1, leaf.shape).astype(leaf.dtype)

    return jax.tree.map(draw, shapes)


def apply(module, variables, *inputs, **options):
    """`module.apply` as one program, which compiles faster than one for each operation."""
    return jax.jit(lambda *arrays: module.apply(*arrays, **options))(variables, *inputs)


def random_init(model, num_classes, seed, image_shape):
    """Stands in for `models.init`, see `random_like`."""
    images = np.zeros((1, *image_shape, 3), np.float32)
    return {'batch_stats': {}} | random_variables(model, images, seed=seed)


def random_state(shapes):
    """A TrainState of these shapes before the first step, its variables as in `random_like`."""
    state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    return state.replace(model=random_like(shapes.model))


def random_batch_norms(torch, model):
    """A PyTorch model in evaluation mode whose batch norms have random values and statistics."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.1, 0.5)
            torch.nn.init.normal_(module.bias, std=0.2)
            torch.nn.init.normal_(module.running_mean, std=0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval()


def random_parameters(torch, model, scale=0.1):
    """A PyTorch model in evaluation mode with random parameters, offsets and scales included."""
    torch.manual_seed(0)
    for name, value in model.named_parameters():
        torch.nn.init.normal_(value, 1.0 if 'norm' in name and 'weight' in name else 0.0, scale)
    return model.eval()


def numpy_state(model):
    """The state dict of a PyTorch model as arrays."""
    return {key: value.numpy() for key, value in model.state_dict().items()}


def relative_error(ours, expected):
    """The greatest difference, as a share of the greatest expected value."""
    ours, expected = np.asarray(ours), np.asarray(expected)
    assert ours.shape == expected.shape
    return np.abs(ours - expected).max() / np.abs(expected).max()


def run_example(exported, source, folder):
    """Runs example.py of an exported model on `source`, where this package cannot be imported.

    Args:
      folder: where it runs and writes.

    Returns:
      What it prints.
    """
    result = subprocess.run(
        [sys.executable, exported / 'example.py', source],
        cwd=folder,
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
        | {'XLA_FLAGS': FAST_COMPILATION},
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@cache  # the declarations last as long as the object that is returned
def mend_torchvision():
    """Makes a torchvision without compiled operators importable, and timm with it."""
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        operators = torch.library.Library('torchvision', 'DEF')
        operators.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
        operators.define('qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
        return operators


def free_address() -> str:
    """A host:port of this machine that nothing listens at."""
    with socket.socket() as free:
        free.bind(('localhost', 0))
        return f'localhost:{free.getsockname()[1]}'


def start_processes(count, *command, **environment):
    """Starts Python with a command as `count` processes of one run, on a CPU device each.

    `count` 1: as a process alone, unless the environment says something else.
    """
    root = Path(__file__).parents[1]
    shared = {'PYTHONPATH': root, 'XLA_FLAGS': FAST_COMPILATION} | environment
    if count > 1:
        shared |= {'JAX_COORDINATOR_ADDRESS': free_address(), 'JAX_NUM_PROCESSES': count}
    found = []
    for place in range(count):
        own = shared | ({'JAX_PROCESS_ID': place} if count > 1 else {})
        process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=root,
            env=os.environ | {name: str(value) for name, value in own.items()},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        found.append(process)
    return found


def finish_processes(processes, timeout=600):
    """Waits for processes; the (returncode, stdout, stderr) of each."""
    try:
        with ThreadPoolExecutor(len(processes)) as pool:
            texts = list(pool.map(lambda process: process.communicate(timeout=timeout), processes))
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *text) for process, text in zip(processes, texts, strict=True)]
