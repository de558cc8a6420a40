"""Small CIFAR sets in the published formats."""

import io
import pickle
import struct
import tarfile

import numpy as np

FILES = {
  'cifar10': (*(f'data_batch_{i}' for i in range(1, 6)), 'test_batch'),
  'cifar100': ('train', 'test'),
}
ARCHIVES = {
  ('cifar10', 'binary'): ('cifar-10-binary.tar.gz', 'cifar-10-batches-bin'),
  ('cifar10', 'python'): ('cifar-10-python.tar.gz', 'cifar-10-batches-py'),
  ('cifar100', 'binary'): ('cifar-100-binary.tar.gz', 'cifar-100-binary'),
  ('cifar100', 'python'): ('cifar-100-python.tar.gz', 'cifar-100-python'),
}


def made(name, test=4, seed=0):
  """By file, (labels [n, k], planes [n, 3, 32, 32]) of `test` test images."""
  rng = np.random.default_rng(seed)
  number = {'cifar10': test, 'cifar100': 5 * test}[name]
  found = {}
  for file in FILES[name]:
    n = test if file.startswith('test') else number
    planes = rng.integers(0, 256, (n, 3, 32, 32), np.uint8)
    fine = rng.integers(0, 10 if name == 'cifar10' else 100, n)
    columns = [fine] if name == 'cifar10' else [fine // 5, fine]
    found[file] = np.stack(columns, 1).astype(np.uint8), planes
  return found


def splits(arrays):
  """By split, (labels [n], images [n, 32, 32, 3])."""
  *train, test = arrays.values()
  found = {}
  for split, parts in (('train', train), ('test', [test])):
    labels = np.concatenate([labels[:, -1] for labels, _ in parts])
    planes = np.concatenate([planes for _, planes in parts])
    found[split] = labels, planes.transpose(0, 2, 3, 1)
  return found


def binary(arrays):
  """The files of the binary version, {name: bytes}."""
  return {
    f'{file}.bin': np.concatenate(
      [labels, planes.reshape(len(planes), -1)], axis=1
    ).tobytes()
    for file, (labels, planes) in arrays.items()
  }


def python(arrays, write=None):
  """Those of the Python version, as Python 2 and NumPy 1 wrote them."""
  found = {}
  for file, (labels, planes) in arrays.items():
    one = labels.shape[1] == 1
    names = ['labels'] if one else ['coarse_labels', 'fine_labels']
    content = {
      'batch_label': b'a batch',
      'data': planes.reshape(len(planes), -1),
      **dict(zip(names, labels.T.tolist(), strict=True)),
      'filenames': [b'an_image.png'] * len(planes),
    }
    found[file] = (write or python2)(content)
  return found


def python2(value):
  """A pickle of protocol 2 with the strings of Python 2."""
  return b'\x80\x02' + _python2(value) + b'.'


def _python2(value):
  if isinstance(value, str):
    value = value.encode()
  if isinstance(value, bytes):
    return b'T' + struct.pack('<i', len(value)) + value
  if isinstance(value, int):
    return b'J' + struct.pack('<i', value)
  if isinstance(value, list):
    return b'](' + b''.join(map(_python2, value)) + b'e'
  if isinstance(value, dict):
    pairs = (_python2(k) + _python2(v) for k, v in value.items())
    return b'}(' + b''.join(pairs) + b'u'
  n, width = value.shape
  return (
    b'cnumpy.core.multiarray\n_reconstruct\n'
    b'cnumpy\nndarray\nK\x00\x85U\x01b\x87R'
    + (b'(K\x01' + _python2(n) + _python2(width) + b'\x86')
    + b'cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R'
    + b'(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89'
    + (_python2(value.tobytes()) + b'tb')
  )


def python3(protocol):
  """As Python 3 and the NumPy that is here write them."""
  return lambda content: pickle.dumps(content, protocol)


def write(folder, files):
  """Writes files into a folder, which is made."""
  folder.mkdir(parents=True, exist_ok=True)
  for name, content in files.items():
    (folder / name).write_bytes(content)


def archive(path, prefix, files):
  """A .tar.gz of files, with what else the published ones hold."""
  with tarfile.open(path, 'w:gz') as tar:
    for name, content in {'readme.html': b'<html>', **files}.items():
      member = tarfile.TarInfo(f'{prefix}/{name}')
      member.size = len(content)
      tar.addfile(member, io.BytesIO(content))
