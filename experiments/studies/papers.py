"""The tables and figures that `experiments.reproduce` makes.

A table is a preset (experiments/presets), lines (a method with its momentum and
so on) and columns (numbers of workers, mostly). Published figures stand here
with their sources; where none is given, none was available to us.
"""

from experiments.studies import design

FLOPS = 10e12  # that an accelerator is taken to sustain, per second
# Of one example, forward: two per multiplication and addition.
_RESNET20, _WRN, _RESNET50 = 2 * 41e6, 2 * 395e6, 2 * 4.1e9
_CNN3, _TRANSFORMER = 2 * 12e6, 2 * 151e6
_CIFAR, _IMAGENET, _WIKITEXT = 50_000, 1_281_167, 103e6
PAPER = ('asgd', 'nag_asgd', 'sa', 'ga', 'dana_zero', 'dana_ga', 'dc_asgd_a')
# The papers' WideResNets take Nesterov's momentum; DANA-Zero's is of its kind.
NESTEROV = (
  *design.methods(('asgd', 'sa', 'ga', 'dc_asgd_a'), nesterov=True),
  *design.methods(('dana_zero', 'dana_ga')),
)
# Without momentum NAG, DANA-Zero and SMEGA2 are ASGD, and DANA-GA is GA.
PLAIN = ('asgd', 'sa', 'ga', 'dc_asgd', 'ssgd', 'abs')
FAMILIES = (
  *('asgd', 'nag_asgd', 'sa', 'ga', 'dana_zero', 'dana_ga'),
  *('dc_asgd', 'smega2', 'ssgd', 'abs'),
)
_NO_MOMENTUM = (
  'Without momentum NAG, DANA-Zero and SMEGA2 are ASGD, and DANA-GA is GA.'
)
_PAPER_WORKERS = design.workers(1, 4, 8, 16, 24, 32, 48, 64, 128)
_SHORT_RESNET = (
  *('--seeds=1', '--epochs=16', '--boundaries=8,12', '--warmup_epochs=0.5'),
)
_SHORT_WRN = (
  *('--seeds=1', '--epochs=20', '--boundaries=6,12,16', '--warmup_epochs=0.5'),
)
_HALF_DECADES = (0.01, 10**-1.5, 0.1, 10**-0.5)
BARKAI = 'Barkai et al., ICLR 2020, arXiv:1909.10802'
HAKIMI = 'Hakimi et al. 2019, arXiv:1907.11612'
ZHENG = 'Zheng et al., ICML 2017, arXiv:1609.08326'
ZHANG = 'Zhang et al., IJCAI 2016, arXiv:1511.05950'
_RESNET20_PUBLISHED = {
  ('', 'N = 1'): ('8.37', BARKAI + " and its authors' later papers"),
  ('dc_asgd_a', 'N = 4'): ('8.19', ZHENG),
  ('asgd', 'N = 4'): ('9.27', ZHENG),
}
_TIMES = design.methods(
  ('asgd', 'ga', 'ssgd', 'adasync', 'sa_adasync', 'abs', 'local_sgd')
)


def _softsync(*ns: int) -> tuple[design.Column, ...]:
  return tuple(design.Column(f'n = {n}', 30, (('softsync_n', n),)) for n in ns)


