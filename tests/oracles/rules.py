"""One class per rule: `arrive(g, sent, staleness, worker)` makes one update.

Parameters are one float64 vector. `sent()` is what a worker is sent now.
"""

import numpy as np


class ASGD:
  """v ← γ v + g; θ ← θ − η v, or the Nesterov form."""

  def __init__(self, theta, rate, momentum, nesterov=False, wd=0.0):
    self.theta = np.array(theta, np.float64)
    self.rate, self.momentum, self.nesterov, self.wd = (
      rate,
      momentum,
      nesterov,
      wd,
    )
    self.v = np.zeros_like(self.theta)
    self.updates = 0

  def sent(self):
    return self.theta.copy()

  def eta(self):
    return self.rate(self.updates) if callable(self.rate) else self.rate

  def arrive(self, g, sent, staleness, worker):
    self.descend(self.correct(g, sent, staleness), worker)
    self.updates += 1

  def correct(self, g, sent, staleness):
    return g + self.wd * self.theta

  def direction(self, g, worker):
    self.v = self.momentum * self.v + g
    return g + self.momentum * self.v if self.nesterov else self.v

  def descend(self, g, worker):
    self.theta = self.theta - self.eta() * self.direction(g, worker)


class Adam(ASGD):
  """AdamW: the decay is decoupled; `penalty` divides it in GA's form."""

  b1, b2, adam_eps = 0.9, 0.999, 1e-8
  penalty = 1.0

  def __init__(self, *args, **kwargs):
    super().__init__(*args, **kwargs)
    self.m1 = np.zeros_like(self.theta)
    self.m2 = np.zeros_like(self.theta)

  def correct(self, g, sent, staleness):
    return g

  def direction(self, g, worker):
    t = self.updates + 1
    self.m1 = self.b1 * self.m1 + (1 - self.b1) * g
    self.m2 = self.b2 * self.m2 + (1 - self.b2) * g * g
    m1 = self.m1 / (1 - self.b1**t)
    m2 = self.m2 / (1 - self.b2**t)
    ratio = m1 / (np.sqrt(m2) + self.adam_eps)
    return ratio + self.wd * self.theta / self.penalty


class SA(ASGD):
  """g ← g / τ for τ ≥ 1."""

  def correct(self, g, sent, staleness):
    return (g + self.wd * self.theta) / max(staleness, 1)


class DynSGD(ASGD):
  """g ← g / (τ + 1)."""

  def correct(self, g, sent, staleness):
    return (g + self.wd * self.theta) / (staleness + 1)


class StalenessDiscounted(ASGD):
  """g ← g / sqrt(1 + τ)."""

  def correct(self, g, sent, staleness):
    return (g + self.wd * self.theta) / np.sqrt(1 + staleness)


class DelayAdaptive(ASGD):
  """η ← η N / max(N, τ), as a factor of the gradient."""

  workers = 3

  def correct(self, g, sent, staleness):
    late = max(self.workers, staleness)
    return (g + self.wd * self.theta) * self.workers / late


class DCASGD(ASGD):
  """g ← g + λ g ⊙ g ⊙ (θ − θs)."""

  lam = 0.04

  def correct(self, g, sent, staleness):
    g = g + self.lam * g * g * (self.theta - sent)
    return g + self.wd * self.theta


class DCASGDAdaptive(ASGD):
  """λ = λ0 / sqrt(MS + 1e-7), with MS ← m MS + (1 − m) g ⊙ g before it."""

  lam0, m = 2.0, 0.95

  def __init__(self, *args, **kwargs):
    super().__init__(*args, **kwargs)
    self.ms = np.zeros_like(self.theta)

  def correct(self, g, sent, staleness):
    self.ms = self.m * self.ms + (1 - self.m) * g**2
    lam = self.lam0 / np.sqrt(self.ms + 1e-7)
    g = g + lam * g**2 * (self.theta - sent)
    return g + self.wd * self.theta


class GA(ASGD):
  """Gap-Aware; `granularity` 'parameter' or 'global'."""

  decay, eps, granularity = 0.999, 1e-8, 'parameter'

  def __init__(self, *args, **kwargs):
    super().__init__(*args, **kwargs)
    self.s = np.zeros_like(self.theta)
    self.n = 0
    self.eta_max = 0.0
    self.penalty = np.ones_like(self.theta)

  def correct(self, g, sent, staleness):
    self.eta_max = max(self.eta_max, self.eta())
    self.penalty = self.penalty_of(sent, staleness)
    return (g + self.wd * self.theta) / self.penalty

  def penalty_of(self, sent, staleness):
    ones = np.ones_like(self.theta)
    if self.n == 0 or staleness == 0 or self.eta_max == 0:
      return ones
    corrected = self.s / (1 - self.decay**self.n)
    gap = np.abs(self.theta - sent)
    if self.granularity == 'global':
      gap = np.sqrt(np.mean(gap**2))
    return ones + gap / (self.eta_max * (np.sqrt(corrected) + self.eps))

  def descend(self, g, worker):
    u = self.direction(g, worker)
    self.observe(u)
    self.theta = self.theta - self.eta() * u

  def observe(self, u):
    square = u * u if self.granularity == 'parameter' else np.mean(u * u)
    self.s = self.decay * self.s + (1 - self.decay) * square
    self.n += 1


