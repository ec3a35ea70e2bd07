"""model.profile.recommended against the finals and profiles that each event names."""

from streams import topics
from tools.verify.compare import Report
from tools.verify.log import Log, Record
from tools.verify.profiles import History
from tools.verify.rankings import SOURCE, Final
from tools.verify.recompute import canonical_mode, canonical_role
from tools.verify.records import Decoder, Fields, derived_id

TOPIC = topics.MODEL_PROFILE_RECOMMENDED.name
EVENTS = "recommendations: the final and the profile that each rests on"
LAYERS = ("mode", "system")  # those that name no tenant

Recommended = list[tuple[Record, Fields]]


def read(log: Log, decode: Decoder) -> Recommended:
    """All that were published; read before the finals that they rest on."""
    found: Recommended = []
    for partition, end in (log.ends(TOPIC) or {}).items():
        for record in log.read(TOPIC, partition, end):
            decoded = decode(record)
            if not isinstance(decoded, str):
                found.append((record, decoded[1]))
    return found


def compare(made: Recommended, finals: dict[str, Final], history: History, report: Report) -> None:
    """Each one: its final stands in the log, its leader is ranked and is what is recommended, the
    profile that it names was there and names another model, and the id follows from all that.

    finals: by event_id. What it rests on says what it must say, field by field.
    """
    report.subject(EVENTS)
    for record, f in made:
        where = f"{TOPIC}[{record.partition}]@{record.offset} {f['role']}/{f['deployment_mode']}:"
        final = finals.get(f["ranking_event_id"])
        if final is None:
            report.differs(EVENTS, where, "a final in the log", f["ranking_event_id"])
            continue
        wanted = wanted_of(f, final.fields, history)
        if isinstance(wanted, str):
            report.differs(EVENTS, where, wanted, f"{f['provider']}/{f['model']}")
            continue
        report.fields(EVENTS, where, wanted, f)
        key = f"{f['role']}/{f['deployment_mode']}".encode()
        report.equal(EVENTS, f"{where} key", key, record.key)


def wanted_of(f: Fields, final: Fields, history: History) -> Fields | str:
    """What a recommendation must say that rests on a final; a text: why there may be none."""
    leader = final["leader"]
    if leader is None or leader["provider"] is None:
        return "none: the final has no leader"
    entries = {f"{e['provider']}/{e['model']}": e for e in reversed(final["entries"])}
    name = f"{leader['provider']}/{leader['model']}"
    if name not in entries or entries[name]["status"] != "ranked":
        return "none: the leader is not ranked"
    best = entries[name]
    role, mode = final["role"], final["deployment_mode"]
    current = None
    if f["profile_key"] is not None or f["profile_version"] is not None:
        profile = _profile(history, f["profile_key"], f["profile_version"])
        if profile is None:
            return f"none: {f['profile_key']} had no version {f['profile_version']} with a model"
        layer = (canonical_role(profile["role"]), canonical_mode(profile["deployment_mode"]))
        if profile["scope"] not in LAYERS or layer != (role, mode):
            return f"a profile of {' or '.join(LAYERS)} for {role}/{mode}"
        current = profile["model"]
        if current == name:
            return "none: the profile names the leader"
    there = None if current is None else entries.get(current)
    return {
        "event_id": derived_id(
            "model.profile.recommended",
            role,
            mode,
            leader["provider"],
            leader["model"],
            f["profile_key"] or "",
            f["profile_version"] or 0,
            final["policy_event_id"],
        ),
        "occurred_at_ms": final["as_of_ms"],
        "source": SOURCE,
        "tenant": None,
        "mode": mode,
        "role": role,
        "deployment_mode": mode,
        "provider": leader["provider"],
        "model": leader["model"],
        "score": best["score"],
        "score_se": best["score_se"],
        "samples": best["complete"],
        "leads_since_ms": leader["since_ms"],
        "current_model": current,
        "current_status": None if there is None else there["status"],
        "current_score": None if there is None else there["score"],
        "current_score_se": None if there is None else there["score_se"],
        "ranking_as_of_ms": final["as_of_ms"],
        "policy_event_id": final["policy_event_id"],
        "policy_version": final["policy_version"],
    }


def _profile(history: History, key: str | None, version: int | None) -> Fields | None:
    """A version of a profile; None: it never was, or was deleted."""
    for (_, known), steps in history.steps.items():
        if key is None or known != key.encode():
            continue
        for step in steps:
            if step.row["version"] == version and step.row["profile"] is not None:
                return dict(step.row["profile"])
    return None
