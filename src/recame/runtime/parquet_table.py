"""Write the predictions table as Parquet, without the CSV's protection against formulas."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from recame.names import cell_of, escaped

#: The apostrophe that `recame.names.cell_of` puts before a text that looks like a formula.
_APOSTROPHE = r"^'('*[=+\-@\t\r])"


def to_parquet(
    table: Path, header: Sequence[str], numbers: Collection[str], told: dict[bytes, bytes]
) -> Path:
    """Convert a finished CSV block by block, in constant memory.

    Args:
        table: the CSV.
        header: its columns.
        numbers: columns with numbers; all others hold text.
        told: metadata of the table.

    Returns:
        The Parquet file beside the CSV.
    """
    import pyarrow as pa
    from pyarrow import compute, parquet
    from pyarrow import csv as arrow_csv

    kinds = [pa.float32() if name in numbers else pa.string() for name in header]
    schema = pa.schema(list(zip(map(escaped, header), kinds, strict=True)), metadata=told)
    types = dict(zip(map(cell_of, header), kinds, strict=True))
    target = table.with_suffix(".parquet")
    reader = arrow_csv.open_csv(
        table,
        # A class may be called "NA".
        convert_options=arrow_csv.ConvertOptions(column_types=types, strings_can_be_null=False),
        parse_options=arrow_csv.ParseOptions(newlines_in_values=True),
    )
    with reader, parquet.ParquetWriter(target, schema, write_page_checksum=True) as writer:
        for block in reader:
            columns = pa.Table.from_batches([block]).rename_columns(schema.names)
            for place, name in enumerate(header):
                if name not in numbers:
                    column = compute.replace_substring_regex(columns[place], _APOSTROPHE, r"\1")
                    columns = columns.set_column(place, schema.names[place], column)
            writer.write_table(columns.cast(schema))
    return target
