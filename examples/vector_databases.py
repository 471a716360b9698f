"""A store's vectors in a vector database, and a search there by text.

    dual-distill encode runs/retrieval --images photos/ --output-dir photos.store
    pip install qdrant-client lancedb
    python examples/vector_databases.py qdrant runs/retrieval photos.store --into photos.qdrant "a dog on a beach"
    python examples/vector_databases.py lancedb runs/retrieval photos.store --into photos.lance "a dog on a beach"
    python examples/vector_databases.py pgvector runs/retrieval photos.store --into photos.sql "a dog on a beach"

qdrant and LanceDB run in this process, on a folder. For pgvector two files of SQL are written: `psql -f photos.sql`
makes and fills the table, `psql -f photos.query.sql` searches it. Only the vectors move: texts are encoded here.
"""

# ruff: noqa: T201 - printing is what a script does
import argparse
from collections.abc import Iterator
from pathlib import Path

import torch

from dual_distill import load_model
from dual_distill.inference import FeatureStore

TABLE = "images"
Found = list[tuple[str, float]]
# What COPY takes for a backslash, and for what would end a cell or a row.
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


def into_qdrant(store: FeatureStore, folder: str) -> None:
    """Write all vectors into a collection, the id beside each."""
    from qdrant_client import QdrantClient
    from qdrant_client.models import Batch, Distance, VectorParams

    client = QdrantClient(path=folder)
    vectors = VectorParams(size=store.manifest.width, distance=Distance.COSINE)
    client.create_collection(TABLE, vectors_config=vectors)
    start = 0
    for batch in store.batches():
        # Its own ids are numbers or UUIDs; ours are paths.
        ids = [{"id": one} for one in batch["id"].to_pylist()]
        rows = Batch(ids=range(start, start + len(ids)), vectors=batch["vector"].to_pylist(), payloads=ids)
        client.upsert(TABLE, rows)
        start += len(ids)
    client.close()


def search_qdrant(folder: str, query: list[float], top_k: int) -> Found:
    """Return ids and cosines."""
    from qdrant_client import QdrantClient

    client = QdrantClient(path=folder)
    found = client.query_points(TABLE, query=query, limit=top_k, with_payload=True).points
    client.close()
    return [(point.payload["id"], point.score) for point in found]


def into_lancedb(store: FeatureStore, folder: str) -> None:
    """Write all vectors into a table; the store's batches go in as they are."""
    import lancedb

    lancedb.connect(folder).create_table(TABLE, data=store.batches())


def search_lancedb(folder: str, query: list[float], top_k: int) -> Found:
    """Return ids and cosines; without an index the search is exact."""
    import lancedb

    table = lancedb.connect(folder).open_table(TABLE)
    rows = table.search(query).distance_type("cosine").limit(top_k).to_list()
    return [(row["id"], 1 - row["_distance"]) for row in rows]


def pgvector_statements(store: FeatureStore) -> Iterator[str]:
    """Yield the lines of an SQL file that makes, fills and indexes a table."""
    yield "CREATE EXTENSION IF NOT EXISTS vector;"
    yield f"CREATE TABLE {TABLE} (id text PRIMARY KEY, vector vector({store.manifest.width}) NOT NULL);"
    yield f"COPY {TABLE} (id, vector) FROM stdin;"
    for batch in store.batches():
        for identifier, vector in zip(batch["id"].to_pylist(), batch["vector"].to_pylist(), strict=True):
            yield f"{identifier.translate(_ESCAPES)}\t{vector}"
    yield "\\."
    # Behind the rows, which is faster; HNSW is approximate.
    yield f"CREATE INDEX ON {TABLE} USING hnsw (vector vector_cosine_ops);"


def pgvector_query(query: list[float], top_k: int) -> str:
    """Return the statement that searches."""
    order = f"vector <=> '{query}'"
    return f"SELECT id, 1 - ({order}) AS score FROM {TABLE} ORDER BY {order} LIMIT {top_k};"


def main() -> None:
    """Write a store into a database, and search it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database", choices=["qdrant", "lancedb", "pgvector"])
    parser.add_argument("model", help="that made the store, with a retrieval head")
    parser.add_argument("store")
    parser.add_argument("--into", metavar="PATH", required=True, help="new folder, or file of SQL")
    parser.add_argument("text")
    parser.add_argument("--top-k", type=int, default=5)
    options = parser.parse_args()
    if Path(options.into).exists():
        raise SystemExit(f"{options.into!r} is there already; give a new path.")

    model, processor = load_model(options.model)
    store = FeatureStore(options.store)
    with torch.inference_mode():
        [query] = model.embed_texts(**processor(text=options.text)).tolist()
    if options.database == "pgvector":
        file = Path(options.into)
        with file.open("w", encoding="utf-8") as lines:
            lines.writelines(f"{line}\n" for line in pgvector_statements(store))
        file.with_suffix(".query.sql").write_text(pgvector_query(query, options.top_k) + "\n")
        return

    write, search = {"qdrant": (into_qdrant, search_qdrant), "lancedb": (into_lancedb, search_lancedb)}[
        options.database
    ]
    write(store, options.into)
    for identifier, score in search(options.into, query, options.top_k):
        print(f"{score:.4f}  {identifier}")


if __name__ == "__main__":
    main()
