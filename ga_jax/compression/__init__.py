"""Compression of submissions. One stage, one file, one line here."""

from ga_jax.compression.base import Compression, compressed
from ga_jax.compression.bf16 import bf16
from ga_jax.compression.none import none
from ga_jax.compression.terngrad import terngrad
from ga_jax.compression.topk import topk

COMPRESSIONS = {
  'none': none,
  'bf16': bf16,
  'terngrad': terngrad,
  'topk': topk,
}

__all__ = [
  'COMPRESSIONS',
  'Compression',
  'bf16',
  'compressed',
  'none',
  'terngrad',
  'topk',
]
