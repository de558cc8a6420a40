"""Models: pairs of pure functions. One family, one file."""

from ga_jax.models.base import Model, from_linen
from ga_jax.models.cnn import cnn, cnn_bn
from ga_jax.models.mlp import mlp, mlp_bn

MODELS = {'mlp': mlp, 'mlp_bn': mlp_bn, 'cnn': cnn, 'cnn_bn': cnn_bn}

__all__ = [
  'MODELS',
  'Model',
  'cnn',
  'cnn_bn',
  'from_linen',
  'mlp',
  'mlp_bn',
]
