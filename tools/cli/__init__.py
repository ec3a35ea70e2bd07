"""The commands, by what they are about. Modules import what they need when a command runs, so
that `roster --help` is quick.

processes.py  up, down, status, init, agents, meter, projector, workload
log.py        publish, topics, schemas, dead-letters, verify
profiles.py   profiles list, get, set, delete, history
models.py     models list, show, set, delete
control.py    cards, policies, budgets, mode
quality.py    quality, benchmarks, recommendations
rankings.py   rankings, rankings explain, route, what-if
answers.py    sql
"""

import typer

from tools.cli import answers, control, log, models, processes, profiles, quality, rankings

EPILOG = (
    "Exit status: 0 done; 1 differences, something not found, or a check that failed; 2 a mistake"
    " that you can mend, told in one line; 130 interrupted by Ctrl-C (up and the processes end"
    " with 0 then: that is how they are stopped)."
)


def add(app: typer.Typer) -> None:
    """Registers all commands."""
    for module in (processes, log, profiles, models, control, quality, rankings, answers):
        module.add(app)
