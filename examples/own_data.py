"""Run every stage on files of your own: here, a small invented shop.

    pip install 'reki-ray[pipeline]'
    python examples/own_data.py shop          # writes into the folder shop/

The engine `scripted` computes answers from the prompt without a model, so the result is worth
nothing. For real answers, use `kind: vllm` or `kind: openai`: docs/how-to/extract-endpoint.md.
"""

import csv
import json
import random
import sys
from pathlib import Path

from reki_ray import Workspace, run

CONFIG = """
name: shop
workspace: {folder}/run
data:
  source:
    kind: csv
    interactions: {folder}/events.csv
    items: {folder}/items.csv
    users: {folder}/users.csv
    columns:                       # your name of each column
      user_id: customer
      item_id: sku
      timestamp: time
      rating: stars
      title: name
      item_attributes: [category]
      user_attributes: [country]
  positive_above: 3.0              # 4 and 5 stars are positive
prompts: {{scenario: products}}
extract: {{engine: {{kind: scripted}}}}
encode: {{backend: hashing}}       # words hashed into vectors, no model
train:
  arms: [fair_base, reki_c]        # without and with knowledge
  seeds: [0]
  epochs: 2
  hein: {{scaling: principal}}
serve:
  edge: {{allow_anonymous: true}}  # for the requests that the stage serve measures, on 127.0.0.1
"""


def write(path: Path, header: list[str], rows: list[tuple[object, ...]]) -> None:
    """Write a CSV file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def main() -> None:
    """Write the data and the configuration, run all stages, and print what came out."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "shop").absolute()
    folder.mkdir(parents=True, exist_ok=True)

    random.seed(0)
    categories = ["tents", "lamps", "shoes", "books"]
    items = [(f"p{n}", f"Product {n}", categories[n % 4]) for n in range(60)]
    users = [(f"u{n}", random.choice(["FR", "JP", "US"])) for n in range(80)]
    events = []
    for number, (user, _) in enumerate(users):
        liked = categories[number % 4]
        for step, (item, _, category) in enumerate(random.sample(items, 24)):
            stars = random.choice([4, 5]) if category == liked else random.choice([1, 2, 3, 4])
            events.append((user, item, 1_700_000_000 + number * 86_400 + step * 600, stars))
    write(folder / "items.csv", ["sku", "name", "category"], items)
    write(folder / "users.csv", ["customer", "country"], users)
    write(folder / "events.csv", ["customer", "sku", "time", "stars"], events)
    config = folder / "shop.yaml"
    config.write_text(CONFIG.format(folder=folder), encoding="utf-8")

    # A second call skips all stages but the report: nothing has changed.
    for stage, entry in run(config).items():
        print(f"{stage}: {entry.rows_in:,} rows in, {entry.rows_out:,} out, {entry.seconds:.1f} s")

    report = Workspace(folder / "run").read_json("report.json")
    print("report.json:", ", ".join(report))
    print(json.dumps(report["request"], indent=1) if "request" in report else "")
    print(f"Open {folder}/run/report.html; serve with: reki serve --config {config}")


if __name__ == "__main__":
    main()
