"""When the leader of a ranking is not the model in force. Said, never applied by itself."""

from collections.abc import Mapping

from schemas.model_profile import (
    ModelProfileActive,
    ModelProfileRecommended,
    ModelProfileScored,
    RankingEntry,
)
from schemas.values import canonical_mode, canonical_role, derived_id

LAYERS = ("mode", "system")
"""Of the layers that name no tenant the first that has a profile is in force."""

Key = tuple[str, str, str]
"""(scope, role, mode), canonical."""


def in_force(
    profiles: Mapping[Key, ModelProfileActive], role: str, mode: str
) -> ModelProfileActive | None:
    """Profile of a role in a mode where no tenant is named."""
    for scope in LAYERS:
        if (scope, role, mode) in profiles:
            return profiles[scope, role, mode]
    return None


def profile_key(profile: ModelProfileActive) -> Key:
    """Key of a profile, canonical."""
    return profile.scope, canonical_role(profile.role), canonical_mode(profile.deployment_mode)


def recommendation(
    final: ModelProfileScored, profile: ModelProfileActive | None
) -> ModelProfileRecommended | None:
    """What follows from a final; None: nothing is to be changed, or no model qualifies."""
    leader = final.leader
    if leader is None or leader.provider is None or leader.model is None:
        return None
    entry = _entry(final, f"{leader.provider}/{leader.model}")
    if entry is None or entry.status != "ranked":
        return None
    if profile is not None and profile.model == f"{leader.provider}/{leader.model}":
        return None
    current = None if profile is None else _entry(final, profile.model)
    key = "" if profile is None else profile.profile_key()
    version = 0 if profile is None else profile.version
    assert entry.score is not None and entry.score_se is not None and leader.since_ms is not None
    return ModelProfileRecommended(
        event_id=derived_id(
            "model.profile.recommended",
            final.role,
            final.deployment_mode,
            leader.provider,
            leader.model,
            key,
            version,
            final.policy_event_id,
        ),
        occurred_at_ms=final.as_of_ms,
        source="roster-scorer",
        mode=final.deployment_mode,
        role=final.role,
        deployment_mode=final.deployment_mode,
        provider=leader.provider,
        model=leader.model,
        score=entry.score,
        score_se=entry.score_se,
        samples=entry.complete,
        leads_since_ms=leader.since_ms,
        current_model=None if profile is None else profile.model,
        current_status=None if current is None else current.status,
        current_score=None if current is None else current.score,
        current_score_se=None if current is None else current.score_se,
        profile_key=None if profile is None else key,
        profile_version=None if profile is None else version,
        ranking_event_id=final.event_id,
        ranking_as_of_ms=final.as_of_ms,
        policy_event_id=final.policy_event_id,
        policy_version=final.policy_version,
    )


def _entry(final: ModelProfileScored, model: str) -> RankingEntry | None:
    return next((e for e in final.entries if f"{e.provider}/{e.model}" == model), None)
