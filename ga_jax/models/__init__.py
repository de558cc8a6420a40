"""Models: pairs of pure functions. One family, one file."""

from ga_jax.models.base import Model, from_linen
from ga_jax.models.caffe import cnn3
from ga_jax.models.cnn import cnn, cnn_bn
from ga_jax.models.language import LanguageModel
from ga_jax.models.layers import COMPUTE_DTYPES
from ga_jax.models.mlp import mlp, mlp_bn
from ga_jax.models.resnet import resnet20, resnet50
from ga_jax.models.transformer_xl import transformer_xl, transformer_xl_small
from ga_jax.models.wide_resnet import wrn_16_4

MODELS = {
  'mlp': mlp,
  'mlp_bn': mlp_bn,
  'cnn': cnn,
  'cnn_bn': cnn_bn,
  'cnn3': cnn3,
  'resnet20': resnet20,
  'wrn_16_4': wrn_16_4,
  'resnet50': resnet50,
  'transformer_xl_small': transformer_xl_small,
  'transformer_xl': transformer_xl,
}

__all__ = [
  'COMPUTE_DTYPES',
  'MODELS',
  'LanguageModel',
  'Model',
  'cnn',
  'cnn3',
  'cnn_bn',
  'from_linen',
  'mlp',
  'mlp_bn',
  'resnet20',
  'resnet50',
  'transformer_xl',
  'transformer_xl_small',
  'wrn_16_4',
]
