"""Searching a store: cosines of the model's own vectors, exact in pieces, and an index of faiss that gives the same."""

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import PreTrainedModel

from dual_distill.data import ImageError
from dual_distill.inference import FeatureStore, FeatureStoreSearcher, FeatureStoreVQA, encode_images, encode_texts
from dual_distill.inference.feature_store import (
    NORMALISED,
    POOLED,
    PROJECTED,
    FeatureManifest,
    FeatureTable,
    stored_columns,
)
from dual_distill.inference.model_identity import model_identity, processor_settings
from dual_distill.inference.vector_index import mapped_index
from dual_distill.modeling import (
    DualDistillProcessor,
    DualEncoderForImageTextRetrieval,
    DualEncoderForPreTraining,
    DualEncoderForQuestionAnswering,
)

TEXTS = ["is there a red circle?", "how many blue squares are there?", "xylophones", "red"]


@pytest.fixture
def model(answering_model: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    return answering_model(DualEncoderForImageTextRetrieval, projection_dim=8)


@pytest.fixture
def images(pictures: list[Image.Image]) -> dict[str, Image.Image]:
    return {f"image {number}": picture for number, picture in enumerate(pictures)}


@pytest.fixture
def stores(model, answering_processor, images, tmp_path) -> tuple[FeatureStore, FeatureStore]:
    encode_images(model, answering_processor, images, tmp_path / "images", shard_size=2)
    encode_texts(model, answering_processor, TEXTS, tmp_path / "texts", shard_size=3)
    return FeatureStore(tmp_path / "images"), FeatureStore(tmp_path / "texts")


@torch.no_grad()
def cosines(model, processor, images) -> torch.Tensor:
    """`(images, texts)` of the model's forward, each pair alone."""
    return torch.stack(
        [
            torch.cat([model(**processor(image, text)).logits_per_image[0] for text in TEXTS]) / model.logit_scale.exp()
            for image in images.values()
        ]
    )


def test_a_retrieval_head_stores_its_vectors_of_length_1(model, answering_processor, images, stores) -> None:
    for store in stores:
        assert store.manifest.vectors == NORMALISED
        assert (store.manifest.width, store.manifest.projected) == (8, False)
        torch.testing.assert_close(store.read(range(len(store))).norm(dim=-1), torch.ones(len(store)))
        with pytest.raises(ValueError, match="holds normalised vectors, not 'pooled'"):
            store.read([0], POOLED)
        with pytest.raises(ValueError, match="holds normalised vectors, not 'projected'; encode with another head"):
            next(store.pieces(PROJECTED))
    pairs = stores[0].read(range(5)) @ stores[1].read(range(4)).T
    torch.testing.assert_close(pairs, cosines(model, answering_processor, images), atol=1e-5, rtol=0)


def test_both_directions_rank_by_the_models_own_cosines(model, answering_processor, images, stores) -> None:
    scores = cosines(model, answering_processor, images)
    of_images, of_texts = stores
    by_texts = FeatureStoreSearcher(model, answering_processor, of_images).by_texts(TEXTS)
    for column, result in enumerate(by_texts):
        order = scores[:, column].argsort(descending=True)
        assert [found.id for found in result.best] == [f"image {place}" for place in order]
        assert [found.score for found in result.best] == pytest.approx(scores[order, column].tolist(), abs=1e-5)
        assert result.matches == 5
    searchers = {
        "files": (FeatureStoreSearcher(model, answering_processor, of_texts), list(images.values())),
        "ids": (FeatureStoreSearcher(model, answering_processor, of_texts, of_images), list(images)),
    }
    for searcher, queries in searchers.values():
        for row, result in enumerate(searcher.by_images(queries, top_k=3)):
            order = scores[row].argsort(descending=True)[:3]
            assert [found.id for found in result.best] == [TEXTS[place] for place in order]
            assert result.matches == 4
    middle = scores[:, 0].sort().values[2:4].mean().item()
    [cut] = FeatureStoreSearcher(model, answering_processor, of_images).by_texts(TEXTS[:1], threshold=middle)
    assert len(cut.best) == cut.matches == 2


def test_queries_that_are_stored_are_not_encoded_again(model, answering_processor, images, stores) -> None:
    of_images, of_texts = stores
    [fresh] = FeatureStoreSearcher(model, answering_processor, of_images).by_texts([TEXTS[2]])
    searcher = FeatureStoreSearcher(model, answering_processor, of_images, of_texts)
    model.dual_encoder.text_model = None  # would fail
    [stored] = searcher.by_texts([TEXTS[2]])
    assert [found.id for found in stored.best] == [found.id for found in fresh.best]


def test_a_text_is_not_found_by_what_would_be_another_name_of_an_image_file(
    model, answering_processor, images, stores, tmp_path
) -> None:
    of_images, text = stores[0], "is there a red circle?"
    encode_texts(model, answering_processor, [f"{text}.jpg", "xylophones"], tmp_path / "like files")
    of_texts = FeatureStore(tmp_path / "like files")
    assert [name in of_texts for name in (f"{text}.jpg", text, "xylophones", "xylophones.png")] == [True, False] * 2
    with pytest.raises(ValueError, match="lacks 1 of the texts asked for"):
        of_texts[text]

    # By the model's own vector of the text, not by the stored one of another text.
    plain = FeatureStoreSearcher(model, answering_processor, of_images)
    with_texts = FeatureStoreSearcher(model, answering_processor, of_images, of_texts)
    assert with_texts.by_texts([text]) == plain.by_texts([text])
    assert with_texts.by_texts([text]) != with_texts.by_texts([f"{text}.jpg"])

    # Images are found with and without it.
    named = {"1.jpg": images["image 0"], "2": images["image 1"]}
    encode_images(model, answering_processor, named, tmp_path / "files")
    assert all(name in FeatureStore(tmp_path / "files") for name in ("1", "1.jpg", "2", "2.png"))


def synthetic(model, processor, path: Path, vectors: torch.Tensor, dtype: str = "float32") -> FeatureStore:
    folder = FeatureTable(path)
    identity, settings = model_identity(model), processor_settings("image", model, processor)
    manifest = FeatureManifest("image", dtype, vectors.shape[1], False, 300, 1, identity, settings, NORMALISED)
    folder.begin(asdict(manifest))
    for shard in folder.plan([str(number) for number in range(len(vectors))], 300):
        rows = stored_columns(NORMALISED, vectors[[int(identifier) for identifier in shard.ids]], dtype)
        folder.write_features(shard.number, shard.ids, shard.ids, rows)
    return FeatureStore(path)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_many_rows_are_ranked_as_at_once_and_a_flat_index_gives_the_same(
    model, answering_processor, tmp_path, dtype, monkeypatch
) -> None:
    pytest.importorskip("faiss", reason="needs faiss-cpu, the extra retrieval")
    torch.manual_seed(1)
    vectors = torch.nn.functional.normalize(torch.randn(2000, 8), dim=-1)
    store = synthetic(model, answering_processor, tmp_path / "store", vectors, dtype)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "faiss", None)
        exact = FeatureStoreSearcher(model, answering_processor, store).by_texts(TEXTS, top_k=50)
    with torch.no_grad():
        queries = [
            model.get_text_features(**answering_processor.encode_text([text])).pooler_output[0] for text in TEXTS
        ]
    for query, result in zip(queries, exact, strict=True):
        cosine = torch.nn.functional.cosine_similarity(store.read(range(2000)).float(), query[None])
        order = cosine.argsort(descending=True)[:50]
        assert [found.score for found in result.best] == pytest.approx(
            cosine[order].tolist(), abs={"float32": 1e-5, "float16": 2e-3, "int8": 1e-2}[dtype]
        )
        assert len({int(found.id) for found in result.best} & set(order.tolist())) >= (46 if dtype == "int8" else 49)
    flat = FeatureStoreSearcher(model, answering_processor, store, index="faiss").by_texts(TEXTS, top_k=50)
    for one, other in zip(exact, flat, strict=True):
        assert [found.score for found in other.best] == pytest.approx([found.score for found in one.best], abs=1e-5)
        # What ties in float32 may come in another order.
        assert len({found.id for found in one.best} & {found.id for found in other.best}) >= 49
        assert other.matches == one.matches == 2000
    cut = FeatureStoreSearcher(model, answering_processor, store, index="faiss").by_texts(
        TEXTS[:1], 50, flat[0].best[9].score - 1e-6
    )
    assert len(cut[0].best) == 10
    graph = FeatureStoreSearcher(model, answering_processor, store, index="faiss:HNSW16").by_texts(TEXTS, top_k=10)
    hits = [
        len({found.id for found in a.best[:10]} & {found.id for found in b.best})
        for a, b in zip(exact, graph, strict=True)
    ]
    assert sum(hits) >= 36, "of 40"  # a graph is approximate
    cells = FeatureStoreSearcher(model, answering_processor, store, index="faiss:IVF4,Flat")
    assert len(cells.by_texts(TEXTS[:1])[0].best) == 10


