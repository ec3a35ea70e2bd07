"""Routes that are mounted into the projector's API, which alone has its tables at hand.

metrics.py   /metrics for Prometheus
problems.py  what is wrong with a request, as RFC 9457 has it
rankings.py  published rankings, explanations, observations of quality
"""
