"""The predictions table as Parquet, whose texts no spreadsheet takes for formulas."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

#: What `recame.names.cell_of` puts in front of a text for spreadsheets.
_APOSTROPHE = r"^'('*[=+\-@\t\r])"


def to_parquet(table: Path, header: Sequence[str]) -> Path:
    """Convert a finished CSV block by block, in constant memory.

    Args:
        table: the CSV.
        header: its columns.

    Returns:
        The Parquet file beside it.
    """
    import pyarrow as pa
    from pyarrow import compute, parquet
    from pyarrow import csv as arrow_csv

    texts = [name for name in ("image", "prediction", "decision", "reason") if name in header]
    types = {name: pa.string() if name in texts else pa.float32() for name in header}
    # As evaluation's tables say it, so that one reader serves both.
    schema = pa.schema(list(types.items()), metadata={b"recame.schema": b"1"})
    target = table.with_suffix(".parquet")
    reader = arrow_csv.open_csv(
        table,
        # A class may be called "NA".
        convert_options=arrow_csv.ConvertOptions(column_types=types, strings_can_be_null=False),
        parse_options=arrow_csv.ParseOptions(newlines_in_values=True),
    )
    with reader, parquet.ParquetWriter(target, schema, write_page_checksum=True) as writer:
        for block in reader:
            columns = pa.Table.from_batches([block])
            for place, name in enumerate(header):
                if name in texts:
                    column = compute.replace_substring_regex(columns[name], _APOSTROPHE, r"\1")
                    columns = columns.set_column(place, name, column)
            writer.write_table(columns.cast(schema))
    return target