def answers(results) -> list[tuple]:
    each = [(result.matches, result.best) for result in results]
    return [(matches, [(hit.id, pytest.approx(hit.score, abs=1e-6)) for hit in best]) for matches, best in each]


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("top_k, threshold", [(1, -1.0), (7, -1.0), (7, 0.2), (40, 0.9), (950, -1.0), (3000, 0.1)])
def test_with_and_without_faiss_the_same_is_found_equal_scores_in_the_order_of_the_store(
    model, answering_processor, tmp_path, monkeypatch, dtype, top_k, threshold
) -> None:
    pytest.importorskip("faiss", reason="needs faiss-cpu, the extra retrieval")
    torch.manual_seed(2)
    vectors = torch.nn.functional.normalize(torch.randn(140, 8), dim=-1).repeat_interleave(7, 0)
    # The copies of a vector lie in one shard and in several.
    vectors = torch.cat([vectors, vectors[:100]])
    store = synthetic(model, answering_processor, tmp_path / "store", vectors, dtype)
    queries = torch.cat([torch.randn(3, 8), vectors[:2]])

    by_faiss = FeatureStoreSearcher(model, answering_processor, store, index="faiss")
    found = by_faiss.by_vectors(queries, top_k, threshold)
    monkeypatch.setitem(sys.modules, "faiss", None)
    by_torch = FeatureStoreSearcher(model, answering_processor, store)
    assert answers(by_torch.by_vectors(queries, top_k, threshold)) == [
        (result.matches, [tuple(hit[:2]) for hit in result.best]) for result in found
    ]
    for result in found:
        ranked = [(-hit.score, int(hit.id)) for hit in result.best]
        assert ranked == sorted(ranked)
        assert len(ranked) == min(top_k, result.matches)


