"""Data sets. One source, one file, one line in `DATASETS`."""

from ga_jax.data.base import (
  Batch,
  DataError,
  Dataset,
  Split,
  hold_out,
  make_dataset,
  training_source,
)
from ga_jax.data.cifar import cifar10, cifar100, published
from ga_jax.data.corpus import Corpus, Vocabulary
from ga_jax.data.digits import digits
from ga_jax.data.idx import idx
from ga_jax.data.imagenet import imagenet2012
from ga_jax.data.npz import npz
from ga_jax.data.origins import GIVEN
from ga_jax.data.origins import of as origin
from ga_jax.data.scaling import to_float
from ga_jax.data.stream import Stream
from ga_jax.data.text import characters, text
from ga_jax.data.tfds_images import fashion_mnist
from ga_jax.data.wikitext import wikitext103

DATASETS = {
  'digits': digits,
  'idx': idx,
  'npz': npz,
  'cifar10': cifar10,
  'cifar100': cifar100,
  'fashion_mnist': fashion_mnist,
  'imagenet2012': imagenet2012,
  'text': text,
  'characters': characters,
  'wikitext103': wikitext103,
}

__all__ = [
  'DATASETS',
  'GIVEN',
  'Batch',
  'Corpus',
  'DataError',
  'Dataset',
  'Split',
  'Stream',
  'Vocabulary',
  'characters',
  'cifar10',
  'cifar100',
  'digits',
  'fashion_mnist',
  'hold_out',
  'idx',
  'imagenet2012',
  'make_dataset',
  'npz',
  'origin',
  'published',
  'text',
  'to_float',
  'training_source',
  'wikitext103',
]
