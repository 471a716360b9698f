"""Contrastive loss and drawn negatives: closed forms, slow references, distribution of draws, what is no negative."""

import math

import pytest
import torch

from dual_distill.modeling import allowed_negatives, gather_pair_ids, gather_rows, pair_similarities
from dual_distill.modeling.modeling_losses import (
    hard_negatives,
    inverse_temperature,
    itc_loss,
    itm_loss,
    share_of_all,
    unlike_ids,
)

# More than 99.9 % of chi-square values with so many degrees of freedom are smaller.
LARGEST_CHI_SQUARE = {2: 13.8, 3: 16.3, 6: 22.5, 9: 27.9}
CLOSED_FORMS = {
    "all unlike": ([1, 2, 3, 4], [1, 2, 3, 4], math.log(4)),
    "an image twice": ([1, 1, 2, 3], [1, 2, 3, 4], (2 * math.log(3) + 2 * math.log(4)) / 4),
    "a caption twice": ([1, 2, 3, 4], [1, 1, 2, 3], (2 * math.log(3) + 2 * math.log(4)) / 4),
    "the same pair twice": ([1, 1, 2], [1, 1, 2], (2 * math.log(2) + math.log(3)) / 3),
    "one image": ([1, 1, 1], [1, 2, 3], 0.0),
    # Caption 1 fits images 1 and 2, so image 2 is no negative of it in the third row either.
    "known from another row": ([1, 2, 2], [1, 1, 2], math.log(2) / 3),
    "one row": ([5], [5], 0.0),
}


def ids_of(image_ids, caption_ids):
    return gather_pair_ids(torch.tensor(image_ids), torch.tensor(caption_ids))


def random_ids(count, most):
    return ids_of(torch.randint(most, (count,)).tolist(), torch.randint(most, (count,)).tolist())


def known(ids):
    """Every pair that some row holds, as (caption, image)."""
    return set(zip(ids.caption_ids.tolist(), ids.image_ids.tolist(), strict=True))


def fits(ids, row, other, texts_ask):
    """Whether row's text and other's image (or the reverse) are known to fit."""
    text, image = (row, other) if texts_ask else (other, row)
    return (ids.caption_ids[text].item(), ids.image_ids[image].item()) in known(ids)


@pytest.mark.parametrize("image_ids, caption_ids, expected", CLOSED_FORMS.values(), ids=CLOSED_FORMS.keys())
def test_identical_vectors_give_the_logarithm_of_what_is_compared(image_ids, caption_ids, expected):
    features = torch.nn.functional.normalize(torch.randn(7), dim=0).expand(len(image_ids), -1)
    similarities = pair_similarities(features, features, torch.tensor([3.0]))
    assert itc_loss(*similarities, ids_of(image_ids, caption_ids)).item() == pytest.approx(expected, abs=1e-5)


def test_contrastive_loss_is_that_of_a_slow_reference():
    ids = random_ids(9, 5)
    texts, images = (torch.nn.functional.normalize(torch.randn(9, 6), dim=-1) for _ in range(2))
    scale = torch.tensor([1.7])
    total = 0.0
    for i in range(9):
        for asking, asked, texts_ask in ((texts, images, True), (images, texts, False)):
            scores = [
                (asking[i] @ asked[j] * math.exp(1.7)).item()
                for j in range(9)
                if j == i or not fits(ids, i, j, texts_ask)
            ]  # fmt: skip
            own = (asking[i] @ asked[i] * math.exp(1.7)).item()
            total += math.log(sum(math.exp(score) for score in scores)) - own
    found = itc_loss(*pair_similarities(texts, images, scale), ids)
    assert found.item() == pytest.approx(total / 18, rel=1e-5)


def test_gradients_are_finite_and_reach_texts_images_and_temperature():
    texts, images = (torch.randn(4, 6, requires_grad=True) for _ in range(2))
    scale = torch.tensor([2.0], requires_grad=True)
    for image_ids in ([1, 2, 3, 4], [1, 1, 1, 1]):
        itc_loss(*pair_similarities(texts, images, scale), ids_of(image_ids, [1, 2, 3, 4])).backward()
        assert all(tensor.grad.isfinite().all() for tensor in (texts, images, scale))
        assert all(bool(tensor.grad.any()) == (image_ids[1] == 2) for tensor in (texts, images, scale))
        texts.grad = images.grad = scale.grad = None


def test_the_factor_stays_below_a_hundred():
    scale = torch.tensor([7.0], requires_grad=True)
    factor = inverse_temperature(scale)
    assert factor.item() == pytest.approx(100, rel=1e-6)
    factor.backward()
    assert scale.grad.item() == 0
    similarities, _ = pair_similarities(torch.eye(2), torch.eye(2), scale)
    torch.testing.assert_close(similarities, 100 * torch.eye(2))


