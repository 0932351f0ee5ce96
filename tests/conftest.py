"""Set before JAX, TensorFlow or torchvision is imported by any test."""

import importlib.util
import os
import tempfile

# Tests and the processes they start compile many programs more than once.
compilation_cache = tempfile.TemporaryDirectory(prefix='compiled')
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', compilation_cache.name)
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.3')
os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
# Programs run for milliseconds here and compile for seconds: LLVM need not optimise them, which saves a third of the suite's time.
os.environ['XLA_FLAGS'] = (
    os.environ.get('XLA_FLAGS', '')
    + ' --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0'
)

if importlib.util.find_spec('torch') and importlib.util.find_spec('torchvision'):
    from tests.helpers import mend_torchvision

    mend_torchvision()
