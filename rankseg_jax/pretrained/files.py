"""The arrays of files that other libraries write: `.npz`, `.safetensors`, `.pth`, `.pt`, `.bin`."""

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def read(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a `.npz`, `.safetensors`, `.pth`, `.pt` or `.bin` file, by name; see `float32`.

    Raises:
      FileNotFoundError: there is no such file.
      ImportError: a `.pth` file, but PyTorch is not installed.
      ValueError: the file has another suffix, is damaged, or holds no arrays.
    """
    path = Path(path)
    if path.is_dir():
        raise FileNotFoundError(
            f'config.model.pretrained = {path} holds neither config.json nor checkpoints'
        )
    if not path.is_file():
        raise FileNotFoundError(f'config.model.pretrained = {path} is not a file')
    readers = {
        '.npz': read_numpy,
        '.safetensors': read_safetensors,
        '.pth': read_torch,
        '.pt': read_torch,
        '.bin': read_torch,
    }
    if path.suffix not in readers:
        raise ValueError(
            f'config.model.pretrained = {path} must be a .npz, .safetensors, .pth, .pt or .bin file'
        )
    return float32(readers[path.suffix](path))


def float32(tree: Any) -> Any:
    """A tree of arrays in which floats of any precision are float32, as parameters always are."""

    def cast(x):
        x = np.asarray(x)
        if x.dtype == 'V2':  # NumPy's files do not know the name of bfloat16
            x = x.view(jnp.bfloat16)
        return x.astype(np.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(cast, tree)


def read_numpy(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a NumPy archive; the original JAX vision transformers are such files."""
    try:
        with np.load(path) as file:
            return {key.removeprefix('opt/target/'): value for key, value in file.items()}
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:  # Type: a single array
        raise damaged(path, 'NumPy archive of arrays', error) from error


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise damaged(path, 'safetensors file', error) from error


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a PyTorch file, whose state dict may be nested in other dicts."""
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f'{path} needs PyTorch to be read: pip install torch, or convert it to .safetensors'
        ) from error
    try:
        state = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r'Unsupported global: GLOBAL (\S+)', str(error))
        if not found:
            raise damaged(path, 'PyTorch file', 'it cannot be unpickled') from error
        raise ValueError(
            f'{path} also holds Python objects, such as {found[1]}, which are not loaded because '
            'they may run any code. If you trust the file, save its weights alone, where the '
            f'library that wrote it is installed: python -c "import torch; torch.save(torch.load('
            f"'{path}', map_location='cpu', weights_only=False)['state_dict'], 'weights.pth')\""
        ) from error
    except (OSError, EOFError, RuntimeError) as error:
        raise damaged(path, 'PyTorch file', error) from error
    while isinstance(state, dict) and not any(
        isinstance(value, torch.Tensor) for value in state.values()
    ):
        inner = [state[key] for key in ('state_dict', 'model', 'model_ema') if key in state]
        if not inner:
            raise ValueError(
                f'{path} holds no state dict; its keys are {sorted(map(str, state))[:5]}'
            )
        state = inner[0]
    return {
        key: value.detach().float().numpy()
        for key, value in state.items()
        if isinstance(value, torch.Tensor)
    }


def damaged(path: Path, kind: str, reason: str | Exception) -> ValueError:
    """The error for a file that is not what its name says."""
    return ValueError(
        f'{path} is not a {kind}, or is damaged ({reason}); a download that broke off or git '
        'without LFS leaves such a file'
    )