def test_similarities_are_float32_under_autocast():
    texts, images = (torch.nn.functional.normalize(torch.randn(5, 64), dim=-1) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = pair_similarities(texts, images, torch.tensor([4.0]))
    torch.testing.assert_close(found, texts @ images.T * math.exp(4))


@pytest.mark.parametrize("texts_ask", [True, False])
def test_what_may_be_a_negative(texts_ask):
    for _ in range(20):
        ids = random_ids(8, 4)
        found = allowed_negatives(ids, texts_ask)
        expected = [[not fits(ids, i, j, texts_ask) for j in range(8)] for i in range(8)]
        assert found.tolist() == expected
        same = (ids.image_ids[:, None] == ids.image_ids) | (ids.caption_ids[:, None] == ids.caption_ids)
        assert not (found & same).any()


@pytest.mark.parametrize("texts_ask", [True, False])
def test_a_draw_is_never_a_known_pair_and_missing_only_where_none_is_left(texts_ask):
    missing = 0
    for _ in range(60):
        ids = random_ids(6, 3)
        rows = hard_negatives(torch.randn(6, 6) * 3, ids, texts_ask)
        for i, row in enumerate(rows.tolist()):
            allowed = [j for j in range(6) if not fits(ids, i, j, texts_ask)]
            assert (row in allowed) if allowed else row == -1
            missing += not allowed
    assert missing > 0


def draws(similarities, image_ids, texts_ask=True, batches=1000):
    """What rows 0 and 1 draw in many batches of unlike captions and the images given, `(batches, 2)`."""
    found = []
    for batch in range(batches):
        images = torch.tensor(image_ids) + 1000 * batch  # the same draws would come from the same ids
        captions = torch.arange(len(image_ids)) - 7 * batch
        ids = gather_pair_ids(images, captions) if texts_ask else gather_pair_ids(captions, images)
        found.append(hard_negatives(similarities, ids, texts_ask)[:2])
    return torch.stack(found)


def chi_square(counts, probabilities):
    expected = probabilities * counts.sum()
    return ((counts - expected) ** 2 / expected).sum().item()


@pytest.mark.parametrize("texts_ask", [True, False])
def test_draws_follow_the_softmax_of_similarity(texts_ask):
    # Row 0 may not draw its own; what rows 1 and 3 both hold counts once.
    similarities = torch.tensor([[9.0, 1.0, 0.0, 1.0, -1.0, 0.5]]).repeat(6, 1)
    found = draws(similarities, [1, 2, 3, 2, 5, 6], texts_ask)[:, 0]
    assert set(found.tolist()) == {1, 2, 4, 5}
    counts = torch.tensor([(found == row).sum() for row in (1, 2, 4, 5)])
    probabilities = torch.tensor([1.0, 0.0, -1.0, 0.5]).softmax(0)
    assert chi_square(counts, probabilities) < LARGEST_CHI_SQUARE[3]
    assert chi_square(counts, torch.full((4,), 0.25)) > 100  # the test can tell


def test_draws_of_two_rows_do_not_depend_on_each_other():
    found = draws(torch.zeros(6, 6), [1, 2, 3, 4, 5, 6])
    others = found[(found > 1).all(dim=1)] - 2  # both from the four that either may draw
    counts = torch.bincount(others[:, 0] * 4 + others[:, 1], minlength=16).reshape(4, 4)
    rows, columns = (counts.sum(dim) / counts.sum() for dim in (1, 0))
    assert chi_square(counts, rows[:, None] * columns) < LARGEST_CHI_SQUARE[9]


@pytest.mark.parametrize("texts_ask", [True, False])
def test_draws_do_not_depend_on_the_order_of_the_rows_or_on_the_random_state(texts_ask):
    for _ in range(20):
        ids = random_ids(8, 6)
        # Equal entries are equally near.
        asked = ids.image_ids if texts_ask else ids.caption_ids
        asking = ids.caption_ids if texts_ask else ids.image_ids
        similarities = (torch.randn(6, 6) * 2)[asking][:, asked]

        def drawn(order, ids=ids, asked=asked, similarities=similarities):
            rows = hard_negatives(similarities[order][:, order], ids_of(ids.image_ids[order].tolist(),
                                  ids.caption_ids[order].tolist()), texts_ask)  # fmt: skip
            return torch.where(rows < 0, -1, asked[order][rows])[order.argsort()]

        once = drawn(torch.arange(8))
        torch.manual_seed(99)
        assert torch.equal(drawn(torch.randperm(8)), once)


def test_another_batch_draws_otherwise():
    ids = ids_of(range(40), range(40))
    more = ids_of(range(41), range(41))
    one = hard_negatives(torch.zeros(40, 40), ids)
    other = hard_negatives(torch.zeros(41, 41), more)[:40]
    assert (one == other).float().mean() < 0.2
    backwards = hard_negatives(torch.zeros(40, 40), ids, texts_ask=False)
    assert (one == backwards).float().mean() < 0.2


def test_ids_of_63_bits():
    most = 2**63 - 1
    image_ids = [most, most - 1, most - 2, most]
    ids = ids_of(image_ids, [most - 3, most, most - 5, most - 6])
    assert allowed_negatives(ids).tolist() == [[image_ids[i] != image_ids[j] for j in range(4)] for i in range(4)]
    assert all(image_ids[row] != image_ids[i] for i, row in enumerate(hard_negatives(torch.zeros(4, 4), ids).tolist()))


def test_matching_loss_written_out():
    logits, labels = torch.randn(5, 2), torch.tensor([1, 0, -100, 0, 1])
    log_probs = logits.log_softmax(-1)
    expected = -(log_probs[0, 1] + log_probs[1, 0] + log_probs[3, 0] + log_probs[4, 1]) / 4
    torch.testing.assert_close(itm_loss(logits, labels), expected)
    nothing = itm_loss(logits.requires_grad_(), torch.full((5,), -100))
    nothing.backward()
    assert nothing.item() == 0
    assert not logits.grad.any()


def test_one_process_gathers_nothing():
    tensor = torch.randn(2, 3)
    assert gather_rows(tensor) is tensor
    assert share_of_all(torch.tensor(3)).item() == 1
    assert unlike_ids(3, tensor.device).tolist() == [0, 1, 2]


def test_ids_of_another_shape_or_type_are_refused():
    with pytest.raises(
        ValueError, match=r"image_ids and caption_ids have shapes \(2,\) .* \(3,\) .* give one int64 id a row"
    ):
        gather_pair_ids(torch.arange(2), torch.arange(3))
    with pytest.raises(ValueError, match=r"of torch.float32"):
        gather_pair_ids(torch.zeros(2), torch.arange(2))
