"""Records as JSON: what is written reads back, unknown numbers become null, and strange documents end in a sentence."""

from __future__ import annotations

import inspect
import json
import math
import re
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perftool import records
from perftool.records import Record, SchemaError, Session, Summary, from_json, to_json
from tests.sessions import compared_summary, profiled_summary, timed_session, tuned_summary

PROPERTY = settings(deadline=None, max_examples=60, derandomize=True)
KINDS: list[type[Record]] = sorted(
    (
        one
        for one in vars(records).values()
        if isinstance(one, type) and issubclass(one, Record) and one is not Record and not one.__name__.startswith("_")
    ),
    key=lambda one: one.__name__,
)
ANY_FLOAT = st.floats(allow_nan=True, allow_infinity=True)
st.register_type_strategy(float, ANY_FLOAT)


def built(kind: type[Record]) -> st.SearchStrategy[Any]:
    """Any record of this kind, filled in by its annotations."""
    fields = msgspec.structs.fields(kind)
    return st.builds(kind, **{field.name: _of(field.type) for field in fields if field.name != "schema_version"})


def _of(annotation: Any) -> st.SearchStrategy[Any]:
    if isinstance(annotation, type) and issubclass(annotation, Record):
        return built(annotation)
    origin: Any = getattr(annotation, "__origin__", None)
    arguments: tuple[Any, ...] = getattr(annotation, "__args__", ())
    if origin is list:
        return st.lists(_of(arguments[0]), max_size=2)
    if origin is dict:
        return st.dictionaries(st.text(max_size=5), _of(arguments[1]), max_size=2)
    if arguments and type(None) in arguments:
        return st.one_of(*(_of(one) for one in arguments))
    if annotation is str:
        return st.text(max_size=10)
    if annotation is int:
        return st.integers(-(2**62), 2**62)
    strategy: st.SearchStrategy[Any] = st.from_type(annotation)
    return strategy


def without_the_unknown(value: Any) -> Any:
    """The same plain data with null for every NaN and Infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [without_the_unknown(one) for one in value]
    if isinstance(value, dict):
        return {key: without_the_unknown(one) for key, one in value.items()}
    return value


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_record_is_written_as_strict_json_with_null_for_what_is_unknown(kind: type[Record]) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    @PROPERTY
    @given(built(kind))
    def check(record: Record) -> None:
        document = json.loads(to_json(record), parse_constant=refuse)
        assert document == without_the_unknown(msgspec.to_builtins(record))
        assert json.loads(to_json(record, indent=2)) == document

    check()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_record_that_is_known_in_full_reads_back_the_same(kind: type[Record]) -> None:
    @PROPERTY
    @given(built(kind))
    def check(record: Record) -> None:
        plain = msgspec.to_builtins(record)
        if plain == without_the_unknown(plain):
            assert from_json(to_json(record), kind) == record

    check()


def test_numbers_of_numpys_are_written_as_any_others() -> None:
    time = records.RankTime(rank=1, step_ns=np.float64(2.5), alone_ns=np.float64("nan"))
    assert json.loads(to_json(time)) == {"rank": 1, "step_ns": 2.5, "alone_ns": None}


@PROPERTY
@given(built(records.Jitter))
def test_an_optional_number_that_is_nan_or_infinite_reads_back_as_unknown(jitter: records.Jitter) -> None:
    read = from_json(to_json(jitter), records.Jitter)
    assert msgspec.to_builtins(read) == without_the_unknown(msgspec.to_builtins(jitter))


@pytest.mark.parametrize("summary", [tuned_summary(), compared_summary(), profiled_summary()])
def test_a_summary_reads_back(summary: Summary) -> None:
    assert from_json(to_json(summary), Summary) == summary
    assert from_json(to_json(summary, indent=2), Summary) == summary


def test_a_finding_says_try() -> None:
    finding = records.Finding(name="data wait", share=0.4, evidence="measured", try_="dataloader_workers")
    assert json.loads(to_json(finding))["try"] == "dataloader_workers"


@PROPERTY
@given(st.dictionaries(st.text(max_size=8).map(lambda key: f"new {key}"), st.integers() | st.text(max_size=8)))
def test_fields_of_a_newer_minor_version_are_passed_over(added: dict[str, Any]) -> None:
    session = timed_session([({}, 10.0)], generations=1, rounds=1)
    document = msgspec.json.decode(to_json(session))
    document["machine"] |= added
    assert from_json(json.dumps({**document, **added}), Session) == session


@pytest.mark.parametrize("version", ["2.0", "10.1", "0.9"])
def test_another_major_version_is_refused_before_anything_else_is_read(version: str) -> None:
    with pytest.raises(SchemaError, match=rf"schema version {version} is not readable here; this perftool reads 1\."):
        from_json(json.dumps({"schema_version": version, "seed": "elsewhere"}), Session)


@PROPERTY
@given(st.binary(max_size=40))
def test_bytes_that_are_no_session_end_in_a_sentence(document: bytes) -> None:
    with pytest.raises(SchemaError, match=r"^not a Session of perftool: "):
        from_json(document, Session)


def test_the_history_of_the_schema_ends_with_the_present_version() -> None:
    history = re.findall(r"^# (\d+\.\d+)  ", inspect.getsource(records), flags=re.MULTILINE)
    assert history[-1] == records.SCHEMA_VERSION
