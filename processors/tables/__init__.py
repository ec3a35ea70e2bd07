"""Tables: rows that Faust agents keep, each a pure fold with the source offset inside the row.

profiles.py  profiles-v1  key: that of model.profile.updated; row: profiles.avsc
metrics.py   metrics-v1   key: PaneFact.key(); row: the framed bytes of the fact itself
"""
