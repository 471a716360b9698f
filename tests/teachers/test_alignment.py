"""Attention without tokens: closed forms, brute force over characters and pixels, invariances, today's loss."""

import random
from types import SimpleNamespace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from dual_distill.objectives import (
    DiDEObjective,
    aligned_attention_loss,
    attention_distillation_loss,
    chunked_attention_loss,
    relation_scores,
)
from dual_distill.teachers.alignment import AlignedAttention, Matching, Tokens, align_view
from dual_distill.teachers.view import DirectionAttention, LayerAttention, TeacherView

CLS = [0.0, 0.0, 1.0, 1.0]


def grid(rows, columns, *, cls=True, box=(0.0, 0.0, 1.0, 1.0)):
    """Boxes of a grid that fills `box`, row by row, behind one of the whole image."""
    x0, y0, x1, y1 = box
    across = [x0 + (x1 - x0) * step / columns for step in range(columns + 1)]
    down = [y0 + (y1 - y0) * step / rows for step in range(rows + 1)]
    cells = [[across[c], down[r], across[c + 1], down[r + 1]] for r in range(rows) for c in range(columns)]
    return [CLS] * cls + cells


def tokens(covered, batch=1):
    covered = torch.tensor([covered] * batch)
    return Tokens.of(covered, torch.ones(covered.shape[:2]))


def cut(text, rng):
    """A random tokenization: spans of 1 to 4 characters, some with nothing in them."""
    spans, at = [[0, 0]], 0
    while at < len(text):
        end = min(len(text), at + rng.randint(1, 4))
        spans.append([at, end])
        at = end
    return [*spans, [0, 0]]


def given(*shape):
    probs = torch.rand(shape)
    return DirectionAttention(given_probs=probs / probs.sum(-1, keepdim=True))


def carried(attention, queries, keys):
    """`(B, H, Q, K)`: rows of queries that the teacher does not know are 0."""
    aligned = AlignedAttention(attention, queries, keys)
    probs = aligned.scores((slice(None),) * 3).exp() * aligned.key_mask[:, None, None]
    return probs / probs.sum(-1, keepdim=True) * aligned.query_mask[:, None, :, None]


def test_a_teacher_that_looks_at_one_box_only():
    text = tokens([[0, 3], [4, 9]])
    teacher, student = tokens(grid(2, 2)), tokens(grid(4, 4))
    looks = torch.zeros(1, 1, 2, 5)
    looks[0, 0, 0, 4] = looks[0, 0, 1, 0] = 1.0  # one word at the lower right cell, one at the whole image
    found = carried(DirectionAttention(given_probs=looks), Matching(text, text), Matching(student, teacher))
    expected = torch.zeros(2, 17)
    expected[0, [11, 12, 15, 16]] = 0.25
    expected[1, 0] = 1.0
    torch.testing.assert_close(found[0, 0], expected)


@pytest.mark.parametrize("has_cls", [False, True])
def test_the_whole_image_goes_with_the_whole_image_or_with_all_patches(has_cls):
    text = tokens([[0, 3]])
    teacher, student = tokens(grid(1, 2)), tokens(grid(2, 2, cls=has_cls))
    looks = DirectionAttention(given_probs=torch.tensor([[[[0.5, 0.5, 0.0]]]]))
    found = carried(looks, Matching(text, text), Matching(student, teacher))[0, 0, 0]
    expected = [0.5, 0.25, 0.0, 0.25, 0.0] if has_cls else [0.375, 0.125, 0.375, 0.125]
    torch.testing.assert_close(found, torch.tensor(expected))

    # A student's CLS beside a teacher without one: it looks where all patches look, and is looked at by nobody.
    of_image = Matching(tokens(grid(2, 2)), tokens(grid(1, 2, cls=False)))
    two_words = tokens([[0, 1], [1, 2]])
    from_image = DirectionAttention(given_probs=torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]]]))
    rows = carried(from_image, of_image, Matching(two_words, two_words))[0, 0]
    torch.testing.assert_close(rows[:, 0], torch.tensor([0.75, 1.0, 0.5, 1.0, 0.5]))
    assert of_image.seen.tolist() == [[False, True, True, True, True]]


