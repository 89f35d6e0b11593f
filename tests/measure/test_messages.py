"""Questions and what answers them, as they go over the wire."""

from __future__ import annotations

import msgspec
import pytest

from perftool.measure import messages
from tests.measure.fakes import PARTS


def test_a_question_is_answered_by_a_record_as_it_is() -> None:
    assert messages.encode(messages.Weigh()) == b'{"type":"weigh"}'
    assert messages.decode_reply(messages.encode(PARTS), messages.Weigh()) == PARTS


def test_any_question_may_be_answered_by_a_failure() -> None:
    failed = messages.Failed(kind="memory", reason="out of memory")
    assert messages.decode_reply(messages.encode(failed), messages.Finish()) == failed


def test_the_answer_to_another_question_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError):
        messages.decode_reply(messages.encode(PARTS), messages.Fit())
