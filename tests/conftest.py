"""Set before JAX, TensorFlow or torchvision is imported by any test."""

import gc
import importlib.util
import os
import tempfile

from tests import FAST_COMPILATION

# All workers of a run, and the processes that tests start, share what they compile: the first
# process to read this makes the folder, and the others inherit its name.
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    compilation_cache = tempfile.TemporaryDirectory(prefix='compiled')
    os.environ['JAX_COMPILATION_CACHE_DIR'] = compilation_cache.name
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.3')
os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
os.environ['TF_USE_LEGACY_KERAS'] = '1'  # see rankseg_jax/cli.py
# PyTorch's threads keep cores busy while they wait for more to do.
os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ['XLA_FLAGS'] = ' '.join(
    [os.environ.get('XLA_FLAGS', ''), '--xla_force_host_platform_device_count=8', FAST_COMPILATION]
)

import pytest
from filelock import FileLock
from xdist.scheduler import LoadScopeScheduling

if importlib.util.find_spec('torch') and importlib.util.find_spec('torchvision'):
    from tests.helpers import mend_torchvision

    mend_torchvision()


# Each trains a run, or prepares one, that all its tests share.
TOGETHER = tuple(
    f'/test_{name}.py'
    for name in (
        'demo',
        'instance',
        'model_analysis',
        'panoptic',
        'predict',
        'report',
        'video_export',
        'video_tasks',
    )
)


class Scheduler(LoadScopeScheduling):
    """Keeps the tests of a class and of the modules TOGETHER on one worker; others go anywhere."""

    def _split_scope(self, nodeid):
        scope = nodeid.rsplit('::', 1)[0]
        return scope if '::' in scope or scope.endswith(TOGETHER) else nodeid


def pytest_collection_finish():
    """Tracing makes many objects, of which few are garbage: collects it rarely, and no modules."""
    gc.freeze()
    gc.set_threshold(1_000_000, 20, 20)


def pytest_xdist_make_scheduler(config, log):
    return Scheduler(config, log)


@pytest.fixture(scope='session')
def data_dir(tmp_path_factory, worker_id):
    """The scenes of `tiny.config`, generated once for all workers of a run."""
    from rankseg_jax import data
    from tests import tiny

    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == 'master' else base.parent) / 'scenes'
    with FileLock(f'{folder}.lock'):
        for split in ('train', 'validation'):
            data.get_source(tiny.config(folder).data, split)
    return folder


@pytest.fixture(scope='module')
def chromium():
    """A browser for `browser.opened`; its event loop is in the way of orbax, which comes before."""
    from tests import browser

    with browser.chromium() as found:
        yield found
