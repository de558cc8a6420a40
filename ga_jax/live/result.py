"""What a live run leaves behind beyond what every run does."""

import dataclasses
from typing import NamedTuple

from ga_jax.job.result import Result
from ga_jax.workers import worker


class Telemetry(NamedTuple):
  """Where one worker's time went, in seconds, and what it did."""

  wait: float = 0.0
  transfer: float = 0.0
  compute: float = 0.0
  answers: int = 0

  def plus(self, seconds: worker.Seconds) -> 'Telemetry':
    """With one more answer."""
    wait, transfer, compute = seconds
    return Telemetry(
      self.wait + wait,
      self.transfer + transfer,
      self.compute + compute,
      self.answers + 1,
    )

  @property
  def utilisation(self) -> float:
    """The part of its time in which the worker computed."""
    total = self.wait + self.transfer + self.compute
    return self.compute / total if total else 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class LiveResult(Result):
  """What a live run leaves behind.

  Attributes:
    refused: answers and tickets that were refused, by cause; what a record does
      not tell of an earlier process is `recovery.UNRECORDED`.
    workers: telemetry by worker.
    stopped: whether it was stopped before its end.
  """

  refused: dict[str, int]
  workers: dict[int, Telemetry]
  stopped: bool
