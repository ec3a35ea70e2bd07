"""What happens in the sample workload, and when: all of its constants."""

from datetime import UTC, datetime
from typing import Final

from schemas.values import Outcome
from tools.defaults import Chain

JOINED: Final = (
    "Arrivals and token counts are one hour of a code service (Azure, 2023); latencies and errors"
    " are other calls, recorded at eight providers (LLMPerf, 2023); prices are a third source's"
    " (tokencost), matched by a map made by hand; whether an answer was good is drawn from two"
    " other models' answers to school mathematics (RouteLLM, GSM8K), the larger one's for models of"
    " 70 billion parameters, the smaller one's for the others; tenants, roles, choice of model and"
    " outages are drawn from a seed: no recorded request had all of these columns."
)
SOURCE: Final = "workload"

# Who asks. Shares in percent; the trace is a code service's, so most of it keeps that role.
ROLES: Final = {"code": 80, "dialogue": 12, "summary": 8}
TENANTS: Final = {"acme": 45, "globex": 25, "initech": 20, "umbrella": 10}
PERSONAS: Final = {"developer": 60, "analyst": 20, "support": 12, "operator": 8}

# Who is asked: the profile's primary in this share of requests. The others try every pair, in
# proportion to its recorded successes, so that each model has evidence in every window.
PRIMARY_PERCENT: Final = 30
JUDGED_PERCENT: Final = 5  # of the answers; each gets one thumb, up or down
LARGER: Final = "-70b-"  # in the name of a model whose answers count as the larger one's
ATTEMPTS: Final = 3  # a call that does not answer is repeated elsewhere, at most twice

# The story, in milliseconds since the start of live time; what lies before it is back-fill.
MINUTE: Final = 60_000
TOGETHER_FAILS: Final = (-360 * MINUTE, -315 * MINUTE)
ANYSCALE_FAILS: Final = (8_000, 188_000)
PROFILE_MOVES: Final = 22_000  # code/PRODUCTION goes to where its fallbacks went
PROFILE_RETURNS: Final = 240_000
MODE_FALLS: Final = 34_000  # PRODUCTION -> DEVELOPMENT
MODE_RISES: Final = 58_000  # and back
PILOT: Final = (2_000, 70_000)  # a tenant on trial; its gateway obeys the cap in the end
PILOT_PERCENT: Final = 20
PILOT_AT_CAP: Final = 50_000  # its cap is what it will have spent by then

OUTAGES: Final = (("together", *TOGETHER_FAILS), ("anyscale", *ANYSCALE_FAILS))
# Nothing of an outage is recorded: whether a call fails, how, and how long that takes is set here.
OUTAGE_PERCENT: Final = 90  # share of the provider's calls that fail
OUTAGE_TIMEOUT_PERCENT: Final = 40  # share of these that time out; the others are refused
OUTAGE_US: Final = {Outcome.FAILURE: 250_000, Outcome.TIMEOUT: 10_000_000}
OUTAGE_CODE: Final = {Outcome.FAILURE: "503", Outcome.TIMEOUT: "timeout"}

MOVED_CHAIN: Final[Chain] = (
    "groq/llama-2-70b-chat",
    "together/llama-2-70b-chat",
    "anyscale/llama-2-70b-chat",
)

# The trace's second at which live time begins: the two minutes after it are its longest busy
# stretch (about 8 requests/s), and the minute before it is quiet.
PHASE_US: Final = 1_328_000_000


def pilot(start_ms: int) -> str:
    """The tenant on trial of the run that starts then: each run has one of its own, so that its
    budget is whole."""
    return f"pilot-{datetime.fromtimestamp(start_ms // 1000, UTC):%m%d-%H%M%S}"
