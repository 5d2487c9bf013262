"""Fixtures of several processes."""

from tests.distributed.processes import processes as processes
