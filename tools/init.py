"""The commented configuration that `roster init` writes; streams/settings.py reads it."""

from typing import Final

TEMPLATE: Final = """\
# Settings of Roster. The environment goes before this file, and this file before what a running
# `roster up` has written down. Lines are ROSTER_NAME=value; take away the # to change one.

# Broker and schema registry of your own: set both, and nothing is started or downloaded.
# The registry's URL is that of an API like Confluent's.
#ROSTER_KAFKA=localhost:9092
#ROSTER_REGISTRY=http://localhost:8081/apis/ccompat/v7

# Where data, logs and the DuckDB file lie.
#ROSTER_DATA=.roster

# Where downloads lie (default: roster in the user's cache folder).
#ROSTER_CACHE=/var/cache/roster

# The address that our servers listen on.
#ROSTER_BIND=127.0.0.1

# Copies of each partition; 3 on a cluster of three brokers or more.
#ROSTER_REPLICATION=1

# The projector's read path, where it runs on another machine.
#ROSTER_API=http://127.0.0.1:8090

# How event time is cut, in seconds: panes, how far out of order events may be, and how long a pane
# stays open after that. Another value makes other facts: give it a generation of its own, a number
# from 2 on that no other definition has used. It is computed beside the others.
#ROSTER_PANE_S=300
#ROSTER_BOUND_S=60
#ROSTER_GRACE_S=600
#ROSTER_GENERATION=2

# Panes of the longest window of any scoring policy: facts are kept twice as long as that.
#ROSTER_WINDOW_PANES=288

# Name of this deployment; its mode is what mode.changed last said of that name.
#ROSTER_DEPLOYMENT=main
"""
