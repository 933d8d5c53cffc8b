"""Appends events from several threads, and prints each id once it is acknowledged."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from reki_ray.events.log import Event, EventLog

THREADS = 4


def main(folder: str, name: str) -> None:
    log = EventLog(Path(folder), "replica", segment_bytes=4_000)
    printing = threading.Lock()

    def work(thread: int) -> None:
        number = 0
        while True:
            ids = [f"{name}-{thread}-{number + offset}" for offset in range(3)]
            log.append([Event("u", item, "click", number) for item in ids])
            number += len(ids)
            with printing:
                sys.stdout.write("".join(f"{item}\n" for item in ids))
                sys.stdout.flush()

    for thread in range(THREADS):
        threading.Thread(target=work, args=(thread,)).start()


if __name__ == "__main__":
    main(*sys.argv[1:])
