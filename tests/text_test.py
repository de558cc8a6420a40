"""Text as data: vocabularies, the cache, streams of segments, WikiText-103."""

import errno
import hashlib
import os
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ga_jax import data
from ga_jax.data import corpus, wikitext
from tests import prepare_test, tfds_sets

TRAIN = 'a b a c\n\n a b a\nd d d\n'
LINES = ['the cat sat', 'on the mat', '', 'the end'] * 10


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  """A cache of this test's own."""
  folder = tmp_path / 'cache'
  monkeypatch.setenv('GA_JAX_CACHE', str(folder))
  return folder


def write_folder(path, names, train=TRAIN, valid='a b\n', test='e a\n'):
  path.mkdir()
  for name, text in zip(names, (train, valid, test), strict=True):
    (path / name).write_text(text)
  return str(path)


@pytest.fixture
def own(tmp_path):
  return write_folder(tmp_path / 'own', ('train.txt', 'valid.txt', 'test.txt'))


@pytest.fixture
def wiki(tmp_path):
  return write_folder(
    tmp_path / 'wiki',
    wikitext.FILES.values(),
    train=''.join(f' {line} \n' for line in LINES),
    valid=' the <unk> sat \n',
    test=' the dog \n',
  )


def reason(function, path) -> str:
  """The one line that a refusal says."""
  with pytest.raises(data.DataError) as caught:
    function(path)
  assert '\n' not in str(caught.value)
  return str(caught.value)


def test_words_are_ordered_by_frequency_and_rare_ones_unknown(own):
  found = data.text(own)
  assert found.vocabulary.tokens == ('a', '<eos>', 'd', '<unk>')
  assert found.train.dtype == np.int32
  assert found.train.tolist() == [0, 3, 0, 3, 1, 1, 0, 3, 0, 1, 2, 2, 2, 1]
  assert found.test.tolist() == [3, 0, 1]  # 'e' was never seen
  assert found.size('train') == 14
  text = found.vocabulary.decode(found.train)
  assert text == 'a <unk> a <unk>\n\na <unk> a\nd d d\n'


def test_characters_are_the_tokens_of_a_text(own):
  found = data.characters(own)
  assert set(found.vocabulary.tokens) == {*TRAIN, '<unk>'}
  assert found.vocabulary.tokens[-1] == '<unk>'  # never seen
  assert found.vocabulary.decode(found.train) == TRAIN
  assert found.vocabulary.decode(found.test) == '<unk> a\n'


def test_one_file_is_cut_by_lines(tmp_path):
  path = tmp_path / 'whole.txt'
  path.write_text(''.join(f'{i % 3} {i}\n' for i in range(100)))
  found = data.characters(str(path))
  parts = [
    found.vocabulary.decode(getattr(found, split)).splitlines()
    for split in corpus.SPLITS
  ]
  assert [len(part) for part in parts] == [90, 5, 5]
  assert parts[2][-1:] == ['0 99']
  path.write_text('too\nfew\n')
  assert 'has 2 lines, too few' in reason(data.text, str(path))


def test_a_text_without_a_common_word_is_refused(tmp_path):
  """Its vocabulary would be <eos> and <unk>, at a perplexity of about 2."""
  path = tmp_path / 'rare.txt'
  path.write_text('\n'.join(f'only once {i} {i}x' for i in range(2)) * 30)
  data.text(str(path))
  path.write_text('\n'.join(f'{i} {i}x' for i in range(100)))
  assert 'no word of the training text is seen 3 times' in reason(
    data.text, str(path)
  )
  data.characters(str(path))


def test_what_cannot_be_read_is_said_in_one_line(tmp_path, own):
  assert 'a folder with train.txt, valid.txt and test.txt' in reason(
    data.text, None
  )
  assert 'of your own, one file or' in reason(
    data.characters, str(tmp_path / 'none')
  )
  os.unlink(os.path.join(own, 'valid.txt'))
  assert 'no valid.txt there' in reason(data.text, own)
  with open(os.path.join(own, 'valid.txt'), 'wb') as file:
    file.write(b'\xff\xfe')
  assert 'not UTF-8' in reason(data.text, own)
  with open(os.path.join(own, 'valid.txt'), 'wb'):
    pass
  assert 'the validation split of the text is empty' in reason(data.text, own)


# --- the cache --------------------------------------------------------------


