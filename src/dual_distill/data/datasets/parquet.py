"""Reading the parquet files of a data set, with errors that name the file and the column."""

import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def read_columns(folder: str | os.PathLike[str], pattern: str, columns: Sequence[str]) -> pa.Table:
    """The named columns of all files in a folder that match a pattern, one below the other in the order of their names.

    A column `image` becomes the struct `{bytes, path}` of `datasets.Image`, whether the file holds that or plain bytes.

    Args:
        folder: where the files are.
        pattern: a glob, such as `train-*.parquet`.
        columns: what to read, in this order.

    Returns:
        A table in memory, columns as in `columns`.

    Raises:
        FileNotFoundError: no such folder, or no file in it matches.
        ValueError: a file is not parquet, lacks a column, or its `image` column holds neither bytes nor `{bytes,
            path}`.

    Example:
        >>> read_columns("no/such/folder", "*.parquet", ["question"])
        Traceback (most recent call last):
        FileNotFoundError: There is no folder 'no/such/folder' (relative paths start at the current one); ...
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"There is no folder {str(folder)!r} (relative paths start at the current one); it should hold {pattern}."
        )
    files = sorted(folder.glob(pattern))
    if not files:
        raise FileNotFoundError(f"The folder {str(folder)!r} holds no file {pattern}; is it the data set's own folder?")
    tables = []
    for file in files:
        try:
            names = pq.read_schema(file).names
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{str(file)!r} cannot be read as parquet ({error}); download it again.") from error
        for column in columns:
            if column not in names:
                raise ValueError(
                    f"{str(file)!r} has no column {column!r}: expected {', '.join(columns)}, found {', '.join(names)}."
                )
        tables.append(_with_image_struct(pq.read_table(file, columns=list(columns)), file))
    return pa.concat_tables(tables, promote_options="permissive")


def _with_image_struct(table: pa.Table, file: Path) -> pa.Table:
    # datasets writes its own schema into the file's metadata; only the Arrow types count here.
    table = table.replace_schema_metadata(None)
    index = table.schema.get_field_index("image")
    if index < 0:
        return table
    kind = table.schema.field(index).type
    if pa.types.is_struct(kind) and {kind.field(i).name for i in range(kind.num_fields)} >= {"bytes", "path"}:
        return table
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise ValueError(
            f"The column 'image' of {str(file)!r} holds {kind}, but expected are bytes or {{bytes, path}}."
        )
    chunks = [
        pa.StructArray.from_arrays(
            [chunk.cast(pa.binary()), pa.nulls(len(chunk), pa.string())], names=["bytes", "path"]
        )
        for chunk in table["image"].chunks
    ]
    structs = pa.chunked_array(chunks, type=pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    return table.set_column(index, "image", structs)
