"""Before anything imports gRPC: `cluster` sets how it does its I/O."""

import cluster as cluster
