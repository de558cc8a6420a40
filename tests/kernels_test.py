"""Compiled shapes of sums and of a row: the numbers of the plain formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ga_jax.kernels import one_pass, one_row

SIZES = (0, 1, 7, 2048, 2049, 8 * 2048, 40_001)  # blocks of 2048, and rests


def trees(sizes):
  rng = np.random.default_rng(0)
  return [
    {str(n): jnp.asarray(rng.normal(size=n), jnp.float32) for n in sizes}
    for _ in range(2)
  ]


def pair(a, b):
  return a * b, jnp.abs(a)


@pytest.mark.parametrize('sizes', [(), *((n,) for n in SIZES), SIZES])
def test_one_pass_sums_equal_numpys(sizes):
  one, other = trees(sizes)
  found = jax.jit(lambda *both: one_pass.sums(pair, *both))(one, other)
  a, b = (np.concatenate([[], *tree.values()]) for tree in (one, other))
  np.testing.assert_allclose(found.first, np.sum(a * b), rtol=1e-4)
  np.testing.assert_allclose(found.second, np.sum(np.abs(a)), rtol=1e-5)
  assert found.largest == np.max(np.abs(a), initial=0).astype(np.float32)
  assert jax.tree.structure(found.done) == jax.tree.structure(one)
  total = jax.jit(lambda *both: one_pass.total(jnp.multiply, *both))(one, other)
  np.testing.assert_allclose(total, np.sum(a * b), rtol=1e-4)


def test_a_leaf_is_passed_over_only_if_it_is_all_zero():
  """Elsewhere than on the CPU every leaf is."""
  zeros = jnp.zeros(20_000)
  leaves = [zeros, zeros.at[9].set(1.0), zeros.at[9].set(jnp.nan)]
  found = jax.jit(lambda *both: one_pass.sums(pair, *both))(leaves, leaves)
  first = jax.default_backend() != 'cpu'
  assert [bool(done) for done in found.done] == [first, True, True]
  assert np.isnan([found.first, found.second, found.largest]).all()


@pytest.mark.parametrize('keeps_total', [False, True])
def test_a_row_is_replaced_and_the_sum_follows(keeps_total):
  rng = np.random.default_rng(0)
  rows, others = {'a': rng.normal(size=(4, 3))}, {'a': rng.normal(size=3)}
  rows, others = jax.tree.map(jnp.float32, (rows, others))
  total = {'a': rows['a'].sum(0)} if keeps_total else None
  new, after, summed = jax.jit(
    lambda rows, total: one_row.replace(
      lambda v, g: 0.5 * v + g, rows, jnp.int32(2), others, total
    )
  )(rows, total)
  expected = np.array(rows['a'])
  expected[2] = 0.5 * expected[2] + others['a']
  np.testing.assert_array_equal(new['a'], after['a'][2])
  np.testing.assert_allclose(after['a'], expected, rtol=1e-6)
  if keeps_total:
    np.testing.assert_allclose(summed['a'], expected.sum(0), rtol=1e-5)
  else:
    assert summed is None