TABLES = {
  'digits_mlp': design.Table(
    'a first one: every kind of rule on digits, both protocols',
    'digits_mlp',
    (
      *design.methods(('asgd', 'sa', 'ga', 'ssgd'), (0.0,)),
      *design.methods(
        ('asgd', 'sa', 'ga', 'dana_zero', 'dana_ga', 'ssgd'), (0.9,)
      ),
    ),
    design.workers(1, 8, 16, 32),
    rates=(0.01, 10**-1.5, 0.1),
    note=f'Digits is too easy to rank methods. {_NO_MOMENTUM}',
    pictures=('workers', 'rates'),
    smoke=('--epochs=2', '--seeds=1', '--columns=2'),
  ),
  'cifar10_resnet20': design.Table(
    'GA: CIFAR-10, ResNet-20, error over workers',
    'cifar10_resnet20',
    design.methods(PAPER),
    _PAPER_WORKERS,
    published=_RESNET20_PUBLISHED,
    epoch_flops=3 * _RESNET20 * _CIFAR,
    short=_SHORT_RESNET,
  ),
  'cifar10_wrn_16_4': design.Table(
    'GA: CIFAR-10, WideResNet-16-4, error over workers',
    'cifar10_wrn_16_4',
    NESTEROV,
    _PAPER_WORKERS,
    epoch_flops=3 * _WRN * _CIFAR,
    short=_SHORT_WRN,
  ),
  'cifar100_wrn_16_4': design.Table(
    'GA: CIFAR-100, WideResNet-16-4, error over workers',
    'cifar100_wrn_16_4',
    NESTEROV,
    _PAPER_WORKERS,
    epoch_flops=3 * _WRN * _CIFAR,
    short=_SHORT_WRN,
  ),
  'imagenet_resnet50': design.Table(
    'GA: ImageNet, ResNet-50, error over workers',
    'imagenet_resnet50',
    design.methods(PAPER),
    design.workers(1, 16, 32, 48, 64),
    seeds=1,
    published={('dana_zero', 'N = 16'): ('24.27', HAKIMI)},
    epoch_flops=3 * _RESNET50 * _IMAGENET,
    short=('--epochs=9', '--boundaries=3,6', '--warmup_epochs=0.5'),
  ),
  'wikitext103_transformer_xl': design.Table(
    'GA: WikiText-103, Transformer-XL, perplexity over workers',
    'wikitext103_transformer_xl',
    design.methods(('ga_adam', 'adam')),
    design.workers(1, 4, 8, 16),
    seeds=1,
    short=('--epochs=1.75',),
    epoch_flops=3 * _TRANSFORMER * _WIKITEXT,
  ),
  'text_transformer_xl': design.Table(
    'perplexity over epochs, a small Transformer-XL on a real text',
    'text_transformer_xl_small',
    design.methods(('ga_adam', 'adam')),
    design.workers(1, 8),
    seeds=1,
    pictures=('epochs',),
    note='The rate is for 8 workers, the better of 2.5e-4 and 5e-4 by the '
    'validation split. A model of single words, counted in training, has a '
    'test perplexity of 345. One seed: nothing is claimed about differences.',
    smoke=('--epochs=0.01', '--evaluate_every=0.01'),
    short=('--epochs=0.25',),
  ),
  'cifar10_workers': design.Table(
    'CIFAR-10, ResNet-20, with momentum and without, error over workers',
    'cifar10_resnet20',
    (
      *design.methods(
        ('asgd', 'nag_asgd', 'sa', 'ga', 'dc_asgd', 'dana_zero', 'dana_ga'),
        (0.9,),
      ),
      *design.methods(('asgd', 'sa', 'ga'), (0.0,)),
    ),
    design.workers(1, 8, 16, 32, 64),
    seeds=3,
    note=_NO_MOMENTUM,
    epoch_flops=3 * _RESNET20 * _CIFAR,
    short=_SHORT_RESNET,
  ),
  'cifar10_curves': design.Table(
    'GA: error, gap, penalty and staleness over epochs',
    'cifar10_resnet20',
    design.methods(('asgd', 'sa', 'ga', 'dana_zero', 'dana_ga')),
    design.workers(1, 8, 32),
    pictures=('epochs',),
    epoch_flops=3 * _RESNET20 * _CIFAR,
    short=_SHORT_RESNET,
  ),
  'cifar10_momentum': design.Table(
    'is momentum beneficial? momentum 0 and 0.9, with and without GA',
    'cifar10_resnet20',
    (
      *design.methods(('asgd', 'ga'), (0.0,)),
      *design.methods(('asgd', 'ga', 'dana_zero', 'dana_ga'), (0.9,)),
    ),
    design.workers(1, 8, 16, 32, 64),
    flags=('--holdout=5000',),
    rates=_HALF_DECADES,
    note=_NO_MOMENTUM,
    pictures=('workers', 'rates'),
    epoch_flops=3 * _RESNET20 * _CIFAR,
    short=_SHORT_RESNET,
  ),
  'cifar10_softsync': design.Table(
    'SA: n-softsync with 30 workers, with and without 1/staleness',
    'cifar10_softsync',
    design.methods(('softsync', 'sa_softsync')),
    _softsync(1, 2, 3, 15, 30),
    published={
      ('sa_softsync', f'n = {n}'): ('about 18', ZHANG)
      for n in (1, 2, 3, 15, 30)
    }
    | {('softsync', f'n = {n}'): ('90', ZHANG) for n in (15, 30)},
    epoch_flops=3 * _CNN3 * _CIFAR,
    short=('--seeds=1', '--epochs=14', '--boundaries=12,13'),
  ),
  'cifar10_abs': design.Table(
    'ABS: time and communication rounds on a heterogeneous cluster',
    'cifar10_abs',
    _TIMES,
    design.workers(16),
    clocks=('heterogeneous',),
    pictures=('time',),
    epoch_flops=3 * _RESNET20 * _CIFAR,
    short=_SHORT_RESNET,
  ),
  'cifar10_mlp': design.Table(
    'CIFAR-10, MLP with BatchNorm, every kind of rule, both protocols',
    'cifar10_mlp',
    (
      *design.methods(('asgd', 'sa', 'ga', 'ssgd'), (0.0,)),
      *design.methods(
        ('asgd', 'sa', 'ga', 'dana_zero', 'dana_ga', 'ssgd'), (0.9,)
      ),
    ),
    design.workers(1, 4, 8, 16, 32, 64),
    rates=(10**-1.5, 0.1, 10**-0.5),
    search_seeds=1,
    baseline_seeds=1,
    note=_NO_MOMENTUM,
    pictures=('workers', 'rates'),
  ),
  'fashion_mnist_mlp': design.Table(
    'every family of rules, MLP with BatchNorm, both protocols and clocks',
    'fashion_mnist_mlp',
    (*design.methods(PLAIN, (0.0,)), *design.methods(FAMILIES, (0.9,))),
    design.workers(1, 4, 8, 16, 32, 64),
    clocks=('homogeneous', 'heterogeneous'),
    rates=_HALF_DECADES,
    search_seeds=1,
    note=_NO_MOMENTUM,
    pictures=('workers', 'rates'),
  ),
  'fashion_mnist_cnn': design.Table(
    'the same with a small CNN with BatchNorm',
    'fashion_mnist_cnn',
    (
      *design.methods(('asgd', 'sa', 'ga'), (0.0,)),
      *design.methods(('asgd', 'sa', 'ga', 'dana_zero', 'dana_ga'), (0.9,)),
    ),
    design.workers(1, 8, 32),
    rates=_HALF_DECADES,
    seeds=3,
    search_seeds=1,
    note=_NO_MOMENTUM,
    pictures=('workers', 'rates'),
  ),
  'fashion_mnist_curves': design.Table(
    'error, gap, penalty and staleness over epochs, MLP with BatchNorm',
    'fashion_mnist_mlp',
    design.methods(('asgd', 'sa', 'ga', 'dana_zero', 'dana_ga')),
    design.workers(1, 8, 32),
    rates=_HALF_DECADES,
    search_seeds=1,
    pictures=('epochs',),
  ),
  'fashion_mnist_softsync': design.Table(
    'n-softsync with 30 workers, with and without 1/staleness, MLP',
    'fashion_mnist_softsync',
    design.methods(('softsync', 'sa_softsync')),
    _softsync(1, 2, 15, 30),
    rates=(0.001, 10**-2.5, 0.01),
    search_seeds=1,
    pictures=('rates',),
  ),
  'fashion_mnist_abs': design.Table(
    'time and communication rounds on a heterogeneous cluster, MLP',
    'fashion_mnist_abs',
    _TIMES,
    design.workers(16),
    clocks=('heterogeneous',),
    rates=_HALF_DECADES,
    search_seeds=1,
    pictures=('time',),
  ),
}
# What needs no run of its own: with one worker these are ASGD.
ALONE = dict.fromkeys(
  ('sa', 'ga', 'dc_asgd', 'dc_asgd_a', 'ssgd', 'abs'), 'asgd'
)
