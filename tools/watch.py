"""`roster rankings --watch`: the newest rankings, shown again whenever one changes."""

import sys
import time
from typing import Final

from rich.console import Console, Group
from rich.live import Live

from schemas import ModelProfileScored
from streams.live_reader import LiveReader
from streams.registry import Catalogue, Registry
from streams.settings import Settings
from streams.topics import MODEL_PROFILE_SCORED
from tools.log_reader import NEWEST_RANKINGS, Rankings
from tools.ranking_table import tables

LOOK_EVERY_S: Final = 0.5


def watch_rankings(
    settings: Settings,
    role: str | None,
    mode: str | None,
    as_json: bool,
    for_s: float | None = None,
) -> None:
    """Until Ctrl-C, or for_s seconds. JSON, or no terminal: one line or table per change."""
    topic = MODEL_PROFILE_SCORED.name
    console = Console()
    live = sys.stdout.isatty() and not as_json
    until = None if for_s is None else time.monotonic() + for_s
    with Registry(settings.need_registry()) as registry:
        rankings = Rankings(Catalogue(registry, topics=()))
        with (
            LiveReader(
                settings.need_kafka(), [topic], rankings.take, {topic: NEWEST_RANKINGS}
            ) as reader,
            Live(console=console, screen=live, auto_refresh=False) as screen,
        ):
            reader.wait_ready(20)
            shown: dict[tuple[str, str], str] = {}
            while until is None or time.monotonic() < until:
                found = [
                    ranking
                    for ranking in rankings.now()
                    if role in (None, ranking.role)
                    if mode in (None, ranking.deployment_mode)
                ]
                fresh = [r for r in found if shown.get(_key(r)) != r.event_id]
                shown.update({_key(r): r.event_id for r in fresh})
                if live:
                    screen.update(Group(tables(found, console.width)), refresh=True)
                else:
                    for ranking in fresh:
                        if as_json:
                            print(ranking.model_dump_json(), flush=True)
                        else:
                            console.print(tables([ranking], console.width))
                time.sleep(LOOK_EVERY_S)


def _key(ranking: ModelProfileScored) -> tuple[str, str]:
    return ranking.role, ranking.deployment_mode
