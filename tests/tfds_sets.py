"""Prepared data sets in the true format, and the archives they come from."""

import gzip
import io
import os
import struct
import tarfile

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from PIL import Image


def encoded(image, kind='PNG'):
  """The bytes of an image file."""
  file = io.BytesIO()
  Image.fromarray(image).save(file, kind)
  return file.getvalue()


def smooth(rng, height, width, channels=3):
  """An image that survives JPEG: a few bright waves."""
  y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j][..., None]
  a, b, c = rng.uniform(1, 7, (3, channels))
  image = 127 + 120 * np.sin(a * x + b * y + c)
  return image.astype(np.uint8)[..., 0 if channels == 1 else slice(None)]


def write(name, folder, splits, shards=1, file_format='array_record'):
  """Writes what TensorFlow Datasets would have prepared; no TensorFlow.

  Args:
    name: in TensorFlow Datasets.
    folder: data_dir.
    splits: by name, (bytes of image files, labels); pieces of text likewise.
    shards: files per split.
    file_format: what dataset_info.json says.

  Returns:
    The folder of the data set.
  """
  builder = tfds.builder(name, data_dir=str(folder))
  info, where = builder.info, str(builder.data_dir)
  os.makedirs(where)
  info.set_file_format(file_format, override=True)
  found = []
  for split, (images, labels) in splits.items():
    template = tfds.core.ShardedFileTemplate(
      data_dir=builder.data_dir,
      dataset_name=name,
      split=split,
      filetype_suffix=file_format,
    )
    parts = np.array_split(np.arange(len(images)), shards)
    for shard, rows in enumerate(parts):
      path = template.sharded_filepath(shard_index=shard, num_shards=shards)
      writer = array_record_module.ArrayRecordWriter(
        os.fspath(path), 'group_size:1'
      )
      for i in rows:
        writer.write(_record(info, images[i], int(labels[i]), i))
      writer.close()
    lengths = [len(rows) for rows in parts]
    found.append(
      tfds.core.SplitInfo(
        name=split,
        shard_lengths=lengths,
        num_bytes=0,
        filename_template=template,
      )
    )
  info.set_splits(tfds.core.splits.SplitDict(found))
  info.write_to_directory(where)
  return where


def _record(info, image, label, i):
  example = {'image': image, 'label': label}
  if 'text' in info.features:
    example = {'text': image}
  for feature in set(info.features) - set(example):
    example[feature] = 0 if feature == 'coarse_label' else f'{i}'
  features = info.features
  return features.serialize_example(features.encode_example(example))


def write_cifar10(folder, train=12, test=5, **options):
  """A small CIFAR-10; returns its folder, and the arrays it was made of."""
  rng = np.random.default_rng(3)
  arrays, splits = {}, {}
  for split, n in (('train', train), ('test', test)):
    images = rng.integers(0, 256, (n, 32, 32, 3), np.uint8)
    labels = rng.integers(0, 10, n)
    arrays[split] = images, labels
    splits[split] = [encoded(image) for image in images], labels
  return write('cifar10', folder, splits, **options), arrays


def write_imagenet(folder, train=20, test=6, broken=(), **options):
  """A small ImageNet of JPEGs, two of them grey; `broken` ones are cut off."""
  rng = np.random.default_rng(5)
  splits = {}
  for split, n in (('train', train), ('validation', test)):
    files = []
    for i in range(n):
      height, width = rng.integers(40, 90, 2)
      channels = 1 if split == 'train' and i in (3, 4) else 3
      file = encoded(smooth(rng, height, width, channels), 'JPEG')
      cut = split == 'train' and i in broken
      files.append(file[: len(file) // 2] if cut else file)
    splits[split] = files, np.arange(n) * 7 % 1000
  return write('imagenet2012', folder, splits, **options)


# Archives as they are published, but small.


def fashion_archives(folder, rng, train=60000, test=10000):
  """The four files of Fashion-MNIST; returns (labels, images) by split."""
  found = {}
  for split, stem, n in (('train', 'train', train), ('test', 't10k', test)):
    images = np.zeros((n, 28, 28), np.uint8)
    images[:, 10:12] = rng.integers(0, 256, (n, 2, 28), np.uint8)
    labels = rng.integers(0, 10, n).astype(np.uint8)
    for array, ending in ((images, 'images-idx3'), (labels, 'labels-idx1')):
      shape = struct.pack(f'>{array.ndim}I', *array.shape)
      header = bytes((0, 0, 8, array.ndim)) + shape
      path = os.path.join(folder, f'{stem}-{ending}-ubyte.gz')
      with gzip.open(path, 'wb', compresslevel=1) as file:
        file.write(header + array.tobytes())
    found[split] = labels, images[..., None]
  return found


def imagenet_archives(folder, rng, classes=3, each=2, test=4):
  """ILSVRC2012_img_train.tar, a tar of tars, and ILSVRC2012_img_val.tar."""
  labels = tfds.builder('imagenet2012').info.features['label'].names[:classes]
  train = os.path.join(folder, 'ILSVRC2012_img_train.tar')
  with tarfile.open(train, 'w') as tar:
    for label in labels:
      inner = io.BytesIO()
      with tarfile.open(fileobj=inner, mode='w') as members:
        for i in range(each):
          image = encoded(smooth(rng, 48, 64), 'JPEG')
          _add(members, f'{label}_{i}.JPEG', image)
      _add(tar, f'{label}.tar', inner.getvalue())
  with tarfile.open(os.path.join(folder, 'ILSVRC2012_img_val.tar'), 'w') as tar:
    for i in range(1, test + 1):
      image = encoded(smooth(rng, 50, 40), 'JPEG')
      _add(tar, f'ILSVRC2012_val_{i:08d}.JPEG', image)
  return labels


def _add(tar, name, data):
  member = tarfile.TarInfo(name)
  member.size = len(data)
  tar.addfile(member, io.BytesIO(data))
