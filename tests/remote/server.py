"""The real S3 server of the tests, and a proxy that makes its network bad: those of `bench remote`."""

from stages.bench.s3_server import Proxy, environment, start_server, stop_server

__all__ = ["Proxy", "environment", "start_server", "stop_server"]
