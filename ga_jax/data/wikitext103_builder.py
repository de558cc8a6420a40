"""WikiText-103 for TensorFlow Datasets, which has it not.

`tfds.builder('wikitext103')` knows it once this module was imported. An example
is a piece of the text of `LINES` lines; they are written in order.
"""

import itertools

import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import checksums

from ga_jax.data import corpus, wikitext

LINES = 1000


class Wikitext103(tfds.core.GeneratorBasedBuilder):
  """103 million words of good and featured articles of Wikipedia."""

  name = wikitext.NAME
  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES = {'1.0.0': 'As published.'}  # noqa: RUF012 -- TFDS's own
  # The registered checksum; an archive in TFDS's manual_dir is held to it too.
  url_infos = {  # noqa: RUF012
    wikitext.URL: checksums.UrlInfo(
      size=tfds.core.utils.Size(wikitext.SIZE),
      checksum=wikitext.SHA256,
      filename=wikitext.ARCHIVE,
    )
  }

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=(
        'WikiText-103, words as published: the text in pieces of '
        f'{LINES} lines, in order.'
      ),
      features=tfds.features.FeaturesDict({'text': tfds.features.Text()}),
      homepage='https://wikitext.smerity.com/wikitext-103',
      license='CC BY-SA 4.0',
      citation='@inproceedings{merity2017pointer, title={Pointer Sentinel '
      'Mixture Models}, author={Merity, Stephen and Xiong, Caiming and '
      'Bradbury, James and Socher, Richard}, booktitle={ICLR}, year={2017}}',
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager):
    path = dl_manager.download(wikitext.URL)
    return {
      split: self._generate_examples(path, name)
      for split, name in zip(
        corpus.SPLITS, wikitext.FILES.values(), strict=True
      )
    }

  def _generate_examples(self, path, name: str):
    lines = wikitext.archived_lines(path, name)
    for i in itertools.count():
      piece = ''.join(itertools.islice(lines, LINES))
      if not piece:
        return
      yield i, {'text': piece}