def test_a_text_is_built_once(own, cache, monkeypatch):
  built = data.text(own)
  (kept,) = cache.iterdir()
  monkeypatch.setattr(corpus, 'build_vocabulary', None)  # not called again
  again = data.text(own)
  assert again.vocabulary == built.vocabulary
  for split in corpus.SPLITS:
    np.testing.assert_array_equal(getattr(again, split), getattr(built, split))
  monkeypatch.undo()
  monkeypatch.setenv('GA_JAX_CACHE', str(cache))
  kept.write_bytes(kept.read_bytes()[:-100])  # damaged
  assert data.text(own).vocabulary == built.vocabulary
  with open(os.path.join(own, 'train.txt'), 'a') as file:
    file.write('d d d d\n')  # another text
  assert data.text(own).vocabulary.tokens[0] == 'd'
  assert data.characters(own).num_classes == 7
  assert len(list(cache.iterdir())) == 3


def test_a_full_disk_leaves_nothing(own, cache, monkeypatch):
  def full(file, **arrays):
    file.write(b'half of it')
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(np, 'savez', full)
  said = reason(data.text, own)
  assert 'No space left on device' in said
  assert f'in {cache}' in said
  assert 'set GA_JAX_CACHE' in said
  assert list(cache.iterdir()) == []


def test_the_cache_folder_follows_the_environment(monkeypatch):
  monkeypatch.delenv('GA_JAX_CACHE')
  monkeypatch.setenv('XDG_CACHE_HOME', '/somewhere')
  assert corpus.cache_folder() == '/somewhere/ga_jax'
  monkeypatch.delenv('XDG_CACHE_HOME')
  monkeypatch.setenv('HOME', '/me')
  assert corpus.cache_folder() == '/me/.cache/ga_jax'


# --- batches ----------------------------------------------------------------


def counted(n):
  """A corpus whose tokens are their own places."""
  tokens = np.arange(n, dtype=np.int32)
  vocabulary = data.Vocabulary(tuple(map(str, range(n))), 'word')
  return data.Corpus(tokens, tokens[:3], tokens[:3], vocabulary)


def reader(source):
  """`batch(batch_id) -> (tokens, targets)`."""

  @jax.jit
  def load(begins):
    return source.load_fn(jnp.asarray(source.resident), begins, None)

  return lambda i: jax.tree.map(np.asarray, load(source.batch_fn(i)))


