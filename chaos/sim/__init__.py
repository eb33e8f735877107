"""Whole clusters in one process on virtual time: one seed gives schedule, network, faults and workload (DESIGN 11).

The cores of keeper and worker are the production code; everything around them is a stand-in that may behave as badly as
the real thing has. Read in this order: `engine.py`, `process.py`, `network.py`; the stand-ins `etcd.py`, `redis.py`,
`venue.py`, `disk.py`, `clock.py`; the carriers-out `keeper.py`, `worker.py` (with `trader.py`, `follower.py`,
`replica.py`); `plan.py`, `faults.py`, `world.py`.

`judge.py` says what goes wrong as it happens, `records.py` keeps what `chaos/check` judges; `run.py` lives many lives.

Of a run that fails: `story.py` (what is told of it), `shrink.py`, `explain.py`, `timeline.py`; `replay.py` puts them
together. Whether a mistake would be seen at all: `scenarios.py`, `mutants/`, `kill_matrix.py`. All of a small world in
place of a sample of a big one: `exhaustive.py`.
"""
