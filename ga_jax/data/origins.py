"""Where data sets come from: what is said where one is not there."""

import shlex

GIVEN = ('idx', 'npz', 'text', 'characters')  # whatever is in the files
BY_HAND = ('imagenet2012',)  # nobody but the user can fetch their archives
FASHION_MNIST = '/usr/share/datasets/fashion-mnist'  # of Debian's package
WIKITEXT = 'https://wikitext.smerity.com/wikitext-103-v1.zip'
_PUBLISHED = (
  'or get {} from www.cs.toronto.edu/~kriz/cifar.html and let --data_path name '
  'it, or its folder'
)
_OTHERWISE = {  # than by preparing them
  'cifar10': _PUBLISHED.format('cifar-10-binary.tar.gz'),
  'cifar100': _PUBLISHED.format('cifar-100-binary.tar.gz'),
  'fashion_mnist': (
    'or, on Debian, apt install dataset-fashion-mnist and take --dataset=idx '
    f'--data_path={FASHION_MNIST}'
  ),
  'imagenet2012': (
    'with FOLDER that of ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar '
    'from image-net.org'
  ),
  'wikitext103': f'or get {WIKITEXT} and let --data_path name it',
}
_OWN = {
  'digits': (
    'they come with scikit-learn (pip install scikit-learn), without data_path'
  ),
  'idx': (
    f'apt install dataset-fashion-mnist (Debian) brings {FASHION_MNIST}; '
    'elsewhere get train-images-idx3-ubyte.gz and its three companions from '
    'github.com/zalandoresearch/fashion-mnist, or those of another set'
  ),
  'npz': (
    'write one with numpy.savez(path, x_train=..., y_train=..., x_test=..., '
    'y_test=...)'
  ),
  'text': (
    'a text of your own, one file or a folder with train.txt, valid.txt and '
    'test.txt'
  ),
}
_OWN['characters'] = _OWN['text']


def of(name: str, path: str | None = None) -> str:
  """What brings a data set, in one line.

  Args:
    name: in `DATASETS`.
    path: where it is to be.
  """
  if name in _OWN:
    return _OWN[name]
  otherwise = f', {_OTHERWISE[name]}' if name in _OTHERWISE else ''
  return (
    "run once, with TensorFlow (pip install 'ga_jax[tfds]'): "
    f'{command(name, path)}{otherwise}'
  )


def command(name: str, path: str | None, *more: str) -> str:
  """What to run to prepare a data set."""
  parts = ['python -m experiments.prepare', f'--dataset={name}']
  if path:
    parts.append(f'--data_path={shlex.quote(path)}')
  if name in BY_HAND:
    parts.append('--archive=FOLDER')
  return ' '.join([*parts, *more])
