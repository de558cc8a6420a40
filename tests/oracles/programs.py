"""One class per worker program: `submits(sent, now, batches)` is one ticket.

Parameters are one float64 vector; a batch is an array too, and its gradient at
x is `gradient(x, batch)`. `now` are the server's parameters at arrival.
"""

import numpy as np


def gradient(x, batch):
  """Of ½ Σ (x − batch)²."""
  return x - batch


class Gradient:
  """g."""

  def submits(self, sent, now, batches):
    (batch,) = batches
    return gradient(sent, batch)


class LocalSGD:
  """x ← x − η g from what was sent; θ_sent − x."""

  def __init__(self, rate):
    self.rate = rate

  def submits(self, sent, now, batches):
    x = np.array(sent)
    for batch in batches:
      x = x - self.rate * gradient(x, batch)
    return sent - x


class EASGD:
  """x ← x − η g of its own; E = α (x − θ), x ← x − E; −E."""

  def __init__(self, rate, elasticity):
    self.rate, self.elasticity, self.x = rate, elasticity, None

  def submits(self, sent, now, batches):
    x = np.array(sent) if self.x is None else self.x
    for batch in batches:
      x = x - self.rate * gradient(x, batch)
    elastic = self.elasticity * (x - now)
    self.x = x - elastic
    return -elastic


class LAGA:
  """Σ g at what was sent."""

  def submits(self, sent, now, batches):
    return sum(gradient(sent, batch) for batch in batches)


class DANASlim:
  """v ← γ v + g; γ v + g."""

  def __init__(self, momentum):
    self.momentum, self.v = momentum, 0.0

  def submits(self, sent, now, batches):
    (batch,) = batches
    g = gradient(sent, batch)
    self.v = self.momentum * self.v + g
    return self.momentum * self.v + g