def test_the_exact_search_reads_the_mapped_shards_and_copies_nothing(model, answering_processor, tmp_path) -> None:
    faiss = pytest.importorskip("faiss", reason="needs faiss-cpu, the extra retrieval")
    vectors = torch.nn.functional.normalize(torch.randn(700, 8), dim=-1)
    store = synthetic(model, answering_processor, tmp_path / "store", vectors, "float16")
    index = mapped_index(store)
    assert (index.ntotal, index.count(), list(tmp_path.rglob("*.faiss"))) == (700, 3, [])
    for number in range(3):
        shard = faiss.downcast_index(index.at(number))
        assert not shard.codes.is_owned
        [mapped] = store.table.arrays(number, NORMALISED)
        assert shard.codes.size() == mapped.nbytes
        assert not mapped.flags.owndata
    # What is damaged is named before it is compared.
    file = tmp_path / "store" / "shard-00001.arrow"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"shard-00001\.arrow' is missing or damaged"):
        FeatureStoreSearcher(model, answering_processor, FeatureStore(store.path)).by_texts(["red"])


@pytest.mark.parametrize("spec", ["HNSW16", "IVF1,Flat"])
def test_an_index_is_saved_beside_the_store_and_made_again_only_where_it_does_not_fit(
    model, answering_processor, images, stores, tmp_path, caplog, monkeypatch, spec
) -> None:
    faiss = pytest.importorskip("faiss", reason="needs faiss-cpu, the extra retrieval")
    made: list[str] = []
    factory = faiss.index_factory
    monkeypatch.setattr(faiss, "index_factory", lambda *words: made.append(words[1]) or factory(*words))

    def asked() -> list[str]:
        store = FeatureStore(tmp_path / "images")
        [result] = FeatureStoreSearcher(model, answering_processor, store, index=f"faiss:{spec}").by_texts(["red"])
        return [hit.id for hit in result.best]

    first = asked()
    assert asked() == first
    assert made == [spec], "once, then it is there"
    assert not caplog.records

    encode_images(model, answering_processor, {**images, "new": images["image 0"]}, tmp_path / "images")
    assert set(asked()) == {*first, "new"}
    assert set(asked()) == {*first, "new"}
    assert made == [spec] * 2
    assert "was made of other vectors or by another faiss; it is made again" in caplog.text

    [file] = (tmp_path / "images").glob("index-*.faiss")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert set(asked()) == {*first, "new"}
    assert len(made) == 3
    assert caplog.text.count("is damaged; it is made again") == 1

    def full(*words: object) -> None:
        raise OSError("No space left on device")

    file.with_suffix(".json").unlink()
    monkeypatch.setattr("dual_distill.inference.vector_index.write_file", full)
    assert set(asked()) == {*first, "new"}
    assert "cannot be saved in" in caplog.text


