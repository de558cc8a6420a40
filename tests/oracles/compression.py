"""One class per compression: `arrives(g)` is what is made of a gradient.

A gradient is one float32 vector.
"""

import math

import ml_dtypes
import numpy as np


class Unchanged:
  """g: what is sent as it is, or unbiased."""

  def arrives(self, g):
    return g


class BF16:
  """g to eight bits."""

  def arrives(self, g):
    return g.astype(ml_dtypes.bfloat16).astype(np.float32)


class TopK:
  """The largest of g + what is left, which keeps the rest."""

  def __init__(self, ratio):
    self.ratio, self.left = ratio, 0.0

  def arrives(self, g):
    total = g + self.left
    largest = np.argsort(-np.abs(total))[: math.ceil(self.ratio * g.size)]
    sent = np.zeros_like(g)
    sent[largest] = total[largest]
    self.left = total - sent
    return sent
