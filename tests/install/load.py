"""Callers on kept connections, who ask at a given rate. Run as a program, it asks until its standard input is closed, and prints
how the requests ended; `Load` runs it, in another network if need be."""

import asyncio
import collections
import json
import subprocess
import sys
from pathlib import Path

BODY = b'{"params":{"customerId":"%d"}}'
CALLERS = 20


class Load:
    """The program, running."""

    def __init__(self, prefix, address, rate):
        command = [*prefix, sys.executable, str(Path(__file__)), address, str(rate)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def stop(self):
        """Ends it; how many requests succeeded, and how many failed in each way."""
        output, _ = self.process.communicate()
        assert self.process.returncode == 0, output
        return json.loads(output)


async def request(connection, number):
    reader, writer = connection
    body = BODY % (number % 50)
    head = b"POST /v3/crm/coupon/getCustomerCoupons HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    writer.write(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(head.split("content-length: ")[1].split("\r\n")[0])
    answer = await reader.readexactly(length)
    ok = head.startswith("http/1.1 200") and b'"code":0' in answer.replace(b" ", b"")
    return "ok" if ok else head.split("\r\n")[0] + " " + answer.decode()[:80], "connection: close" in head


async def caller(address, interval, results, end):
    host, port = address.split(":")
    connection = None
    number = 0
    while not end.is_set():
        number += 1
        try:
            # A response says when it is the last on its connection.
            connection = connection or await asyncio.open_connection(host, int(port))
            result, is_last = await asyncio.wait_for(request(connection, number), 30)
        except (OSError, EOFError, asyncio.TimeoutError) as error:
            result, is_last = f"{type(error).__name__}: {error}", True
        results[result] += 1
        if is_last and connection:
            connection[1].close()
            connection = None
        await asyncio.sleep(interval)


async def main(address, rate):
    results, end = collections.Counter(), asyncio.Event()
    callers = [caller(address, CALLERS / rate, results, end) for _ in range(CALLERS)]
    running = asyncio.gather(*callers)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    end.set()
    await running
    ok = results.pop("ok", 0)
    print(json.dumps({"ok": ok, "failed": dict(results)}))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
