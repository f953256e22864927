"""SIGTERM ends a process in time, whatever MongoDB does."""

import asyncio
import signal
import sys
import time
from collections.abc import Callable

import httpx
import pytest

from converse_mongo import Converse
from converse_mongo.embedded import EmbeddedServer, free_port
from tests.integration.test_frozen import frozen
from tests.streams import SOON
from tests.web.shutdown_site import GRACE_SECONDS

CLOSE_SECONDS = 10.0
"""The default ``timeout`` of ``Converse.aclose``."""


@pytest.mark.skipif(sys.platform == "win32", reason="freezes a process by a signal")
async def test_sigterm__ends_the_process_while_mongodb_is_frozen(
    start_server: Callable[..., EmbeddedServer],
) -> None:
    """One answer is being written, and another is being begun."""
    server, port = start_server(), free_port()
    async with Converse(server.uri, database="shutdown") as converse:
        paths = [
            f"/api/conversations/{(await converse.start_conversation()).id}/messages"
            for _ in range(2)
        ]
    site = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.web.shutdown_site", server.uri, str(port))
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
            async with asyncio.timeout(2 * SOON):
                while True:
                    try:
                        asked = await http.post(paths[0], json={"content": "Hello?"})
                        break
                    except httpx.ConnectError:
                        await asyncio.sleep(0.05)
            assert asked.status_code == 201
            with frozen(server):
                asking = asyncio.create_task(http.post(paths[1], json={"content": "Hello?"}))
                await asyncio.sleep(0.5)
                began = time.monotonic()
                site.send_signal(signal.SIGTERM)
                async with asyncio.timeout(60):
                    await site.wait()
                assert time.monotonic() - began < GRACE_SECONDS + CLOSE_SECONDS + 6.0
                await asyncio.gather(asking, return_exceptions=True)
    finally:
        if site.returncode is None:
            site.kill()
            await site.wait()
