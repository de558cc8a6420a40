"""The rules of the catalogue, as benchmarks compare them; SGD beside them."""

from collections.abc import Callable

import optax

import ga_jax
from experiments.catalogue import assembly, methods

WORKERS = 4
SGD = 'SGD'


def named() -> dict[str, Callable[[], ga_jax.AsyncOptimizer]]:
  """What makes the rules of methods that are a rule and nothing else, and SGD.

  SGD is optax's, with momentum; the rules have their default parameters.
  """
  plain = methods.Method('')
  found = {SGD: lambda: ga_jax.lift(optax.sgd(0.1, momentum=0.9))}
  for name, method in methods.METHODS.items():
    others = (method.policy, method.program, method.compression)
    if others == (plain.policy, plain.program, plain.compression):
      found[name] = lambda method=method: assembly.assembled(
        method, {}, WORKERS
      ).rule()
  return found
