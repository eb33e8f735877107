"""The part of Baton that knows nothing of trading: leases, permits, replication.

gRPC reads these once, when it first does something, so they stand where every process passes first. An operator's own
setting wins. Its newer I/O engine hands every message through one more thread (a stream's round trip took 0.24 ms with
it and 0.13 without, on two cores, grpcio 1.85). And what it writes to stderr would stand in between our JSON; what
matters of it reaches us as errors.
"""

import os

os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")  # nobody uses gRPC across a fork; each spawn would log