class GAGlobal(GA):
  granularity = 'global'


class GAAdam(Adam, GA):
  """AdamW's step is the direction; wd is decoupled and divided by G too."""

  def correct(self, g, sent, staleness):
    self.eta_max = max(self.eta_max, self.eta())
    self.penalty = self.penalty_of(sent, staleness)
    return g / self.penalty


class MultiASGD(ASGD):
  """v_w ← γ v_w + g; θ ← θ − η v_w."""

  workers = 3

  def __init__(self, *args, **kwargs):
    super().__init__(*args, **kwargs)
    self.buffers = [np.zeros_like(self.theta) for _ in range(self.workers)]
    self.last_eta = 0.0

  def direction(self, g, worker):
    self.buffers[worker] = self.momentum * self.buffers[worker] + g
    self.last_eta = self.eta()
    return self.buffers[worker]


class DANAZero(MultiASGD):
  """Multi-ASGD; sent: θ − η γ Σ_j v_j."""

  def sent(self):
    total = np.sum(self.buffers, axis=0)
    return self.theta - self.last_eta * self.momentum * total


class DANAGA(GA, DANAZero):
  """The GA penalty, then DANA-Zero."""


class DANASlim(MultiASGD):
  """v_w ← γ v_w + g; θ ← θ − η (γ v_w + g)."""

  def direction(self, g, worker):
    return self.momentum * super().direction(g, worker) + g


class DANADC(DCASGD, DANAZero):
  """The DC term with λ = 2, then DANA-Zero."""

  lam = 2.0


class LWP(ASGD):
  """Momentum SGD; sent: θ − (N − 1) η v."""

  workers = 3
  last_eta = 0.0

  def descend(self, g, worker):
    super().descend(g, worker)
    self.last_eta = self.eta()

  def sent(self):
    return self.theta - (self.workers - 1) * self.last_eta * self.v


class SMEGA2(ASGD):
  """θ ← θ − η (g + γ v); v ← γ v + mean of the cycle's N gradients.

  Sent: θ − η γ [(N + c (γ − 1)) v + (c / N) G].
  """

  workers = 3

  def __init__(self, *args, **kwargs):
    super().__init__(*args, **kwargs)
    self.cycle = []
    self.last_eta = 0.0

  def direction(self, g, worker):
    u = g + self.momentum * self.v
    self.cycle.append(g)
    if len(self.cycle) == self.workers:
      self.v = self.momentum * self.v + np.mean(self.cycle, axis=0)
      self.cycle = []
    self.last_eta = self.eta()
    return u

  def sent(self):
    n, c = self.workers, len(self.cycle)
    total = sum(self.cycle, np.zeros_like(self.theta))
    ahead = (n + c * (self.momentum - 1)) * self.v + c / n * total
    return self.theta - self.last_eta * self.momentum * ahead


class DelayedNesterov(ASGD):
  """θ ← θ − η g / N; every N-th m ← γ m + mean, θ ← θ − η (γ m + g / N)."""

  workers = 3

  def __init__(self, *args, **kwargs):
    super().__init__(*args, **kwargs)
    self.cycle = []

  def direction(self, g, worker):
    self.cycle.append(g)
    if len(self.cycle) < self.workers:
      return g / self.workers
    self.v = self.momentum * self.v + np.mean(self.cycle, axis=0)
    self.cycle = []
    return self.momentum * self.v + g / self.workers


class OrMo(ASGD):
  """In closed form: a gradient of round r weighs Σ_{k ≤ R − r} γ^k in round R.

  Rounds are ⌈version / N⌉; R is that of the last update.
  """

  workers = 3

  def __init__(self, *args, **kwargs):
    super().__init__(*args, **kwargs)
    self.start = self.theta
    self.steps = []  # (round it was read in, η g)

  def descend(self, g, worker):
    now = int(np.ceil(self.updates / self.workers))
    read = int(np.ceil((self.updates - self.staleness) / self.workers))
    self.steps.append((read, self.eta() * g))
    self.theta = self.start - sum(
      step * sum(self.momentum**k for k in range(now - r + 1))
      for r, step in self.steps
    )

  def correct(self, g, sent, staleness):
    self.staleness = staleness
    return super().correct(g, sent, staleness)


class PenalizeGap(ASGD):
  """m ← Γ m + (1 − Γ) Δθ²; C = max sqrt(m / (1 − Γ^n)); g ← g / (1 + gap / C).

  The movement Δθ is seen between two gradients; what never moved is as it was.
  """

  decay = 0.999

  def __init__(self, *args, **kwargs):
    super().__init__(*args, **kwargs)
    self.previous, self.n = None, 0
    self.m = np.zeros_like(self.theta)
    self.scale = np.zeros_like(self.theta)

  def observe(self):
    if self.previous is not None and np.any(self.theta != self.previous):
      self.n += 1
      moved = self.theta - self.previous
      self.m = self.decay * self.m + (1 - self.decay) * moved**2
      root = np.sqrt(self.m / (1 - self.decay**self.n))
      self.scale = np.maximum(self.scale, root)
    self.previous = self.theta

  def correct(self, g, sent, staleness):
    self.observe()
    if self.n == 0 or staleness == 0:
      return g
    gap = np.abs(self.theta - sent)
    return g / np.where(self.scale > 0, 1 + gap / self.scale, 1.0)
