"""Rows of the job store to domain objects and back."""

import json
import sqlite3
from array import array
from dataclasses import asdict, replace
from typing import Any

from coordinator.requests import Endpoint, Request
from llmpq.batch import Batch, Result
from llmpq.frames import Sampling
from llmpq.messages import from_fields


def batch_of(row: sqlite3.Row) -> Batch:
    """The batch of a row of `batches`."""
    fields: dict[str, Any] = dict(row)
    options = json.loads(fields["options"])
    fields["plan"] = json.loads(fields["plan"]) if fields["plan"] else None
    fields["stages"] = json.loads(fields["stages"])
    return from_fields(Batch, fields | {"metadata": options["metadata"]})


def request_of(row: sqlite3.Row) -> Request:
    """The request of a row of `requests`."""
    fields = json.loads(row["parameters"])
    return Request(
        line_number=row["line_number"],
        custom_id=fields["custom_id"],
        endpoint=Endpoint(fields["endpoint"]),
        prompt=array("i", row["prompt"]),
        max_tokens=fields["max_tokens"],
        sampling=Sampling(**fields["sampling"]),
        stop_strings=tuple(fields["stop_strings"]),
        stop_ids=tuple(fields["stop_ids"]),
        ignores_eos=fields["ignores_eos"],
    )


def parameters_of(request: Request) -> str:
    """The column `parameters` of a request: all but what has columns of its own."""
    fields = asdict(replace(request, prompt=array("i")))
    return json.dumps({name: value for name, value in fields.items() if name not in {"line_number", "prompt"}})


def result_of(row: sqlite3.Row) -> Result:
    """The answer of a row of `results`."""
    return from_fields(Result, dict(row))
