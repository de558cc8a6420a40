"""Language tasks: presets, evaluation with a memory, what is refused."""

import dataclasses
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import tasks
from experiments.records import record
from experiments.running import train
from experiments.settings import check
from experiments.settings import table as settings_lib
from experiments.tasks import language
from ga_jax import data, models
from ga_jax.models.transformer_xl import TransformerXL, language_model
from tests import presets_test

LENGTH = 6


def shallow(
  num_classes,
  compute_dtype='float32',
  remat=False,
  segment_length=LENGTH,
  memory_length=None,
):
  """One layer, no dropout: seconds to compile instead of a minute."""
  del compute_dtype, remat
  module = TransformerXL(num_classes, 1, 8, 2, 12, (), dropout=0.0)
  return language_model(module, segment_length, memory_length)


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
  monkeypatch.setenv('GA_JAX_CACHE', str(tmp_path / 'cache'))
  monkeypatch.setitem(models.MODELS, 'shallow', shallow)
  with jax.numpy_rank_promotion('allow'), jax.numpy_dtype_promotion('standard'):
    yield


@pytest.fixture
def folder(tmp_path):
  """A text that can be predicted, as WikiText and as a user has it."""
  path = tmp_path / 'text'
  path.mkdir()
  rng = np.random.default_rng(0)
  names = (
    ('wiki.train.tokens', 'train.txt', 120),
    ('wiki.valid.tokens', 'valid.txt', 12),
    ('wiki.test.tokens', 'test.txt', 12),
  )
  for wiki, own, lines in names:
    words = rng.integers(0, 3, (lines, 4)) * 3 + np.arange(4) % 3
    text = ''.join(f' w{" w".join(map(str, row))} \n' for row in words)
    for name in (wiki, own):
      (path / name).write_text(text)
  return str(path)


def settings_of(folder, **fields):
  return check.check(
    settings_lib.Settings(
      **{
        'dataset': 'text',
        'data_path': folder,
        'model': 'shallow',
        'method': 'ga_adam',
        'workers': 2,
        'batch_size': 2,
        'learning_rate': 0.01,
        'epochs': 2.0,
        **fields,
      }
    )
  )


def of_preset(preset, folder, **own):
  """Its settings, for two workers and the text of this test."""
  fields = presets_test.fields_of(preset) | {
    'data_path': folder,
    'method': 'ga_adam',
    'workers': 2,
    'batch_size': 2,
    'segment_length': LENGTH,
    'executor': 'exact',
  }
  settings = settings_lib.Settings(**fields | own)
  if 'epochs' not in own:  # two updates
    per_epoch = tasks.batches_per_epoch(settings)
    settings = dataclasses.replace(settings, epochs=2 / per_epoch)
  return check.check(settings)


@pytest.mark.slow
def test_the_wikitext_preset_trains_a_small_network(folder):
  settings = of_preset('wikitext103_transformer_xl', folder, model='shallow')
  summary = train.train(settings).summary
  assert summary['updates'] == summary['batches'] == 2
  assert 1 < summary['test_perplexity'] < 100
  assert 1 < summary['validation_perplexity'] < 100


@pytest.mark.slow
@pytest.mark.parametrize(
  'preset', ['text_transformer_xl_small', 'wikitext103_transformer_xl']
)
def test_a_text_preset_trains_for_two_updates(preset, folder):
  summary = train.train(of_preset(preset, folder)).summary
  assert summary['updates'] == 2
  assert 1 < summary['test_perplexity'] < 100


@pytest.mark.slow
def test_the_texts_preset_brings_perplexity_down(folder, tmp_path):
  """With a small network; rows every half epoch; the model is loaded again."""
  settings = of_preset(
    'text_transformer_xl_small',
    folder,
    model='shallow',
    epochs=2.0,
    evaluate_every=0.5,
    learning_rate=0.01,
  )
  rows = []
  done = train.train(
    settings, observe=lambda now: rows.append(now.row) if now.row else None
  )
  assert tasks.batches_per_epoch(settings) == 600 // (2 * LENGTH)
  assert [row['batches'] for row in rows] == [25, 50, 75, 100]
  assert [row['epoch'] for row in rows] == [0.5, 1.0, 1.5, 2.0]
  found = [row['test_perplexity'] for row in rows]
  assert found[-1] < found[0] < 12
  assert found[-1] == done.summary['test_perplexity']
  workdir = str(tmp_path / 'run')
  os.makedirs(workdir)
  record.save_config(workdir, settings)
  record.save(workdir, done)
  words = tasks.task_of(settings).dataset.test[: 2 * 13].reshape(2, 13)
  assert record.load(workdir)(words).shape == (2,)


