"""A ResNet-50, as a list of shapes."""


def shapes() -> list[tuple[int, ...]]:
  """The 161 parameter arrays of a ResNet-50 for 1,000 classes."""
  found, channels = [(7, 7, 3, 64), (64,), (64,)], 64

  def convolution(size, channels, filters):  # and its normalisation
    return [(size, size, channels, filters), (filters,), (filters,)]

  for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
    for block in range(blocks):
      found += convolution(1, channels, width)
      found += convolution(3, width, width)
      found += convolution(1, width, 4 * width)
      if block == 0:  # the shortcut
        found += convolution(1, channels, 4 * width)
      channels = 4 * width
  return [*found, (channels, 1000), (1000,)]
