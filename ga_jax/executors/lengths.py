"""How a run is cut into blocks, and which blocks are unrolled.

Convolutions inside XLA's CPU loops run about nine times slower, so that blocks
of models with convolutions are unrolled there, and short.
"""

from collections.abc import Iterator

import jax
import numpy as np

from ga_jax.job import job as job_lib
from ga_jax.job import program as program_lib
from ga_jax.job import source
from ga_jax.server import update

UNROLLED_BLOCK = 8  # arrivals; longer compiles longer and gains little
UNROLLED_CONVOLUTIONS = 64  # of a block, see `block_length`
SCANNED_BLOCK = 64
LONGEST_SCAN = 128


def unrolled_convolutions(job: job_lib.Job) -> int:
  """The convolutions of a ticket, gradients included, where blocks are unrolled
  for them: on the CPU. Elsewhere 0."""
  return convolutions(job) if jax.default_backend() == 'cpu' else 0


def convolutions(job: job_lib.Job) -> int:
  """How many convolutions a ticket of a job takes, gradients included."""
  program = job.worker_program
  batches = source.host_batches(job.source, 0, program.num_batches)

  def run(params, model_state, key):
    return program.run(
      program.init(params),
      update.Snapshot(params, model_state),
      program_lib.work(key, batches, 0, 0),
    )

  return _count(
    jax.make_jaxpr(run)(job.params, job.model_state, jax.random.key(0))
  )


def _count(jaxpr) -> int:
  """The convolutions of a jaxpr and of those within it."""
  total = 0
  for equation in jaxpr.eqns:
    total += equation.primitive.name == 'conv_general_dilated'
    values = list(equation.params.values())
    inner = jax.tree.leaves(values, is_leaf=lambda x: hasattr(x, 'eqns'))
    total += sum(_count(part) for part in inner if hasattr(part, 'eqns'))
  return total


def block_length(unrolled: int, align: int | None) -> int:
  """Arrivals per block.

  An unrolled block compiles for as long as it has convolutions, so that those
  of deep networks are shorter. ResNet-20 (56, batch 16) took 8, 15 and 30 s of
  CPU time to compile for 1, 2 and 4 arrivals, and about 85 ms for each of them.

  Args:
    unrolled: of `unrolled_convolutions`; 0 where blocks are scanned.
    align: arrivals between two points of interest (an epoch); the block is not
      longer, and a scan's length divides it where a reasonable one does.

  Returns:
    The length.
  """
  if unrolled:
    longest = max(UNROLLED_CONVOLUTIONS // unrolled, 1)
    return min(longest, UNROLLED_BLOCK, align or UNROLLED_BLOCK)
  if align:
    longest = max(
      n for n in range(1, min(align, LONGEST_SCAN) + 1) if align % n == 0
    )
    if longest == align or longest >= LONGEST_SCAN // 8:
      return longest
  return SCANNED_BLOCK


def parts(
  num_batches: np.ndarray, length: int, done: int = 0
) -> Iterator[slice]:
  """Cuts arrivals into blocks at the multiples of a length.

  What is left at the end is computed one by one, and so is a block with a
  ticket of fewer batches than the others.

  Args:
    num_batches: of every arrival, [arrivals].
    length: arrivals per block.
    done: arrivals that are computed already.

  Yields:
    Slices of the arrivals.
  """
  while done < len(num_batches):
    whole = num_batches[done : done + length]
    even = len(whole) == length and np.all(whole == whole[0])
    # Inside an uneven block its other arrivals are computed alone too.
    size = length if even and done % length == 0 else 1
    yield slice(done, done + size)
    done += size
