"""Images of a Parquet file, encoded by the workers of Spark or Ray Data, and joined into one feature store.

    pip install pyspark        # needs Java 17; or: pip install "ray[data]"
    python examples/encode_with_workers.py spark runs/retrieval photos.parquet --into photos.parts --store photos.store
    python examples/encode_with_workers.py ray runs/retrieval photos.parquet --into photos.parts --store photos.store

Here on two processes of this machine. On a cluster the same function is sent to its machines: the model's folder (or
its name on the Hub), the file and the folder of parts must be where all of them see them; the store is written by one.
"""

# ruff: noqa: T201 - printing is what a script does
import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset

from dual_distill.inference import EncodeColumn, EncodingReport


def with_spark(encode: EncodeColumn, photos: Path, parts: Path, workers: int) -> None:
    """Run the function in Spark's Python workers, on pandas frames."""
    import os

    import pandas as pd
    from pyspark.sql import SparkSession
    from pyspark.sql.types import ArrayType, FloatType, StringType, StructField, StructType

    def of_frames(frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        for frame in frames:
            encoded = encode(frame.to_dict("list"))
            yield pd.DataFrame({name: encoded[name] for name in columns})

    vector, texts = encode.output_column, (encode.id_column, "sha256", "problem", "made_with")
    schema = [StructField(vector, ArrayType(FloatType())), *(StructField(name, StringType()) for name in texts)]
    columns = [field.name for field in schema]
    os.environ["PYSPARK_PYTHON"] = sys.executable
    spark = SparkSession.builder.master(f"local[{workers}]").config("spark.ui.enabled", "false").getOrCreate()
    rows = spark.read.parquet(str(photos)).repartition(workers)
    rows.mapInPandas(of_frames, StructType(schema)).write.parquet(str(parts))
    spark.stop()


def with_ray(encode: EncodeColumn, photos: Path, parts: Path, workers: int) -> None:
    """Run the function in actors of Ray Data, on Arrow tables: of arrays it would make tensors of its own type."""
    import pyarrow as pa
    import ray

    class OfTables:
        def __call__(self, table: pa.Table) -> pa.Table:
            encoded = encode(table.to_pydict())
            return pa.table({name: pa.array(encoded[name], kind) for name, kind in kinds.items()})

    # One thread each: workers of a small machine otherwise wait for each other.
    environment = {"env_vars": {"OMP_NUM_THREADS": "1"}}
    ray.init(num_cpus=workers + 1, include_dashboard=False, object_store_memory=200_000_000, runtime_env=environment)
    kinds = {encode.output_column: pa.list_(pa.float32())}
    kinds |= dict.fromkeys((encode.id_column, "sha256", "problem", "made_with"), pa.string())
    rows = ray.data.read_parquet(str(photos)).repartition(workers)
    encoded = rows.map_batches(OfTables, batch_size=64, batch_format="pyarrow", concurrency=workers)
    encoded.write_parquet(str(parts))
    ray.shutdown()


def join(encode: EncodeColumn, parts: Path, store: Path, shard_size: int | None = None) -> EncodingReport:
    """Write the parts into a store in the order of the ids: workers end in any order."""
    rows = Dataset.from_parquet([str(part) for part in sorted(parts.glob("*.parquet"))])
    return encode.write_store(rows.sort(encode.id_column), store, shard_size=shard_size)


def main() -> None:
    """Encode and join."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=["spark", "ray"])
    parser.add_argument("model", help="folder or Hub repository of a dual encoder")
    parser.add_argument("photos", type=Path, help="Parquet file, or a folder of such")
    parser.add_argument("--image-column", default="image", help="bytes of image files (default: %(default)s)")
    parser.add_argument("--id-column", default="id", help="default: %(default)s")
    parser.add_argument("--into", type=Path, required=True, help="new folder of parts")
    parser.add_argument("--store", type=Path, required=True, help="folder of the store, made or continued")
    parser.add_argument("--workers", type=int, default=2, help="default: %(default)s")
    options = parser.parse_args()
    encode = EncodeColumn(options.model, image_column=options.image_column, id_column=options.id_column)
    run = with_spark if options.engine == "spark" else with_ray
    run(encode, options.photos, options.into, options.workers)
    print(join(encode, options.into, options.store))


if __name__ == "__main__":
    main()
