"""Strict settings for every test, and a few shared pieces."""

import gc
import os
import shutil
import tempfile

import jax
import pytest

from experiments.running import compilation

# Tests are of the CPU, on a machine with an accelerator too, and in the
# processes that they start; JAX_PLATFORMS=cuda tries them there.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
jax.config.update('jax_platforms', os.environ['JAX_PLATFORMS'])
jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_num_cpu_devices', 4)  # for the threads runtime

LONGEST = (  # files that take longest come first, so that none ends alone
  *('ray_test', 'experiments_test', 'rules_test', 'executors_test'),
  *('ray_faults_test', 'launch_ray_test', 'sharding_test', 'same_bits_test'),
  *('replay_script_test', 'threads_test', 'gap_aware_test', 'programs_test'),
  *('reproduce_test', 'docs_test', 'began_test', 'resume_test'),
  *('stopping_test', 'stream_test', 'transformer_xl_test', 'leaving_test'),
  *('threads_recovery_test', 'arguments_test', 'server_update_test'),
  *('checkpoint_test', 'models_test'),
)


def pytest_configure(config):
  """All processes of the tests share compiled programs, not the user's."""
  if not hasattr(config, 'workerinput'):
    os.environ[compilation.FOLDER] = tempfile.mkdtemp('-compiled')
  compilation.keep()


def pytest_unconfigure(config):
  """Removes what `pytest_configure` made.

  pytest collects garbage once more after this, for what was never closed. Among
  some thousand compiled programs that takes longer than the five seconds that
  xdist gives a process before it interrupts it, with a KeyboardInterrupt that
  nobody can raise. Collections while tests run have found what there is.
  """
  gc.freeze()
  if not hasattr(config, 'workerinput'):
    shutil.rmtree(os.environ.pop(compilation.FOLDER))


def pytest_collection_modifyitems(items):
  """Sorts the files; the order within them stays."""
  rank = {name: i for i, name in enumerate(LONGEST)}
  items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.fixture(autouse=True)
def strict_promotion(request):
  """No implicit dtype promotion, but where optax's own parts need it."""
  relaxed = request.node.get_closest_marker('optax_promotes')
  with jax.numpy_dtype_promotion('standard' if relaxed else 'strict'):
    yield


@pytest.fixture(scope='module')
def quick_compiler():
  """Compiles the programs of a file in less time, with fewer optimisations.

  For files that compare with tolerances, or not what is computed: the same
  operations are. A file that asks for equal bits, for what the compiler may do,
  or how long something takes, has the compiler that users have.
  """
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)
  jax.clear_caches()  # another file must not be given these programs


@pytest.fixture
def relaxed():
  """What scripts and users run with: NumPy's promotion of ranks and dtypes."""
  with jax.numpy_rank_promotion('allow'), jax.numpy_dtype_promotion('standard'):
    yield


@pytest.fixture
def x64():
  """Runs a test in double precision."""
  with jax.enable_x64(True):
    yield
