"""What a language model is: pure functions with a memory of the text before."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class LanguageModel(NamedTuple):
  """A model of the next token that remembers the segment before.

  Attributes:
    init: `init(key) -> params`.
    memory: `memory(batch_size) -> empty memory`; all zeros.
    losses: `losses(params, memory, tokens, targets, key) -> (losses, memory)`,
      all [B, L]: −log p of each target, in nats. `key` is of the dropout, None
      for none.
    log_probs: `log_probs(params, memory, tokens) -> (log p [B, V], memory)` of
      the token that comes after tokens [B, L].
    segment_length: L that it is trained with.
    stats_momentum: there are no running statistics.
    reads: what a task checks.
  """

  init: Callable[[jax.Array], Any]
  memory: Callable[[int], Any]
  losses: Callable[..., tuple[jax.Array, Any]]
  log_probs: Callable[..., tuple[jax.Array, Any]]
  segment_length: int
  stats_momentum: float = 0.0
  reads: str = 'tokens'
