"""The typed HTTP client of a running daemon, for the command line and for people. Standard library only.

    with Client() as comfyd:
        print(comfyd.status()["output"])

Owns: finding the daemon, requests, answers, streams. Must not: import the server, pydantic, aiohttp or asyncio
(start time counts), print, or decide what an answer means.
"""

from comfyd.client.api import Client
from comfyd.client.transport import ApiError, ClientError, DaemonTimeout, DaemonUnreachable

__all__ = ["ApiError", "Client", "ClientError", "DaemonTimeout", "DaemonUnreachable"]