def test_special_tokens_fall_out_and_rows_are_rescaled():
    teacher, student = tokens([[0, 0], [0, 3], [4, 7], [0, 0]]), tokens([[0, 0], [0, 7], [0, 0]])
    image = tokens(grid(1, 2, cls=False))
    looks = DirectionAttention(given_probs=torch.tensor([[[[0.6, 0.1, 0.2, 0.1], [0.9, 0.05, 0.05, 0.0]]]]))
    found = carried(looks, Matching(image, image), Matching(student, teacher))[0, 0]
    torch.testing.assert_close(found, torch.tensor([[0.0, 1.0, 0.0]] * 2))
    assert Matching(student, teacher).asked.tolist() == [[False, True, False]]


def brute_force(probs, student_queries, teacher_queries, student_keys, teacher_keys):
    """By units (characters, pixels of a fine raster): each unit of a key's token gets its share of the mass."""
    result = torch.zeros(len(student_queries), len(student_keys))
    for q, mine in enumerate(student_queries):
        row = torch.zeros(len(student_keys))
        for unit in mine:
            for other, theirs in enumerate(teacher_queries):
                if unit in theirs:
                    for key, units in enumerate(teacher_keys):
                        for k, kept in enumerate(student_keys):
                            share = len(units & kept) / len(units) if units else 0.0
                            row[k] += probs[other, key] * share
        result[q] = row / row.sum() if row.sum() else row
    return result


def units_of(covered, fine=12):
    if len(covered[0]) == 2:
        return [set(range(*span)) for span in covered]
    edges = [[round(edge * fine) for edge in box] for box in covered]
    return [{(x, y) for x in range(x0, x1) for y in range(y0, y1)} for x0, y0, x1, y1 in edges]


@pytest.mark.parametrize("seed", range(6))
def test_brute_force_over_characters_and_pixels(seed):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    letters = "x" * rng.randint(5, 12)
    texts = [cut(letters, rng) for _ in range(2)]
    images = [grid(rng.choice([1, 2, 3, 4, 6]), rng.choice([2, 3, 4]), cls=False) for _ in range(2)]
    of_text, of_image = (Matching(*map(tokens, sides)) for sides in (texts, images))
    (mine, theirs), (ours, others) = (list(map(units_of, sides)) for sides in (texts, images))

    to_image, to_text = given(1, 2, len(theirs), len(others)), given(1, 2, len(others), len(theirs))
    for head in range(2):
        expected = brute_force(to_image.given_probs[0, head], mine, theirs, ours, others)
        torch.testing.assert_close(carried(to_image, of_text, of_image)[0, head], expected, atol=1e-5, rtol=0)
        expected = brute_force(to_text.given_probs[0, head], ours, others, mine, theirs)
        torch.testing.assert_close(carried(to_text, of_image, of_text)[0, head], expected, atol=1e-5, rtol=0)


def test_splitting_a_word_piece_in_two_and_a_patch_in_four_changes_nothing():
    torch.manual_seed(0)
    words, split_words = [[0, 4], [5, 9]], [[0, 2], [2, 4], [5, 9]]
    patches = grid(2, 2)
    split_patches = [*patches[:4], *grid(2, 2, cls=False, box=patches[4])]
    of_word, of_patch = [0, 0, 1], [0, 1, 2, 3, 4, 4, 4, 4]

    student = tokens([[0, 3], [3, 9]]), tokens(grid(3, 3))
    whole, split = given(1, 1, 2, 5), None
    split = whole.given_probs[:, :, of_word][..., of_patch] / torch.tensor([1.0] * 4 + [4.0] * 4)
    plain = carried(whole, Matching(student[0], tokens(words)), Matching(student[1], tokens(patches)))
    finer = DirectionAttention(given_probs=split)
    torch.testing.assert_close(
        carried(finer, Matching(student[0], tokens(split_words)), Matching(student[1], tokens(split_patches))), plain
    )

    # Of the student: a part of a word looks where the word looks, and parts of a patch share what the patch is given.
    coarse = carried(whole, Matching(tokens(words), tokens(words)), Matching(tokens(patches), tokens(patches)))
    fine = carried(
        whole, Matching(tokens(split_words), tokens(words)), Matching(tokens(split_patches), tokens(patches))
    )
    torch.testing.assert_close(fine[:, :, [0, 2], :4], coarse[..., :4])
    torch.testing.assert_close(fine[:, :, [1, 2], 4:].sum(-1), coarse[..., 4])


