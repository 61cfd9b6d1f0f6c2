"""A table in memory: named columns with a type, a unit and a meaning, which becomes numpy, pandas or Arrow. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from loadgen.extras import importing

if TYPE_CHECKING:
    import pandas
    import pyarrow
    from numpy.typing import NDArray

    from loadgen.results.request_table import Type

_PANDAS_TYPES = {"int64": "Int64", "float64": "float64", "string": "string", "bool": "boolean"}


class Column(NamedTuple):
    """Description of one column."""

    name: str
    type: Type
    """"int64", "float64", "string" or "bool"."""
    unit: str | None
    """"s", "J", "W", "tokens", ...; None for a name, a number without a unit, or a flag."""
    meaning: str


class Table:
    """Rows of a run in columns. `table["ttft_s"]` is a numpy array, and `len(table)` the number of rows."""

    columns: dict[str, Column]
    """Descriptions of the columns by name, in their order."""

    def __init__(self, columns: Sequence[Column], values: Mapping[str, Sequence[Any]]) -> None:
        """Make a table of `values` by the name of their column; None is unknown."""
        self.columns = {column.name: column for column in columns}
        self._values = {column.name: list(values[column.name]) for column in columns}

    def __len__(self) -> int:
        return len(next(iter(self._values.values()), []))

    def __iter__(self) -> Iterator[str]:
        """Yield the names of the columns, as a data frame does."""
        return iter(self.columns)

    def keys(self) -> list[str]:
        """Return the names of the columns, so that `dict(table)` is a dict of arrays."""
        return list(self.columns)

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Return a column as an array. NaN is an unknown number: a column of counts with one is of floats.

        Texts are an array of objects, in which None is unknown. KeyError: there is no such column.
        """
        if name not in self.columns:
            near = get_close_matches(name, self.columns, 3) or list(self.columns)
            raise KeyError(f"no column {name!r}; there is {', '.join(near)}")
        values = self._values[name]
        match self.columns[name].type:
            case "float64" | "int64" if None in values:
                return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
            case "string":
                return np.array(values, dtype=object)
            case kind:
                return np.array(values, dtype=kind)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield each row as a dict of plain values; None is unknown."""
        for values in zip(*self._values.values(), strict=True):
            yield dict(zip(self._values, values, strict=True))

    def to_pandas(self) -> pandas.DataFrame:
        """Return a pandas data frame, in which what is unknown is missing; counts are of pandas' type Int64.

        LoadgenError: pandas is not installed (the extra `pandas`).
        """
        with importing("Table.to_pandas", "pandas"):
            import pandas
        return pandas.DataFrame(
            {
                name: pandas.Series(values, dtype=_PANDAS_TYPES[self.columns[name].type])
                for name, values in self._values.items()
            }
        )

    def to_arrow(self) -> pyarrow.Table:
        """Return an Arrow table; a field's metadata are its unit and its meaning.

        LoadgenError: pyarrow is not installed (the extra `parquet`).
        """
        with importing("Table.to_arrow", "parquet"):
            import pyarrow
        types = {
            "int64": pyarrow.int64(),
            "float64": pyarrow.float64(),
            "string": pyarrow.string(),
            "bool": pyarrow.bool_(),
        }
        fields = [
            pyarrow.field(name, types[column.type], metadata={"unit": column.unit or "", "description": column.meaning})
            for name, column in self.columns.items()
        ]
        return pyarrow.Table.from_pydict(self._values, schema=pyarrow.schema(fields))

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """Let polars, DuckDB and others read the table as Arrow; it needs pyarrow."""
        return self.to_arrow().__arrow_c_stream__(requested_schema)

    def __repr__(self) -> str:
        return f"<Table of {len(self):,} rows: {', '.join(self.columns)}>"