def corpus_of(n, classes=9):
  rng = np.random.default_rng(1)
  text = rng.integers(0, classes, n).astype(np.int32)
  vocabulary = data.Vocabulary(tuple(map(str, range(classes))), 'word')
  return data.Corpus(text, text[: LENGTH + 1], text, vocabulary)


def parameters_of(model):
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  return jax.tree.map(
    lambda s: (0.5 * rng.normal(size=s.shape)).astype('f'), shapes
  )


@pytest.mark.parametrize('n', [LENGTH + 1, 3 * LENGTH + 3, 201])
def test_every_token_but_the_first_is_predicted_once(n):
  """With all parameters 0 every class is as likely."""
  corpus = corpus_of(n)
  model = shallow(9)._replace(
    losses=lambda params, memory, tokens, targets: (
      jnp.take(jnp.log(jnp.arange(2.0, 11.0)), targets),
      memory,
    )
  )
  perplexity, loss = language.evaluation(corpus, model)((), (), 'test')
  wanted = np.log(corpus.test[1:] + 2.0).mean()
  np.testing.assert_allclose(loss, wanted, rtol=1e-6)
  np.testing.assert_allclose(perplexity, math.exp(wanted), rtol=1e-6)


def test_the_memory_is_carried_over_segments():
  """Each reader's part is one pass, where the memory holds all of it."""
  n = language.EVAL_ROWS * 4 * LENGTH
  corpus = corpus_of(n + 1)
  model = shallow(9, memory_length=4 * LENGTH)
  params = parameters_of(model)
  rows = corpus.test[:-1].reshape(language.EVAL_ROWS, -1)
  targets = corpus.test[1:].reshape(language.EVAL_ROWS, -1)
  nothing = shallow(9, memory_length=0).memory(language.EVAL_ROWS)
  whole, _ = jax.jit(model.losses)(params, nothing, rows, targets)
  _, loss = language.evaluation(corpus, model)(params, (), 'test')
  np.testing.assert_allclose(loss, whole.mean(), rtol=1e-5)


def test_a_prediction_reads_the_whole_row():
  model = shallow(9)
  params, rows = parameters_of(model), corpus_of(2 * 9).test.reshape(2, 9)
  found = language.prediction(model)(params, (), rows)
  nothing = shallow(9, memory_length=0).memory(2)
  wanted, _ = jax.jit(model.log_probs)(params, nothing, rows)
  np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_perplexity_that_overflows_is_infinite():
  model = shallow(9)._replace(
    losses=lambda params, memory, tokens, targets: (
      jnp.full(targets.shape, 1e4),
      memory,
    )
  )
  found = language.evaluation(corpus_of(20), model)((), (), 'test')
  assert found[0] == math.inf


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'method': 'local_sgd'}, '--method=local_sgd: its worker program local_'),
    ({'program': 'laga'}, '--program=laga: its worker program laga knows no'),
    ({'model': 'mlp'}, '--model=mlp: reads no tokens'),
    ({'augment': True}, '--augment=True: needs images'),
    (
      {'pipeline_depth': 1, 'runtime': 'threads'},
      '--pipeline_depth=1: must be 0 with a model that remembers',
    ),
    ({'batch_size': 300}, '--batch_size=300: 2 streams of 300 rows of 6'),
    ({'segment_length': -3}, '--segment_length=-3: .*at least 1'),
    ({'memory_length': -3}, '--memory_length=-3: .*at least 0'),
    ({'data_path': '/'}, '--data_path=/: / must hold train.txt'),
  ],
)
def test_settings_that_mean_nothing_for_a_text_are_refused(
  folder, fields, message
):
  with pytest.raises(settings_lib.SettingError, match=message):
    tasks.source_of(settings_of(folder, **fields))


def test_settings_of_images_and_of_language_are_not_mixed():
  settings = settings_lib.Settings(model='shallow')
  with pytest.raises(settings_lib.SettingError, match='needs tokens'):
    tasks.task_of(settings)
  with pytest.raises(settings_lib.SettingError, match=r'taken by .*not by'):
    check.check(dataclasses.replace(settings, model='mlp', memory_length=3))
