"""Call a running service over HTTP: `reki serve --config my.yaml` in another terminal.

    pip install httpx
    python examples/serve_client.py --user 1 --items 50 100 181
    python examples/serve_client.py --url https://reki.example.com --user 1 --items 50 100 181

The service expects the bearer token in REKI_TOKEN, unless it allows anonymous access.
"""

import argparse
import os

import httpx

parser = argparse.ArgumentParser(description="Score and recommend items for a user.")
parser.add_argument("--url", default="http://127.0.0.1:8000")
parser.add_argument("--user", required=True, help="id of a user; unknown ones are scored as well")
parser.add_argument("--items", required=True, nargs="+", help="ids of the items to score")
arguments = parser.parse_args()

token = os.environ.get("REKI_TOKEN")
headers = {"Authorization": f"Bearer {token}"} if token else {}

with httpx.Client(base_url=arguments.url, headers=headers, timeout=10) as client:
    # Probabilities of a click, in the order of the candidates.
    body = {"user_id": arguments.user, "candidates": arguments.items}
    answer = client.post("/v1/score", json=body)
    answer.raise_for_status()
    scored = answer.json()
    print(f"version {scored['store_version']}, user vector from: {scored['user']['source']}")
    for item in scored["scores"]:
        print(f"  {item['item_id']}: {item['score']:.3f}")

    # The best items of the whole catalogue; needs a version that was published with retrieval.
    answer = client.post("/v1/recommend", json={"user_id": arguments.user, "k": 5})
    if answer.is_success:
        print("recommended:", *[item["item_id"] for item in answer.json()["items"]])
    else:
        print(f"no recommendations: {answer.json()['error']['message']}")
