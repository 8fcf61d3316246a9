"""One rank's process: appends a line for each step it gets, (step, positions, keys), as JSON."""

import json
import sys
import time

from data_pipelines.loader import make_loader


def main() -> None:
    options = json.loads(sys.argv[1])
    out, pause, seen = options.pop("out"), options.pop("pause"), options["images_seen"]
    with open(out, "w", encoding="utf-8") as file:
        for number, batch in enumerate(make_loader(**options)):
            line = [seen + number * options["batch_size"], batch.positions.tolist(), batch.keys]
            file.write(json.dumps(line) + "\n")
            file.flush()
            time.sleep(pause)  # so that there is time to be killed


if __name__ == "__main__":
    main()
