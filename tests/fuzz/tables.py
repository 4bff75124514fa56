"""Damage to parquet files: columns and rows as other recorders, or nobody, would write them."""

from __future__ import annotations

import io
import random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fuzz import damage, values

NAMES = ("actions", "state", "image", "index", "", "x" * 300, "\x00", "observation.state")


def damaged(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Return a damaged parquet file, and words for it."""
    if rng.random() < 0.2:
        return damage.of_bytes(rng, data)
    table = pq.read_table(io.BytesIO(data))
    act = rng.choice((_columns, _rows, _values, _values, _values, _types))
    table, words = act(rng, table)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=rng.choice((1, 5, 1000)))
    return buffer.getvalue(), words


def _columns(rng: random.Random, table: Any) -> tuple[Any, str]:
    i = rng.randrange(table.num_columns)
    name = table.column_names[i]
    act = rng.randrange(4)
    if act == 0:
        return table.remove_column(i), f"column {name} dropped"
    if act == 1:
        names = list(table.column_names)
        names[i] = rng.choice(NAMES)
        return table.rename_columns(names), f"column {name} renamed to {names[i][:20]!r}"
    if act == 2:
        return table.append_column(name, table[i]), f"column {name} twice"
    order = rng.sample(range(table.num_columns), table.num_columns)
    return table.select(order), "columns reordered"


def _rows(rng: random.Random, table: Any) -> tuple[Any, str]:
    n = table.num_rows
    order = list(range(n))
    act = rng.randrange(5)
    if act == 0 or n == 0:
        return table.slice(0, 0), "no rows"
    if act == 1:
        rng.shuffle(order)
    elif act == 2:
        order = order[::-1]
    elif act == 3:
        order.pop(rng.randrange(n))
    else:
        order.insert(rng.randrange(n), rng.randrange(n))
    return table.take(pa.array(order, pa.int64())), "rows " + (
        "shuffled",
        "reversed",
        "less one",
        "and one twice",
    )[act - 1]


def _values(rng: random.Random, table: Any) -> tuple[Any, str]:
    """Put another value of the column's type somewhere, or everywhere."""
    i = rng.randrange(table.num_columns)
    name, column = table.column_names[i], table[i].to_pylist()
    if not column:
        return table, "as it was"
    rows = [rng.randrange(len(column))] if rng.random() < 0.7 else range(len(column))
    new = None
    for row in rows:
        new = _other(rng, column[row])
        column[row] = new
    return _with(table, i, column), f"{name} of {len(rows)} rows is {str(new)[:40]}"


def _other(rng: random.Random, value: Any) -> Any:
    if rng.random() < 0.2:
        return None
    if isinstance(value, list) and value:
        changed = list(value)
        act = rng.randrange(4)
        if act == 0:
            return changed[:-1]
        if act == 1:
            return [*changed, changed[0]]
        k = rng.randrange(len(changed))
        changed[k] = _other(rng, changed[k])
        return changed
    if isinstance(value, dict):
        return {
            key: _other(rng, item) if rng.random() < 0.6 else item for key, item in value.items()
        }
    if isinstance(value, bytes):
        return rng.choice((b"", damage.of_bytes(rng, value)[0], damage.of_bytes(rng, value)[0]))
    if isinstance(value, float):
        return rng.choice((float("nan"), float("inf"), -1e30, 1e308, -value))
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return rng.choice((-1, 0, value + 1, 10**6, 2**40, 2**62, -(2**62)))
    return rng.choice([text for text in values.TEXTS if text.isprintable()])


def _with(table: Any, i: int, column: list[Any]) -> Any:
    name = table.column_names[i]
    try:
        array = pa.array(column, type=table.schema.field(i).type)
    except (pa.ArrowInvalid, OverflowError, UnicodeEncodeError):
        try:
            array = pa.array(column)
        except (pa.ArrowInvalid, OverflowError, UnicodeEncodeError):
            return table
    return table.set_column(i, name, array)


def _types(rng: random.Random, table: Any) -> tuple[Any, str]:
    """Give a column another type."""
    i = rng.randrange(table.num_columns)
    name, column = table.column_names[i], table[i].to_pylist()
    make = rng.choice(
        (str, lambda x: [x], lambda x: None, lambda x: {"a": 1}, lambda x: 1.5, bytes)
    )
    try:
        return table.set_column(
            i, name, pa.array([make(x) for x in column])
        ), f"{name} of other type"
    except (TypeError, ValueError, pa.ArrowInvalid):
        return table.remove_column(i), f"column {name} dropped"