def test_one_side_letterboxes_and_the_other_crops():
    """A wide image: the teacher pads it above and below to a square, the student sees its middle half."""
    text = tokens([[0, 3]])
    teacher = tokens(grid(4, 4, cls=False, box=(0.0, -0.5, 1.0, 1.5)))
    assert teacher.mask[0].tolist() == [False] * 4 + [True] * 8 + [False] * 4  # the first and last row are padding
    student = tokens(grid(2, 2, cls=False, box=(0.25, 0.0, 0.75, 1.0)))
    looks = torch.zeros(1, 1, 1, 16)
    looks[..., 5], looks[..., 0], looks[..., 4] = 0.4, 0.4, 0.2  # a patch that both see, padding, one outside the crop
    found = carried(DirectionAttention(given_probs=looks), Matching(text, text), Matching(student, teacher))
    torch.testing.assert_close(found[0, 0, 0], torch.tensor([1.0, 0.0, 0.0, 0.0]))

    # A patch that the crop cuts counts by the part that is seen.
    looks = torch.zeros(1, 1, 1, 2)
    looks[...] = 0.5
    halves = Matching(tokens(grid(1, 3, cls=False, box=(0.0, 0.0, 0.75, 1.0))), tokens(grid(1, 2, cls=False)))
    found = carried(DirectionAttention(given_probs=looks), Matching(text, text), halves)
    torch.testing.assert_close(found[0, 0, 0], torch.tensor([1 / 3] * 3), atol=1e-6, rtol=0)


def pair(rows=3, heads=4, teacher_heads=4, text=5, image=7, teacher_text=5, teacher_image=7):
    student = [torch.randn(rows, heads, size, 6).requires_grad_() for size in (text, image)]
    teacher = [torch.randn(rows, teacher_heads, size, 6) for size in (teacher_text, teacher_image)]
    return student, DirectionAttention(*teacher)


def test_identity_gives_todays_loss_and_gradient():
    torch.manual_seed(1)
    text = Tokens.of(
        torch.tensor([[[i, i + 1] for i in range(5)]] * 3),
        torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]),
    )
    image = tokens(grid(2, 3), 3)
    student, teacher = pair()
    plain = chunked_attention_loss(*student, teacher.queries, teacher.keys, image.mask, text.mask)
    plain.backward()
    expected = [state.grad.clone() for state in student]

    # As the same tokens, and through matrices that are the identity.
    for shift in (0.0, 1e-7):
        of_image = Matching(image, image._replace(covered=image.covered + shift))
        assert of_image.same == (shift == 0.0)
        for state in student:
            state.grad = None
        aligned = AlignedAttention(teacher, Matching(text, text), of_image)
        loss = aligned_attention_loss(*student, aligned, image.mask, text.mask, max_scores=30)
        loss.backward()
        torch.testing.assert_close(loss, plain, atol=1e-6, rtol=0)
        for state, gradient in zip(student, expected, strict=True):
            torch.testing.assert_close(state.grad, gradient, atol=1e-6, rtol=0)


