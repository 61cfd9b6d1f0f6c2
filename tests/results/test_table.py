"""A table: what is unknown stays unknown, in every form."""

import sys
from typing import Any

import numpy as np
import pandas
import pyarrow
import pytest

from loadgen.errors import LoadgenError
from loadgen.results.table import Column, Table

TABLE = Table(
    [
        Column("index", "int64", None, "Number."),
        Column("output_tokens", "int64", "tokens", "Output tokens."),
        Column("ttft_s", "float64", "s", "TTFT."),
        Column("error", "string", None, "Kind of failure."),
        Column("completed", "bool", None, "True when complete."),
    ],
    {
        "index": [0, 1],
        "output_tokens": [7, None],
        "ttft_s": [0.25, None],
        "error": [None, "http"],
        "completed": [True, False],
    },
)
EMPTY = Table(list(TABLE.columns.values()), {name: [] for name in TABLE})


@pytest.mark.parametrize(
    ("name", "dtype", "values"),
    [
        ("index", np.int64, [0, 1]),
        ("output_tokens", np.float64, [7.0, np.nan]),
        ("ttft_s", np.float64, [0.25, np.nan]),
        ("error", np.object_, [None, "http"]),
        ("completed", np.bool_, [True, False]),
    ],
)
def test_a_column_is_an_array_in_which_an_unknown_number_is_nan(name: str, dtype: type, values: list[Any]) -> None:
    assert TABLE[name].dtype == dtype
    np.testing.assert_array_equal(TABLE[name], np.array(values, dtype))


def test_a_table_is_a_dict_of_its_columns_and_has_the_length_of_its_rows() -> None:
    assert len(TABLE) == 2 and len(EMPTY) == 0
    assert list(dict(TABLE)) == ["index", "output_tokens", "ttft_s", "error", "completed"]
    assert TABLE.columns["ttft_s"].unit == "s"
    assert list(TABLE.rows())[1] == dict(index=1, output_tokens=None, ttft_s=None, error="http", completed=False)


@pytest.mark.parametrize(("name", "hint"), [("ttft", "ttft_s"), ("zzz", "index, output_tokens")])
def test_a_column_that_is_none_is_refused_with_those_that_are(name: str, hint: str) -> None:
    with pytest.raises(KeyError, match=f"no column '{name}'; there is {hint}"):
        TABLE[name]


@pytest.mark.parametrize("table", [TABLE, EMPTY], ids=["rows", "empty"])
def test_a_data_frame_has_the_types_of_the_columns_and_misses_what_is_unknown(table: Table) -> None:
    frame = table.to_pandas()
    types = {name: str(dtype) for name, dtype in frame.dtypes.items()}
    assert types == dict(index="Int64", output_tokens="Int64", ttft_s="float64", error="string", completed="boolean")
    rows = [[True, True, True, False, True], [True, False, False, True, True]][: len(table)]
    assert frame.notna().to_numpy().tolist() == rows


@pytest.mark.parametrize("table", [TABLE, EMPTY], ids=["rows", "empty"])
def test_an_arrow_table_has_the_units_and_the_nulls(table: Table) -> None:
    arrow = table.to_arrow()
    assert arrow.to_pylist() == list(table.rows())
    assert [str(field.type) for field in arrow.schema] == ["int64", "int64", "double", "string", "bool"]
    assert arrow.schema.field("ttft_s").metadata == {b"unit": b"s", b"description": b"TTFT."}
    assert pyarrow.table(table) == arrow, "through the interface that polars and DuckDB use"
    assert pandas.api.types.is_float_dtype(arrow.to_pandas()["ttft_s"])


@pytest.mark.parametrize(
    ("package", "method", "extra"), [("pandas", "to_pandas", "pandas"), ("pyarrow", "to_arrow", "parquet")]
)
def test_a_missing_package_names_its_extra(
    monkeypatch: pytest.MonkeyPatch, package: str, method: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(LoadgenError, match=f"Table.{method} needs the extra '{extra}': .*install"):
        getattr(TABLE, method)()
