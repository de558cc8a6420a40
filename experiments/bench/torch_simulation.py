r"""Asynchronous training simulated in PyTorch in the plain style, by Gap-Aware.

What a user would write instead of `ga_jax.simulate`: a heap of finishing times,
a clone of the parameters per worker, autograd on that clone, the penalty in
torch operations, and `torch.optim.SGD` for the momentum. Written from the
formula of `ga_jax.rules.ga`; it keeps losses and no other metrics.

Memory is reused where that is easy: each worker has a copy of the model that a
new snapshot is copied into, and BatchNorm's running statistics are shared by
all of them (as in the published code of the method).
"""

import copy
import heapq
import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional


class GapAware:
  """One parameter after the other."""

  def __init__(self, params, rate: float, momentum=0.9, decay=0.999, eps=1e-8):
    self.params = list(params)
    self.rate, self.decay, self.eps = rate, decay, eps
    self.moments = [torch.zeros_like(p) for p in self.params]
    self.count = 0
    self.sgd = torch.optim.SGD(
      self.params, rate, momentum=momentum, foreach=self.foreach
    )

  foreach = False

  @torch.no_grad()
  def update(self, stale_params, staleness: int):
    """Applies the gradients that are in `stale_params`."""
    if staleness and self.count:
      self.penalize(stale_params, 1 - self.decay**self.count)
    for p, stale in zip(self.params, stale_params, strict=True):
      p.grad = stale.grad
    self.sgd.step()
    self.square(self.directions())
    self.count += 1

  def directions(self):
    """u of every parameter."""
    return [self.sgd.state[p]['momentum_buffer'] for p in self.params]

  def penalize(self, stale_params, bias: float):
    """Divides by G = 1 + |θ − θ_s| / (η (sqrt(s / bias) + ε))."""
    for p, stale, s in zip(
      self.params, stale_params, self.moments, strict=True
    ):
      scale = (s / bias).sqrt_().add_(self.eps).mul_(self.rate)
      stale.grad.div_((p - stale).abs_().div_(scale).add_(1))

  def square(self, directions):
    """s ← Γ s + (1 − Γ) u²."""
    for s, u in zip(self.moments, directions, strict=True):
      s.mul_(self.decay).addcmul_(u, u, value=1 - self.decay)

  def publish(self, stale_params):
    """A worker reads the parameters."""
    with torch.no_grad():
      for p, stale in zip(self.params, stale_params, strict=True):
        stale.copy_(p)


class ForeachGapAware(GapAware):
  """All parameters in one call of torch per operation."""

  foreach = True

  def penalize(self, stale_params, bias):
    scales = torch._foreach_div(self.moments, bias)
    torch._foreach_sqrt_(scales)
    torch._foreach_add_(scales, self.eps)
    torch._foreach_mul_(scales, self.rate)
    gaps = torch._foreach_sub(self.params, stale_params)
    torch._foreach_abs_(gaps)
    torch._foreach_div_(gaps, scales)
    torch._foreach_add_(gaps, 1)
    torch._foreach_div_([stale.grad for stale in stale_params], gaps)

  def square(self, directions):
    torch._foreach_mul_(self.moments, self.decay)
    torch._foreach_addcmul_(
      self.moments, directions, directions, value=1 - self.decay
    )

  def publish(self, stale_params):
    with torch.no_grad():
      torch._foreach_copy_(stale_params, self.params)


class Arrival(NamedTuple):
  """Who finished which batch."""

  worker_id: int
  batch_id: int


def event_heap(num_workers: int, seed: int) -> Iterator[Arrival]:
  """Workers as they finish; each begins the next batch at once.

  Task times are Gamma(100, 1/100), those of `clocks.homogeneous`.
  """
  rng, batch_ids = np.random.default_rng(seed), itertools.count()

  def task_time():
    return rng.gamma(100.0, 0.01)

  heap = [(task_time(), w, next(batch_ids)) for w in range(num_workers)]
  heapq.heapify(heap)
  while True:
    now, worker_id, batch_id = heap[0]
    yield Arrival(worker_id, batch_id)
    heapq.heapreplace(heap, (now + task_time(), worker_id, next(batch_ids)))


def loss_of(model, inputs, labels):
  """Mean cross entropy."""
  logits = model(inputs)
  return functional.cross_entropy(logits.flatten(0, -2), labels.flatten())


class Simulation:
  """N workers and a server; it goes on where it stopped.

  Attributes:
    model: has the server's parameters.
    batch_fn: `batch_fn(batch_id) -> (inputs, labels)`.
    loss_fn: `loss_fn(model, inputs, labels)`.
    losses: of every arrival, 0-d tensors.
  """

  def __init__(
    self,
    model: torch.nn.Module,
    rule: GapAware,
    batch_fn: Callable[[int], tuple[torch.Tensor, torch.Tensor]],
    arrivals: Iterator[Arrival],
    num_workers: int,
    loss_fn: Callable[..., torch.Tensor] = loss_of,
  ):
    self.model, self.losses = model, []
    self.batch_fn, self.loss_fn = batch_fn, loss_fn
    self._rule, self._arrivals, self._version = rule, arrivals, 0
    shared = {id(buffer): buffer for buffer in model.buffers()}
    self._workers = [
      copy.deepcopy(model, dict(shared)) for _ in range(num_workers)
    ]
    self._stale = [list(w.parameters()) for w in self._workers]
    self._read = [0] * num_workers

  def run(self, num_updates: int):
    """Computes so many arrivals."""
    for worker_id, batch_id in itertools.islice(self._arrivals, num_updates):
      worker, stale = self._workers[worker_id], self._stale[worker_id]
      worker.zero_grad()
      loss = self.loss_fn(worker, *self.batch_fn(batch_id))
      loss.backward()
      self.losses.append(loss.detach())
      self._rule.update(stale, self._version - self._read[worker_id])
      self._rule.publish(stale)
      self._version += 1
      self._read[worker_id] = self._version
    next(self.model.parameters()).flatten()[0].item()  # waits for a device
