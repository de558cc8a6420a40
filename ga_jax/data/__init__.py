"""Data sets. One source, one file, one line in `DATASETS`."""

from ga_jax.data.base import (
  DataError,
  Dataset,
  Split,
  hold_out,
  make_dataset,
  to_float,
  training_source,
)
from ga_jax.data.digits import digits
from ga_jax.data.idx import idx
from ga_jax.data.npz import npz

DATASETS = {'digits': digits, 'idx': idx, 'npz': npz}

__all__ = [
  'DATASETS',
  'DataError',
  'Dataset',
  'Split',
  'digits',
  'hold_out',
  'idx',
  'make_dataset',
  'npz',
  'to_float',
  'training_source',
]
