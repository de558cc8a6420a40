"""Named methods: which rule, policy, worker program and compression."""

from typing import NamedTuple

PARTS = ('rule', 'policy', 'program', 'compression')


class Method(NamedTuple):
  """A named composition of parts.

  Attributes:
    about: what it does, in one line.
    paper: whose it is; '' for what has no paper.
    rule: a name in `rules.RULES`.
    policy: a name in `policies.POLICIES`.
    program: a name in `programs.PROGRAMS`.
    compression: a name in `compression.COMPRESSIONS`.
    fixed: parameters that the name implies, of whichever part reads them.
  """

  about: str
  paper: str = ''
  rule: str = 'asgd'
  policy: str = 'asynchronous'
  program: str = 'gradient'
  compression: str = 'none'
  fixed: tuple[tuple[str, object], ...] = ()


_HAKIMI = 'Hakimi et al. 2019, arXiv:1907.11612'
_BARKAI = 'Barkai et al. 2020, arXiv:1909.10802'
_ZHANG = 'Zhang et al. 2016, arXiv:1511.05950'
_ZHENG = 'Zheng et al. 2017, arXiv:1609.08326'
_DUTTA = 'Dutta et al. 2018, arXiv:1803.01113'
_ADASYNC = 'Dutta et al. 2020, arXiv:2003.10579'
_RING = 'Maranjyan et al. 2025, arXiv:2501.16168'
_ELASTIC = 'Zhang, Choromanska, LeCun 2015, arXiv:1412.6651'
METHODS = {
  # Server rules.
  'asgd': Method('applies a gradient as if it were fresh', 'Dean et al. 2012'),
  'nag_asgd': Method(
    'the same with Nesterov momentum', fixed=(('nesterov', True),)
  ),
  'adam': Method(
    'AdamW, every gradient as if it were fresh',
    'Kingma, Ba 2015, arXiv:1412.6980',
    'adam',
  ),
  'sa': Method('divides it by its staleness', _ZHANG, 'sa'),
  'dynsgd': Method(
    'divides it by staleness + 1', 'Jiang et al. 2017 (SIGMOD)', 'dynsgd'
  ),
  'staleness_discounted': Method(
    'divides it by (1 + staleness)^a',
    'Xie et al. 2019, arXiv:1903.03934',
    'staleness_discounted',
  ),
  'delay_adaptive': Method(
    'no penalty up to a staleness of N, then N / staleness',
    'Mishchenko et al. 2022, arXiv:2206.07638',
    'delay_adaptive',
  ),
  'ga': Method(
    'divides it, per parameter, by 1 + gap / (distance of one update)',
    _BARKAI,
    'ga',
  ),
  'ga_global': Method(
    'the same with one penalty for all parameters',
    _BARKAI,
    'ga',
    fixed=(('granularity', 'global'),),
  ),
  'ga_adam': Method('AdamW with the penalty of GA', _BARKAI, 'ga_adam'),
  'dc_asgd': Method('adds λ g ⊙ g ⊙ (θ − θ stale)', _ZHENG, 'dc_asgd'),
  'dc_asgd_a': Method(
    'the same, λ over the root mean square of the gradient',
    _ZHENG,
    'dc_asgd_a',
  ),
  'multi_asgd': Method('one momentum buffer per worker', _HAKIMI, 'multi_asgd'),
  'dana_zero': Method(
    'the same, and workers are sent a look-ahead over all buffers',
    _HAKIMI,
    'dana_zero',
  ),
  'dana_slim': Method(
    'the same position with the momentum kept by the workers',
    _HAKIMI,
    program='dana_slim',
  ),
  'dana_dc': Method('DC-ASGD, then DANA-Zero', _HAKIMI, 'dana_dc'),
  'dana_ga': Method('GA, then DANA-Zero', _BARKAI, 'dana_ga'),
  'lwp': Method(
    'workers are sent the weights predicted N − 1 updates ahead',
    'Kosson et al. 2020, arXiv:2003.11666',
    'lwp',
  ),
  'smega2': Method(
    'one buffer for any N, folded in every N updates, with a look-ahead',
    'Cohen et al. 2022 (ICPP)',
    'smega2',
  ),
  'ormo': Method(
    'a late gradient enters momentum with the weight of its own round',
    'Shi et al. 2024, arXiv:2407.19234',
    'ormo',
  ),
  'delayed_nesterov': Method(
    'momentum every N gradients only, from their average',
    'Liu et al. 2024, arXiv:2401.09135',
    'delayed_nesterov',
  ),
  # Policies.
  'ssgd': Method(
    'waits for all workers and averages',
    'Chen et al. 2016, arXiv:1604.00981',
    policy='synchronous',
  ),
  'backup_workers': Method(
    'waits for all but b workers, drops the rest of the round',
    'Chen et al. 2016, arXiv:1604.00981',
    policy='backup_workers',
  ),
  'k_sync': Method(
    'averages the first K, cancels the others', _DUTTA, policy='k_sync'
  ),
  'k_async': Method(
    'averages the first K, the others run on', _DUTTA, policy='k_async'
  ),
  'softsync': Method(
    'averages floor(N / n) gradients from any workers',
    _ZHANG,
    policy='softsync',
  ),
  'sa_softsync': Method(
    'the same, each divided by its staleness', _ZHANG, 'sa', 'softsync'
  ),
  'ssp': Method(
    'no worker leads the slowest by more than s steps',
    'Ho et al. 2013 (NIPS)',
    policy='ssp',
  ),
  'adasync': Method(
    'K-async with K growing as the loss falls', _ADASYNC, policy='adasync'
  ),
  'sa_adasync': Method(
    'the same, each divided by its staleness', _ADASYNC, 'sa', 'adasync'
  ),
  'abs': Method(
    'K grows as the loss falls; too stale workers begin again',
    'Tan et al. 2023, arXiv:2301.08895',
    policy='abs',
  ),
  'gba': Method(
    'averages N gradients from any workers, too stale ones dropped',
    'Su et al. 2022, arXiv:2205.11048',
    policy='gba',
  ),
  'fedbuff': Method(
    'buffers K results of local steps, discounted by staleness',
    'Nguyen et al. 2022, arXiv:2106.06639',
    'staleness_discounted',
    'fedbuff',
    'local_sgd',
  ),
  'ringmaster': Method(
    'ignores gradients of staleness R or more', _RING, policy='ringmaster'
  ),
  'ringmaster_stops': Method(
    'restarts a worker as soon as its staleness is R',
    _RING,
    policy='ringmaster_stops',
  ),
  'rennala': Method(
    'averages K gradients of the current version, drops stale ones',
    'Tyurin, Richtárik 2023, arXiv:2305.12387',
    policy='rennala',
  ),
  # Worker programs.
  'local_sgd': Method(
    'U steps on the worker, the way it went is submitted',
    'Stich 2019, arXiv:1805.09767',
    program='local_sgd',
  ),
  'easgd': Method(
    'workers keep their own parameters, tied to the centre elastically',
    _ELASTIC,
    program='easgd',
  ),
  'eamsgd': Method(
    'the same with momentum on the workers',
    _ELASTIC,
    program='easgd',
    fixed=(('local_momentum', 0.9),),
  ),
  'laga': Method(
    'submits the sum of U gradients, computes while messages fly',
    'Hakimi et al. 2021 (ICDM)',
    program='laga',
  ),
  # Compression.
  'bf16': Method('gradients sent as bfloat16', compression='bf16'),
  'terngrad': Method(
    'two bits per component, unbiased',
    'Wen et al. 2017, arXiv:1705.07878',
    compression='terngrad',
  ),
  'topk': Method(
    'the largest components only, the rest kept for later',
    'Aji, Heafield 2017, arXiv:1704.05021',
    compression='topk',
  ),
}
# Which page of docs/methods describes them.
FAMILIES = {
  'staleness': (
    *('asgd', 'nag_asgd', 'adam', 'sa', 'dynsgd'),
    *('staleness_discounted', 'delay_adaptive'),
  ),
  'gap_aware': ('ga', 'ga_global', 'ga_adam'),
  'dana': ('dana_zero', 'dana_slim', 'dana_dc', 'dana_ga'),
  'dc_asgd': ('dc_asgd', 'dc_asgd_a'),
  'prediction': ('lwp', 'smega2'),
  'momentum': ('multi_asgd', 'ormo', 'delayed_nesterov'),
  'synchronous': (
    *('ssgd', 'backup_workers', 'k_sync', 'k_async', 'softsync'),
    *('sa_softsync', 'gba', 'rennala'),
  ),
  'bounded': (
    *('ssp', 'adasync', 'sa_adasync', 'abs'),
    *('ringmaster', 'ringmaster_stops'),
  ),
  'local': ('local_sgd', 'fedbuff', 'easgd', 'eamsgd', 'laga'),
  'compression': ('bf16', 'terngrad', 'topk'),
}