def test_a_stream_is_the_text_in_order():
  n, rows, length, streams = 217, 2, 5, 3
  source = counted(n).source(rows, length, streams, seed=4)
  batch = reader(source)
  assert source.streams == streams
  begins = []
  for stream in range(streams):
    read = [batch(i * streams + stream) for i in range(60)]
    for tokens, targets in read:
      assert tokens.shape == targets.shape == (rows, length)
      np.testing.assert_array_equal(targets, (tokens + 1) % n)
    text = np.concatenate([tokens for tokens, _ in read], axis=1)
    np.testing.assert_array_equal(text[:, 1:], (text[:, :-1] + 1) % n)
    begins.extend(text[:, 0])
  gaps = np.diff(sorted(begins), append=min(begins) + n)
  assert set(gaps) == {n // 6, n // 6 + 1}  # at equal distances


def test_an_epoch_reads_every_token_once():
  batch = reader(counted(240).source(2, 5, 4, seed=0))
  read = [batch(i)[0] for i in range(24)]
  assert sorted(np.concatenate(read).ravel()) == list(range(240))


def test_a_batch_is_a_function_of_seed_and_id():
  def begins(seed):
    source = counted(1000).source(4, 10, 2, seed)
    return [source.batch_fn(i).tolist() for i in (7, 0, 7)]

  assert begins(0) == begins(0)
  assert begins(0)[0] == begins(0)[2]
  assert begins(0) != begins(1)
  # Sources that are alike share their compiled code.
  assert counted(9).source(1, 2, 1, 0).load_fn == (
    counted(8).source(2, 2, 1, 5).load_fn
  )


def test_a_text_that_is_too_short_is_refused():
  counted(41).source(2, 5, 4, seed=0)
  with pytest.raises(data.DataError, match=r'need more than 40 .* has 40'):
    counted(40).source(2, 5, 4, seed=0)


def test_held_out_tokens_are_the_last_ones():
  found = counted(10).hold_out(4)
  assert found.train.tolist() == [0, 1, 2, 3, 4, 5]
  assert found.validation.tolist() == [6, 7, 8, 9]
  assert counted(10).hold_out(0).validation.tolist() == [0, 1, 2]
  with pytest.raises(data.DataError, match='cannot hold out 10 of 10'):
    counted(10).hold_out(10)


# --- WikiText-103 -----------------------------------------------------------


def archive_of(wiki, path, names=tuple(wikitext.FILES.values())):  # noqa: B008
  """The archive in its published form."""
  with zipfile.ZipFile(path, 'w') as made:
    for name in names:
      made.write(os.path.join(wiki, name), f'wikitext-103/{name}')
  return str(path)


def accept(monkeypatch, path):
  """Has an archive taken for the published one."""
  with open(path, 'rb') as file:
    digest = hashlib.sha256(file.read()).hexdigest()
  monkeypatch.setattr(wikitext, 'SHA256', digest)


def assert_same_text(one, other):
  assert one.vocabulary == other.vocabulary
  for split in corpus.SPLITS:
    np.testing.assert_array_equal(getattr(one, split), getattr(other, split))


def test_wikitext_is_the_same_as_files_and_as_the_archive(
  wiki, tmp_path, monkeypatch
):
  files = data.wikitext103(wiki)
  assert files.vocabulary.tokens[:2] == ('<eos>', 'the')
  words = files.vocabulary.decode(files.train)
  assert words == ''.join(f'{line}\n' for line in LINES)
  path = archive_of(wiki, tmp_path / 'wikitext-103-v1.zip')
  accept(monkeypatch, path)
  assert_same_text(data.wikitext103(path), files)


def test_another_archive_is_refused(wiki, tmp_path, monkeypatch):
  path = archive_of(wiki, tmp_path / 'wikitext-103-v1.zip')
  said = reason(data.wikitext103, path)
  assert wikitext.SHA256 in said
  assert 'get it again from https://' in said
  path = archive_of(wiki, tmp_path / 'half.zip', ['wiki.train.tokens'])
  accept(monkeypatch, path)
  assert 'wiki.valid.tokens' in reason(data.wikitext103, path)
  (tmp_path / 'no.zip').write_bytes(b'no archive')
  accept(monkeypatch, tmp_path / 'no.zip')
  assert 'cannot be read' in reason(data.wikitext103, str(tmp_path / 'no.zip'))


def test_wikitext_that_is_not_whole_says_what_to_do(wiki, tmp_path):
  os.unlink(os.path.join(wiki, 'wiki.test.tokens'))
  assert 'no wiki.test.tokens there' in reason(data.wikitext103, wiki)
  empty = tmp_path / 'empty'
  empty.mkdir()
  said = reason(data.wikitext103, str(empty))
  assert 'python -m experiments.prepare --dataset=wikitext103' in said
  half = empty / 'wikitext103' / '1.0.0'
  half.mkdir(parents=True)
  said = reason(data.wikitext103, str(empty))
  assert 'not whole' in said
  assert '--overwrite' in said


def prepared_folder(wiki, folder, lines=15, **options):
  """What TensorFlow Datasets would have prepared of files."""
  from ga_jax.data import wikitext103_builder  # registers it

  assert wikitext103_builder.LINES == 1000
  splits = {}
  for split, name in wikitext.FILES.items():
    with open(os.path.join(wiki, name)) as file:
      every = file.readlines()
    pieces = [
      ''.join(every[i : i + lines]) for i in range(0, len(every), lines)
    ]
    splits[split] = pieces, np.zeros(len(pieces), np.int64)
  return tfds_sets.write('wikitext103', folder, splits, **options)


def test_prepared_wikitext_is_the_same_text(wiki, tmp_path):
  folder = tmp_path / 'tfds'
  where = prepared_folder(wiki, folder, shards=1)
  assert_same_text(data.wikitext103(str(folder)), data.wikitext103(wiki))
  (shard,) = (name for name in os.listdir(where) if '-train.' in name)
  with open(os.path.join(where, shard), 'r+b') as file:
    file.truncate(30)
  said = reason(data.wikitext103, str(folder))
  assert f'not whole ({shard}' in said
  assert '--overwrite' in said


@pytest.mark.tfds
def test_tensorflow_datasets_prepares_the_archive(wiki, tmp_path):
  path = archive_of(wiki, tmp_path / 'wikitext-103-v1.zip')
  folder = str(tmp_path / 'tfds')
  arguments = [
    '--dataset=wikitext103',
    f'--data_path={folder}',
    f'--archive={path}',
  ]
  done = prepare_test.prepare(*arguments)
  assert 'the checksum of' in prepare_test.errors(done)
  assert not os.path.exists(os.path.join(folder, 'wikitext103', '1.0.0'))
  code = 'import ga_jax.data.wikitext103_builder\n' + (
    prepare_test.registered('wikitext103', [path])
  )
  done = prepare_test.prepare(*arguments, code=code)
  assert done.returncode == 0, done.stderr
  assert 'wikitext103: 1 train and 1 validation and 1 test' in done.stdout
  assert_same_text(data.wikitext103(folder), data.wikitext103(wiki))
