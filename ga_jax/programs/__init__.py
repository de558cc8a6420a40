"""Worker programs: what a worker submits. One program, one file, one line."""

from ga_jax.programs.base import Program, Submission, Work
from ga_jax.programs.dana_slim import dana_slim
from ga_jax.programs.easgd import easgd
from ga_jax.programs.gradient import gradient
from ga_jax.programs.laga import laga
from ga_jax.programs.local_sgd import local_sgd
from ga_jax.programs.recurrent import recurrent

PROGRAMS = {
  'gradient': gradient,
  'local_sgd': local_sgd,
  'easgd': easgd,
  'laga': laga,
  'dana_slim': dana_slim,
}

__all__ = [
  'PROGRAMS',
  'Program',
  'Submission',
  'Work',
  'dana_slim',
  'easgd',
  'gradient',
  'laga',
  'local_sgd',
  'recurrent',
]