def test_vectors_to_search_by_take_a_byte_a_number(model, answering_processor, images, stores, tmp_path) -> None:
    encode_images(model, answering_processor, images, tmp_path / "small", dtype="int8", shard_size=2)
    encode_texts(model, answering_processor, TEXTS, tmp_path / "small texts", dtype="int8")
    small, texts = FeatureStore(tmp_path / "small"), FeatureStore(tmp_path / "small texts")
    for rounded, exact in ((small, stores[0]), (texts, stores[1])):
        found, wanted = rounded.read(range(len(exact))), exact.read(range(len(exact)))
        assert found.dtype == torch.float32
        assert (found - wanted).abs().max() <= wanted.abs().max() / 254 * (1 + 1e-5)
        torch.testing.assert_close(torch.cat([piece for _, piece in rounded.pieces(rows=1)]), found)
    [near], [exact] = (
        FeatureStoreSearcher(model, answering_processor, store, own).by_texts(TEXTS[:1])
        for store, own in ((small, texts), stores)
    )
    assert [hit.score for hit in near.best] == pytest.approx([hit.score for hit in exact.best], abs=2e-2)


def test_texts_of_unlike_lengths_are_cut_at_once_and_encoded_in_one_pass(
    model, answering_processor, stores, monkeypatch
) -> None:
    texts = [" ".join(["red"] * number) for number in range(1, 17)]
    searcher = FeatureStoreSearcher(model, answering_processor, stores[0])
    alone = [searcher.by_texts([text])[0] for text in texts]

    cut, passes = [], []
    encode_text = DualDistillProcessor.encode_text

    def counted(self, some, **more):
        cut.append(len(some))
        return encode_text(self, some, **more)

    monkeypatch.setattr(DualDistillProcessor, "encode_text", counted)
    model.dual_encoder.text_model.register_forward_hook(lambda *_: passes.append(1))
    together = searcher.by_texts(texts)
    assert (cut, len(passes)) == ([16], 1)
    for one, other in zip(alone, together, strict=True):
        assert [hit.id for hit in other.best] == [hit.id for hit in one.best]
        assert [hit.score for hit in other.best] == pytest.approx([hit.score for hit in one.best], abs=1e-6)


def test_faiss_that_is_missing_is_said_with_its_extra(model, answering_processor, stores, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"faiss, which is not installed: pip install 'dual-distill\[retrieval\]'"):
        FeatureStoreSearcher(model, answering_processor, stores[0], index="faiss")


def test_an_index_that_faiss_does_not_know(model, answering_processor, stores) -> None:
    pytest.importorskip("faiss", reason="needs faiss-cpu, the extra retrieval")
    with pytest.raises(ValueError, match="faiss makes no index of 'Flut'"):
        FeatureStoreSearcher(model, answering_processor, stores[0], index="faiss:Flut")
    with pytest.raises(ValueError, match=r"faiss cannot make 'IVF64,Flat' of the 5 vectors of .* fewer centres"):
        FeatureStoreSearcher(model, answering_processor, stores[0], index="faiss:IVF64,Flat")


