"""What of another run's environment a process may be started with.

A record says in which environment it was made, and to replay it the script
starts itself again in that one. The record may be anybody's: what is taken from
it is what stands here, each with the reason why it changes bits and with the
values that it may have. Whatever else it names is refused: other flags of XLA
write files or load programs.
"""

from typing import Any, NamedTuple

from ga_jax.guards import forms

_MOST_THREADS = 4096
_SWITCH = forms.one_of('', 'true', 'false', '1', '0')


def _digits(low: int, high: int) -> forms.Form:
  """A number from `low` to `high`, as text."""
  return forms.one_of(*map(str, range(low, high + 1)))


# By name in environment.json: (environment variable, values, why).
VARIABLES = {
  'thread_pool': (
    'NPROC',
    forms.integer(1, _MOST_THREADS),
    'a sum is cut into as many pieces as there are threads',
  ),
  'jax_num_cpu_devices': (
    'JAX_NUM_CPU_DEVICES',
    forms.integer(-1, _MOST_THREADS),
    'there are at least as many threads',
  ),
  'jax_enable_x64': ('JAX_ENABLE_X64', forms.flag, 'precision'),
  'jax_default_matmul_precision': (
    'JAX_DEFAULT_MATMUL_PRECISION',
    forms.optional(
      forms.one_of(
        *('default', 'high', 'highest'),
        *('bfloat16', 'tensorfloat32', 'float32'),
      )
    ),
    'precision of products',
  ),
  'jax_default_prng_impl': (
    'JAX_DEFAULT_PRNG_IMPL',
    forms.one_of('threefry2x32', 'rbg', 'unsafe_rbg'),
    'random numbers',
  ),
  'jax_threefry_partitionable': (
    'JAX_THREEFRY_PARTITIONABLE',
    forms.flag,
    'random numbers',
  ),
  'jax_random_seed_offset': (
    'JAX_RANDOM_SEED_OFFSET',
    forms.integer(),
    'random numbers',
  ),
  'jax_disable_most_optimizations': (
    'JAX_DISABLE_MOST_OPTIMIZATIONS',
    forms.flag,
    'what is fused, and so rounded',
  ),
}

# Flags of XLA by name: (values as text, why).
XLA_FLAGS = {
  '--xla_force_host_platform_device_count': (
    _digits(1, _MOST_THREADS),
    'there are at least as many threads',
  ),
  '--xla_backend_optimization_level': (_digits(0, 3), 'order of operations'),
  '--xla_llvm_disable_expensive_passes': (_SWITCH, 'order of operations'),
  '--xla_allow_excess_precision': (_SWITCH, 'what is rounded'),
  '--xla_cpu_multi_thread_eigen': (_SWITCH, 'how sums are cut'),
  '--xla_cpu_parallel_codegen_split_count': (
    _digits(1, _MOST_THREADS),
    'what is compiled together',
  ),
  '--xla_cpu_prefer_vector_width': (
    forms.one_of('128', '256', '512'),
    'how sums are cut',
  ),
  '--xla_cpu_max_isa': (
    forms.one_of(
      *('SSE4_2', 'AVX', 'AVX2', 'AVX512', 'AVX512_VNNI', 'AVX512_BF16'),
      *('AMX', 'AMX_FP16'),
    ),
    'instructions',
  ),
  '--xla_cpu_enable_fast_math': (_SWITCH, 'order of operations'),
  '--xla_cpu_fast_math_honor_nans': (_SWITCH, 'order of operations'),
  '--xla_cpu_fast_math_honor_infs': (_SWITCH, 'order of operations'),
  '--xla_cpu_fast_math_honor_division': (_SWITCH, 'order of operations'),
  '--xla_cpu_fast_math_honor_functions': (_SWITCH, 'order of operations'),
  '--xla_cpu_enable_fast_min_max': (_SWITCH, 'what becomes of NaN'),
  '--xla_gpu_deterministic_ops': (_SWITCH, 'order of sums'),
  '--xla_gpu_exclude_nondeterministic_ops': (_SWITCH, 'order of sums'),
  '--xla_gpu_autotune_level': (_digits(0, 4), 'which kernels are taken'),
  '--xla_gpu_enable_triton_gemm': (_SWITCH, 'which kernels are taken'),
}


class Refused(NamedTuple):
  """Something that a record asks for and may not set."""

  name: str
  recorded: Any

  def __str__(self):
    return (
      f'{self.name} was {self.recorded!r}, which no record may set for this '
      'process'
    )


def variable(name: str, value: Any) -> dict[str, str | None] | Refused:
  """The environment variables that bring something recorded about.

  Args:
    name: of `VARIABLES`.
    value: that was recorded.

  Returns:
    {variable: value to start with, None to start without}.
  """
  known, form, _ = VARIABLES[name]
  try:
    form(value, name)
  except forms.FormError:
    return Refused(name, value)
  found = {known: None if value is None else str(value)}
  return {'PJRT_NPROC': None, **found} if name == 'thread_pool' else found


def xla_flags(recorded: Any) -> tuple[str, list[Refused]]:
  """The flags of XLA that a process may be started with.

  Args:
    recorded: what XLA_FLAGS was.

  Returns:
    (those that are known, with known values, and the others).
  """
  if not isinstance(recorded, str):
    return '', [Refused('xla_flags', recorded)]
  taken, refused = [], []
  for flag in recorded.split():
    name, _, value = flag.partition('=')
    form, _ = XLA_FLAGS.get(name, (forms.one_of(), ''))
    try:
      form(value, name)
    except forms.FormError:
      refused.append(Refused('xla_flags', flag))
    else:
      taken.append(flag)
  return (' '.join(taken) if refused else recorded), refused
