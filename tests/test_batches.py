"""The order of training data: every row once an epoch, rows of one length together, labels in their share."""

from collections import Counter

import numpy as np
import pytest

from minipeft.batches import BATCHES_SORTED_TOGETHER, BucketedBatches, MicroBatches, ShuffledStream

RANDOM = np.random.default_rng(0)
N, SIZE = 960, 12
LENGTHS = RANDOM.integers(5, 60, N).tolist()
LABELS = RANDOM.choice(["a", "b", "c"], N, p=[0.5, 0.3, 0.2]).tolist()
STEPS = N // SIZE  # one epoch
each_kind = pytest.mark.parametrize("labels", [(), LABELS], ids=["unlabelled", "labelled"])


@each_kind
def test_an_epoch_holds_every_row_once(labels: list[str]) -> None:
    batches = BucketedBatches(LENGTHS, SIZE, 3, labels)
    epoch = [row for step in range(STEPS) for row in batches(step)]
    assert sorted(epoch) == list(range(N))
    again = [row for step in range(STEPS, 2 * STEPS) for row in batches(step)]
    assert sorted(again) == list(range(N))
    assert again != epoch


@each_kind
def test_little_of_a_batch_is_padding(labels: list[str]) -> None:
    def padding(batches: list[list[int]]) -> int:
        return sum(max(LENGTHS[row] for row in rows) - LENGTHS[row] for rows in batches for row in rows)

    bucketed = BucketedBatches(LENGTHS, SIZE, 3, labels)
    stream = ShuffledStream(N, 3)
    plain = [[row for _, row in stream.batch(step, SIZE)] for step in range(STEPS)]
    assert padding([bucketed(step) for step in range(STEPS)]) < 0.35 * padding(plain)


@pytest.mark.parametrize("seed", range(5))
def test_a_batch_holds_every_label_in_its_share(seed: int) -> None:
    share = {label: count / N for label, count in Counter(LABELS).items()}
    batches = BucketedBatches(LENGTHS, SIZE, seed, LABELS)
    counts = [Counter(LABELS[row] for row in batches(step)) for step in range(3 * STEPS)]
    for count in counts:
        for label, expected in share.items():
            assert abs(count[label] - expected * SIZE) <= 2  # the stretch is off by one row, its cut by another


def test_the_excess_of_a_label_never_adds_up() -> None:
    """What a run has seen after any number of groups is balanced, not only each batch."""
    batches = BucketedBatches(LENGTHS, SIZE, 1, LABELS)
    seen: Counter[str] = Counter()
    for step in range(3 * STEPS):
        seen.update(LABELS[row] for row in batches(step))
        if step % BATCHES_SORTED_TOGETHER == BATCHES_SORTED_TOGETHER - 1:
            for label, count in Counter(LABELS).items():
                assert abs(seen[label] - (step + 1) * SIZE * count / N) <= 2


def test_any_step_can_be_asked_for_first() -> None:
    one, other = (BucketedBatches(LENGTHS, SIZE, 7, LABELS) for _ in range(2))
    forwards = [one(step) for step in range(200)]
    assert [other(step) for step in reversed(range(200))] == forwards[::-1]


def test_a_label_rarer_than_batches_still_comes_once_an_epoch() -> None:
    labels = ["rare"] + ["common"] * (N - 1)
    batches = BucketedBatches(LENGTHS, SIZE, 0, labels)
    assert sum(0 in batches(step) for step in range(STEPS)) == 1


def test_a_batch_is_cut_and_halved_until_a_row_is_alone(capsys: pytest.CaptureFixture[str]) -> None:
    micro = MicroBatches(5)
    assert list(micro.cut(range(5))) == [range(5)]
    assert [(micro.use_fewer(), micro.most) for _ in range(4)] == [(True, 3), (True, 2), (True, 1), (False, 1)]
    assert "from here on 3 rows at a time" in capsys.readouterr().err
    assert [list(part) for part in MicroBatches(2).cut(range(5))] == [[0, 1], [2, 3], [4]]
    assert [list(part) for part in MicroBatches(2).cut(range(5), processes=2)] == [[0, 1, 2, 3], [4]]
    with pytest.raises(ValueError, match="at least 1 row"):
        MicroBatches(0)
