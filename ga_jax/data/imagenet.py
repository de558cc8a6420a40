"""ImageNet (ILSVRC 2012), streamed from what TensorFlow Datasets has prepared.

Training sees random resized crops and mirror images, evaluation the centre: the
shorter side is resized to 256, the middle 224 x 224 are cut out. Both are one
resampling of a window of the original (bilinear, antialiased).

References:
  Russakovsky et al., `ImageNet Large Scale Visual Recognition Challenge
  <https://arxiv.org/abs/1409.0575>`_, 2015.

  Szegedy et al., `Going Deeper with Convolutions
  <https://arxiv.org/abs/1409.4842>`_, 2015: the random crops.
"""

import functools
import io

import numpy as np

from ga_jax.data import prepared, stream

MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # of the training set, RGB
STD = np.array([0.229, 0.224, 0.225], np.float32)
AREA = (0.08, 1.0)  # of a random crop, as a part of the image
RATIO = (3 / 4, 4 / 3)  # of its width to its height
_KEPT = 224 / 256  # of the shorter side, in evaluation
_TRIES = 10


def imagenet2012(
  path: str | None = None, *, image_size: int = 224
) -> stream.Stream:
  """1,281,167 training images of 1,000 classes; the 50,000 of its validation
  split are the test split.

  Args:
    path: TensorFlow Datasets' data_dir; None for ~/tensorflow_datasets.
    image_size: side of the images, for models and machines that are smaller.

  Returns:
    A `Stream` of [image_size, image_size, 3] images.

  Raises:
    DataError: not prepared; it says what to run.
  """
  found = prepared.read(
    'imagenet2012', path, ('train', 'validation'), decode=False
  )

  def records(split):
    source = found.splits[split]

    def read(i):
      example = source[i]
      return example['image'], int(example['label'])

    return stream.Records(split, read, np.arange(len(source)))

  train = records('train')
  return stream.Stream(
    name='imagenet2012',
    train=train,
    validation=train._replace(rows=train.rows[:0]),
    test=records('validation'),
    view_fn=functools.partial(view, size=image_size),
    input_shape=(image_size, image_size, 3),
    num_classes=found.num_classes,
    mean=MEAN,
    std=STD,
    files=found.files,
  )


def view(
  image: bytes | np.ndarray, rng: np.random.Generator | None, *, size: int
) -> np.ndarray:
  """What a network sees of an image.

  Args:
    image: bytes of its file, or [H, W, 3] uint8.
    rng: of a random crop and flip; None for the centre.
    size: side of the result.

  Returns:
    [size, size, 3] uint8.
  """
  from PIL import Image

  if isinstance(image, bytes):
    image = Image.open(io.BytesIO(image))
  else:
    image = Image.fromarray(image)
  if image.mode != 'RGB':
    image = image.convert('RGB')
  width, height = image.size
  box = centre(height, width) if rng is None else crop(rng, height, width)
  seen = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
  flip = rng is not None and rng.random() < 0.5
  pixels = np.asarray(seen)
  return pixels[:, ::-1] if flip else pixels


def centre(height: int, width: int) -> tuple[float, float, float, float]:
  """The window that is evaluated: (left, top, right, bottom)."""
  side = _KEPT * min(height, width)
  left, top = (width - side) / 2, (height - side) / 2
  return left, top, left + side, top + side


def crop(
  rng: np.random.Generator, height: int, width: int
) -> tuple[int, int, int, int]:
  """A random window: area and ratio are drawn until it fits.

  Args:
    rng: what it is drawn from.
    height: of the image.
    width: of the image.

  Returns:
    (left, top, right, bottom). Where none of ten draws fits, the largest window
    in the middle whose ratio is allowed.
  """
  area = height * width * rng.uniform(*AREA, _TRIES)
  # Uniform in the logarithm: a window is as likely as the same one turned.
  ratio = np.exp(rng.uniform(*np.log(RATIO), _TRIES))
  wide = np.rint(np.sqrt(area * ratio)).astype(int)
  high = np.rint(np.sqrt(area / ratio)).astype(int)
  fits = (wide > 0) & (wide <= width) & (high > 0) & (high <= height)
  if fits.any():
    w, h = int(wide[fits.argmax()]), int(high[fits.argmax()])
    left = int(rng.integers(width - w + 1))
    top = int(rng.integers(height - h + 1))
    return left, top, left + w, top + h
  w = min(width, max(1, round(height * RATIO[1])))
  h = min(height, max(1, round(width / RATIO[0])))
  left, top = (width - w) // 2, (height - h) // 2
  return left, top, left + w, top + h
