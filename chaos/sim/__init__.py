"""Whole clusters in one process on virtual time: one seed gives schedule, network, faults and workload (DESIGN 11).

The cores of keeper and worker are the production code; everything around them is a stand-in that may behave as badly as
the real thing has. Read in this order: `engine.py`, `process.py`, `network.py`; the stand-ins `etcd.py`, `redis.py`,
`venue.py`, `disk.py`, `clock.py`; the carriers-out `keeper.py`, `worker.py`; `plan.py`, `faults.py`, `world.py`.

Of a run that fails: `story.py` (what is told of it), `shrink.py`, `explain.py`, `timeline.py`; `replay.py` puts them
together.
"""