def test_an_image_of_no_shape_to_search_by_is_a_sentence(model, answering_processor, stores) -> None:
    with pytest.raises(ImageError, match="row 1: the image of 4000 x 1 pixels cannot be resized"):
        FeatureStoreSearcher(model, answering_processor, stores[1]).by_images(
            [Image.new("RGB", (20, 20)), Image.new("RGB", (4000, 1))]
        )


@pytest.fixture
def reading(
    answering_model, answering_processor, images, tmp_path
) -> tuple[PreTrainedModel, Callable[..., FeatureStore]]:
    """A model whose layers read tokens, and its stores with them."""
    model = answering_model(DualEncoderForImageTextRetrieval, projection_dim=8, interaction_layers=1)

    def stored(name: str, **settings: object) -> FeatureStore:
        if name == "texts":
            encode_texts(model, answering_processor, TEXTS, tmp_path / name)
        else:
            encode_images(model, answering_processor, images, tmp_path / name, shard_size=2, tokens=True, **settings)
        return FeatureStore(tmp_path / name)

    return model, stored


@torch.no_grad()
def matches(model, processor, images) -> torch.Tensor:
    """`(images, texts)` probabilities from pixels, each pair alone."""
    rows = [[model.match_scores(**processor(image, text))[0, 0] for text in TEXTS] for image in images.values()]
    return torch.stack([torch.stack(row) for row in rows]).sigmoid()


@pytest.mark.parametrize("top_k, rerank_top", [(5, 3), (2, 3), (5, 50), (4, 1)])
def test_layers_order_the_nearest_anew_as_they_do_from_pixels(
    reading, answering_processor, images, top_k, rerank_top
) -> None:
    model, stored = reading
    of_images, of_texts = stored("images"), stored("texts")
    near, fits = cosines(model, answering_processor, images), matches(model, answering_processor, images)
    assert (near.argsort(0) != fits.argsort(0)).any(), "they disagree"

    by_texts = FeatureStoreSearcher(model, answering_processor, of_images, of_texts).by_texts(
        TEXTS, top_k, rerank_top=rerank_top
    )
    by_images = FeatureStoreSearcher(model, answering_processor, of_texts, of_images).by_images(
        list(images), top_k, rerank_top=rerank_top
    )
    for results, scores, probs, names in ((by_texts, near.T, fits.T, list(images)), (by_images, near, fits, TEXTS)):
        for result, score, prob in zip(results, scores, probs, strict=True):
            order = score.argsort(descending=True).tolist()
            first = sorted(order[:rerank_top], key=lambda place, prob=prob: -prob[place])
            expected = (first + order[rerank_top:])[:top_k]
            assert [hit.id for hit in result.best] == [names[place] for place in expected]
            assert [hit.score for hit in result.best] == pytest.approx(score[expected].tolist(), abs=1e-5)
            found = [hit.match for hit in result.best if hit.match is not None]
            assert found == pytest.approx(prob[expected[: len(found)]].tolist(), abs=1e-5)
            assert len(found) == min(rerank_top, top_k, len(names))


def test_sure_matches_are_ordered_by_their_logits(reading, answering_processor, images, monkeypatch) -> None:
    model, stored = reading
    searcher = FeatureStoreSearcher(model, answering_processor, stored("images"))
    [plain] = searcher.by_texts(["red"])
    logits = torch.tensor([20.0, 60.0, 90.0, 40.0, 30.0])[:, None]  # sigmoids of 1 in float32
    monkeypatch.setattr(model, "match_scores", lambda **_: logits)
    [sure] = searcher.by_texts(["red"], rerank_top=5)
    assert [hit.id for hit in sure.best] == [plain.best[place].id for place in (2, 1, 3, 4, 0)]
    assert {hit.match for hit in sure.best} == {1.0}


def test_tokens_beside_vectors_leave_the_search_what_it_is(reading, answering_processor, images, tmp_path) -> None:
    model, stored = reading
    with_tokens, small = stored("images"), stored("int8", dtype="int8")
    encode_images(model, answering_processor, images, tmp_path / "plain", shard_size=2)
    plain = FeatureStore(tmp_path / "plain")
    assert torch.equal(with_tokens.read(range(5)), plain.read(range(5)))
    assert (small.read([0]).dtype, small.manifest.tokens, plain.manifest.tokens) == (torch.float16, True, False)
    torch.testing.assert_close(small.read(range(5)).float(), plain.read(range(5)), atol=1e-3, rtol=0)

    exact, rounded = (
        store.image_inputs(range(5), model.config)["image_token_embeds"] for store in (with_tokens, small)
    )
    assert ((rounded - exact).abs() <= exact.abs().amax(-1, keepdim=True) / 254 * (1 + 1e-5)).all()
    (tmp_path / "images" / "shard-00001.arrow").unlink()
    encode_images(model, answering_processor, images, tmp_path / "images")
    assert torch.equal(FeatureStore(tmp_path / "images").read(range(5)), plain.read(range(5)))


