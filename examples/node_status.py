# SPDX-License-Identifier: Apache-2.0
"""Tell what the localizer node said of the images that it was given, from a bag of its status messages.

    aceg record -o run/ /localizer/status
    python examples/node_status.py run/

docs/troubleshooting.md explains each status.
"""

import sys
from collections import Counter
from pathlib import Path

from rosbags.highlevel import AnyReader


def main(bag: str) -> None:
    counts, newest = Counter(), {}
    with AnyReader([Path(bag)]) as reader:
        topics = [connection for connection in reader.connections if connection.topic.endswith("/status")]
        for connection, _, data in reader.messages(topics):
            for entry in reader.deserialize(data, connection.msgtype).status:
                if entry.name.endswith(": image"):
                    status = next(pair.value for pair in entry.values if pair.key == "status")
                    counts[status] += 1
                    newest[status] = entry.message
    for status, count in counts.most_common():
        print(f"{count} {status}, the newest: {newest[status]}")
    if not counts:
        print(f"{bag} holds no status of an image: was the node running, and its name localizer?")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
