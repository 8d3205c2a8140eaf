"""Better, worse or not told apart: against scipy's tests, simulation, and the cases that have no test."""

import numpy as np
import pytest
import scipy.stats

from hoard.analysis import verdicts


def test_one_dataset_is_the_paired_or_welchs_test():
    a, b = np.random.default_rng(0).normal([[1.0], [0.0]], 1.0, (2, 8))
    paired = verdicts.compare([a], [b], paired=True)
    theirs = scipy.stats.ttest_rel(a, b)
    assert paired.p == pytest.approx(theirs.pvalue)
    assert paired.difference[1:] == pytest.approx(tuple(theirs.confidence_interval()))
    welch = verdicts.compare([a], [b[:5]], paired=False)
    theirs = scipy.stats.ttest_ind(a, b[:5], equal_var=False)
    assert welch.p == pytest.approx(theirs.pvalue)
    assert welch.difference[1:] == pytest.approx(tuple(theirs.confidence_interval()))
    assert welch.difference.point == pytest.approx(a.mean() - b[:5].mean())


def test_words():
    a = np.array([10.0, 11.0, 12.0, 10.5, 11.5])
    assert verdicts.compare([a], [a - 8 + [0, 0.1, 0, 0.2, 0.1]], paired=True).text == "better"
    assert verdicts.compare([a - 8 + [0, 0.1, 0, 0.2, 0.1]], [a], paired=True).text == "worse"
    near = verdicts.compare([a], [a + np.array([3, -2, 1, -1, 2])], paired=True)
    assert near.text.startswith("not told apart with 5 seeds; about ")
    assert near.text.endswith(" would be needed")
    assert near.needed > 5


def test_the_needed_number_of_seeds_is_the_one_that_suffices():
    """With that many seeds, a difference like the observed one is found in four of five repetitions."""
    rng = np.random.default_rng(3)
    found = verdicts._needed(0.5, 1.0 / 4, 3.0, 4, 0.95)  # difference 0.5, spread of a paired difference 1
    n = int(found)
    repetitions = rng.normal(0.5, 1.0, (4000, n))
    power = np.mean(scipy.stats.ttest_1samp(repetitions, 0, axis=1).pvalue < 0.05)
    assert power == pytest.approx(verdicts.POWER, abs=0.03)
    fewer = rng.normal(0.5, 1.0, (4000, n // 2))
    assert np.mean(scipy.stats.ttest_1samp(fewer, 0, axis=1).pvalue < 0.05) < 0.6


def test_several_datasets_count_the_same_and_add_up():
    rng = np.random.default_rng(1)
    a = [rng.normal(level, 1, 5) for level in (0, 50, 90)]
    b = [values - rng.normal(1.5, 1, 5) for values in a]
    together = verdicts.compare(a, b, paired=True)
    assert together.difference.point == pytest.approx(np.mean([x.mean() - y.mean() for x, y in zip(a, b)]))
    alone = verdicts.compare(a[:1], b[:1], paired=True)
    assert together.p < alone.p


def test_cases_without_a_test_have_a_stated_result():
    one = verdicts.compare([np.array([1.0])], [np.array([2.0])], paired=True)
    assert one.text == "no verdict: one seed shows no spread"
    assert verdicts.compare([np.array([])], [np.array([1.0])], paired=False).text == "no verdict: no finished seed"
    lost = verdicts.compare([np.array([np.nan, 1.0])], [np.array([2.0, 1.0])], paired=True)
    assert lost.text == "no verdict: a value is not finite"
    ties = verdicts.compare([np.full(4, 7.0)], [np.full(4, 7.0)], paired=True)
    assert ties.text == "not told apart with 4 seeds"
    apart = verdicts.compare([np.full(4, 7.0)], [np.full(4, 6.0)], paired=True)
    assert apart.text == "no verdict: the seeds agree to the last digit, so their spread is unknown"


@pytest.mark.parametrize(("seeds", "word"), [(3, "not told apart"), (4, "better"), (10, "better")])
def test_all_or_nothing_rates_are_told_apart_by_fishers_test(seeds, word):
    found = verdicts.compare([np.ones(seeds)], [np.zeros(seeds)], paired=True, rates=True)
    assert found.word == word
    assert verdicts.compare([np.zeros(seeds)], [np.ones(seeds)], paired=True, rates=True).word in ("worse", word)
    assert verdicts.compare([np.ones(seeds)], [np.ones(seeds)], paired=True, rates=True).word == "not told apart"


def test_refusals():
    with pytest.raises(ValueError, match="1 datasets cannot be compared with 2"):
        verdicts.compare([np.ones(2)], [np.ones(2), np.ones(2)], paired=True)
    with pytest.raises(ValueError, match="the same seeds"):
        verdicts.compare([np.ones(2)], [np.ones(3)], paired=True)


def test_two_equal_methods_are_told_apart_as_rarely_as_claimed():
    rng = np.random.default_rng(5)
    wrong = sum(
        verdicts.compare([rng.normal(0, 1, 3)], [rng.normal(0, 1, 3)], paired=True).word != "not told apart"
        for _ in range(1_000)
    )
    assert wrong / 1_000 == pytest.approx(0.05, abs=0.02)


def test_holm():
    assert verdicts.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert verdicts.holm([0.5, np.nan, 0.6]) == pytest.approx([1.0, np.nan, 1.0], nan_ok=True)
    assert len(verdicts.holm([])) == 0


def test_differences_of_rates_stay_in_range():
    always, never = np.array([1.0, 1.0, 1.0]), np.array([0.0, 0.0, 0.005])
    rates = verdicts.compare([always], [never], paired=False, rates=True)
    assert rates.difference.high == 1 > rates.difference.low > 0.98
    assert verdicts.compare([always], [never], paired=False).difference.high > 1
    assert verdicts.compare([never], [always], paired=False, rates=True).difference.low == -1