def test_re_ranking_that_cannot_be_is_refused(reading, model, answering_processor, images, tmp_path) -> None:
    layered, stored = reading
    searcher = FeatureStoreSearcher(layered, answering_processor, stored("images"))
    with pytest.raises(ValueError, match="rerank_top is 0, but must be at least 1"):
        searcher.by_texts(["red"], rerank_top=0)
    with pytest.raises(ValueError, match="rerank_top lets interaction layers read images; give a store of images with"):
        FeatureStoreSearcher(layered, answering_processor, stored("texts")).by_images(
            list(images.values()), rerank_top=2
        )
    with pytest.raises(ValueError, match="tokens is set, which is about images of a model that searches and has"):
        encode_images(model, answering_processor, images, tmp_path / "none", tokens=True)
    with pytest.raises(ValueError, match="match_scores needs interaction layers, of which this model has none"):
        model.match_scores(**answering_processor(images["image 0"], "red"))


def test_a_pretrained_model_searches_too(answering_model, answering_processor, images, tmp_path) -> None:
    model = answering_model(DualEncoderForPreTraining, projection_dim=8)
    encode_images(model, answering_processor, images, tmp_path / "store")
    [result] = FeatureStoreSearcher(model, answering_processor, FeatureStore(tmp_path / "store")).by_texts(
        ["red"], top_k=2
    )
    assert len(result.best) == 2


def test_each_error_by_its_message(model, answering_model, answering_processor, images, stores, tmp_path) -> None:
    of_images, of_texts = stores
    processor = answering_processor
    answering = answering_model(DualEncoderForQuestionAnswering)
    with pytest.raises(ValueError, match="DualEncoderForQuestionAnswering puts images and texts into no common space"):
        FeatureStoreSearcher(answering, processor, of_images)
    with pytest.raises(
        ValueError, match=r"does not answer about one image at a time \(to search by cosine, FeatureStoreSearcher"
    ):
        FeatureStoreVQA(model, processor, of_images)
    with pytest.raises(
        ValueError, match="projected is set, which is about pooled vectors of images, but normalised vectors"
    ):
        encode_images(model, processor, images, tmp_path / "other", projected=True)
    with pytest.raises(ValueError, match="is a store of images, but one of texts is needed"):
        FeatureStoreSearcher(model, processor, of_images, of_images)
    with pytest.raises(ValueError, match="was made with the model"):
        FeatureStoreSearcher(answering_model(DualEncoderForImageTextRetrieval, projection_dim=8), processor, of_images)
    searcher = FeatureStoreSearcher(model, processor, of_images, of_texts)
    with pytest.raises(ValueError, match="is a store of images, but texts are to be found"):
        searcher.by_images(["image 1"])
    with pytest.raises(ValueError, match="is a store of texts, but images are to be found"):
        FeatureStoreSearcher(model, processor, of_texts).by_texts(["red"])
    with pytest.raises(ValueError, match="lacks 1 of the images asked for: 'image 9'"):
        FeatureStoreSearcher(model, processor, of_texts, of_images).by_images(["image 9"])
    with pytest.raises(ValueError, match="A text is ' '"):
        searcher.by_texts([" "])
    with pytest.raises(ValueError, match="There are no texts"):
        searcher.by_texts([])
    with pytest.raises(ValueError, match=r"texts is the string 'red'; give a list of them, such as \['red'\]"):
        searcher.by_texts("red")
    with pytest.raises(ValueError, match="threshold is 2, but a cosine lies between -1 and 1"):
        searcher.by_texts(["red"], threshold=2)
    with pytest.raises(ValueError, match="top_k is 0"):
        searcher.by_texts(["red"], top_k=0)
