"""A registration says what is known, and what is not known is null and not a number."""

import pytest
from pydantic import ValidationError

from schemas import ModelRegistered
from tests.support.events import good


def test_roles_are_read_by_their_canonical_names_each_once() -> None:
    said = ("Chat", "code", "dialogue", "unheard of", "ASR", "CODE")
    event = good(ModelRegistered, roles=said)
    assert event.canonical_roles() == ("dialogue", "code", "unheard of", "speech_recognition")
    assert event.roles == said, "what was sent stays as it was"


@pytest.mark.parametrize("field", ["parameters_millions", "context_tokens", "max_output_tokens"])
def test_a_size_is_at_least_one_or_not_known(field: str) -> None:
    assert getattr(good(ModelRegistered, **{field: None}), field) is None
    assert getattr(good(ModelRegistered, **{field: 1}), field) == 1
    for value in (0, -1, 10**9 + 1):
        with pytest.raises(ValidationError):
            good(ModelRegistered, **{field: value})


def test_a_registration_by_name_alone_says_nothing_else() -> None:
    least = {name: good(ModelRegistered).model_dump()[name] for name in REQUIRED}
    event = ModelRegistered.model_validate(least)
    rest = {
        name: getattr(event, name) for name in ModelRegistered.model_fields if name not in least
    }
    assert set(rest.values()) == {None, ()}


REQUIRED = ("event_id", "occurred_at_ms", "source", "provider", "model", "action", "actor")