@pytest.mark.parametrize("max_scores", [1, 60, 10**6])
@pytest.mark.parametrize(("teacher_heads", "probabilities"), [(4, False), (4, True), (6, False), (3, True)])
def test_chunks_give_what_whole_matrices_give_over_any_heads(max_scores, teacher_heads, probabilities):
    torch.manual_seed(2)
    student, teacher = pair(teacher_heads=teacher_heads, teacher_text=4, teacher_image=10)
    text = Matching(tokens([[0, 0], [0, 2], [2, 5], [5, 6], [7, 9]], 3), tokens([[0, 3], [3, 6], [7, 9], [0, 0]], 3))
    image = Matching(tokens(grid(2, 3), 3), tokens(grid(3, 3), 3))
    if probabilities:
        teacher = DirectionAttention(given_probs=teacher.scores().softmax(-1))
    aligned = AlignedAttention(teacher, text, image)
    masks = aligned.key_mask, aligned.query_mask
    loss = aligned_attention_loss(*student, aligned, *(torch.ones_like(mask) for mask in masks), max_scores=max_scores)
    loss.backward()
    found = [state.grad.clone() for state in student]

    # The same with whole matrices and autograd: one to one, over two relation heads, or as means over heads.
    shared = 2 if teacher_heads == 6 else None
    mine = relation_scores(*student, shared)
    if shared:
        teacher = DirectionAttention(given_probs=relation_scores(teacher.queries, teacher.keys, 2).softmax(-1))
    theirs = carried(teacher, text, image)
    if teacher_heads == 3:
        allowed = masks[0][:, None, None]
        mine = mine.masked_fill(~allowed, -1e30).softmax(-1).mean(1, keepdim=True).clamp(min=1e-30).log()
        theirs = theirs.mean(1, keepdim=True)
    expected = attention_distillation_loss(mine, theirs.clamp(min=1e-30).log(), *masks)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
    for gradient, wanted in zip(found, torch.autograd.grad(expected, student), strict=True):
        torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=0)


def test_relation_heads_of_probabilities_are_refused():
    student, _ = pair()
    text, image = tokens([[i, i + 1] for i in range(5)], 3), tokens(grid(2, 3), 3)
    aligned = AlignedAttention(given(3, 2, 5, 7), Matching(text, text), Matching(image, image))
    with pytest.raises(ValueError, match="relation_heads is 3, but the teacher gives attention probabilities"):
        aligned_attention_loss(*student, aligned, image.mask, text.mask, relation_heads=3)


def test_an_objective_leaves_out_a_direction_that_the_teacher_lacks():
    torch.manual_seed(3)
    text, image = tokens([[0, 2], [2, 5]], 2), tokens(grid(2, 2), 2)
    spans, boxes = torch.tensor([[[0, 3], [3, 5]]] * 2), torch.tensor([grid(3, 2)] * 2)
    masks = torch.ones(2, 2).bool(), torch.ones(2, 7).bool()
    layer = LayerAttention(text_to_image=DirectionAttention(torch.randn(2, 2, 2, 4), torch.randn(2, 2, 7, 4)))
    scores = align_view(TeacherView(spans, masks[0], boxes, masks[1], [layer]), text, image)
    assert scores[0][1] is None

    states = {name: (torch.randn(2, 2, 7, 4, requires_grad=True),) for name in ("query_states", "key_states")}
    student = SimpleNamespace(**states, image_mask=torch.ones(2, 1, 5).bool())
    loss = DiDEObjective(soft_label_weight=0)(
        student, SimpleNamespace(cross_modal_scores=scores), {"attention_mask": torch.ones(2, 2)}
    )["loss"]
    queries, keys = student.query_states[0][:, :, :2], student.key_states[0][:, :, 2:]
    torch.testing.assert_close(loss, aligned_attention_loss(queries, keys, scores[0][0], image.mask, text.mask))


def peak_bytes(call):
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    now = peak = 0
    for event in sorted(recorded.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


def test_memory_is_that_of_one_row_whatever_the_batch():
    """A map of all rows and heads would be 8 x 4 x 64 x 257 x 4 bytes = 2.1 MB, and some are needed."""

    def loss(rows):
        student, teacher = pair(rows, text=48, image=145, teacher_text=64, teacher_image=257)
        text = [[i * 4, i * 4 + 4] for i in range(48)], [[i * 3, i * 3 + 3] for i in range(64)]
        of_text, of_image = (
            Matching(*(tokens(side, rows) for side in text)),
            Matching(tokens(grid(12, 12), rows), tokens(grid(16, 16), rows)),
        )
        aligned = AlignedAttention(teacher, of_text, of_image)
        held = sum(state.numel() * 4 * 2 for state in student)  # gradients, as they are made and as they are given
        masks = aligned.key_mask, aligned.query_mask
        return peak_bytes(lambda: aligned_attention_loss(*student, aligned, *masks, max_scores=9000).backward()) - held

    assert loss(8) < 1.3 * loss(2) < 1.5e6
