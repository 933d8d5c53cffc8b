"""Ask an LLM about the rows of your table, and encode the answers.

    pip install 'reki-ray[extract]'
    python examples/extract_only.py                     # scripted answers, no model
    python examples/extract_only.py http://host:8000/v1 my-model     # an OpenAI-compatible endpoint

The endpoint's key is read from OPENAI_API_KEY. Ray runs the calls; a cluster that RAY_ADDRESS
names is joined, otherwise one is started on this machine.
"""

import sys

import pyarrow as pa

from reki_ray import encode_texts, extract_knowledge


def main() -> None:
    """Extract knowledge about three films, and turn it into vectors."""
    films = pa.table(
        {
            "id": ["1", "2", "3"],
            "title": ["Alien (1979)", "Aliens (1986)", "Amélie (2001)"],
            "attributes": [
                {"genre": ["Horror", "Science Fiction"]},
                {"genre": ["Action", "Science Fiction"]},
                {"genre": ["Comedy", "Romance"]},
            ],
        }
    )
    if len(sys.argv) == 3:
        engine = {"kind": "openai", "base_url": sys.argv[1], "model": sys.argv[2]}
    else:
        engine = {"kind": "scripted"}

    # Answers are kept in `folder`: a second call sends only prompts that have no answer yet.
    knowledge = extract_knowledge(
        films, kind="item", scenario="movies", engine=engine, folder="knowledge"
    )
    for row in knowledge.to_pylist():
        print(f"{row['id']} {row['factor']}: {row['text'][:70]!r}")

    # One unit vector per answer; `hashing` needs no model, other encoders see docs/how-to.
    vectors = encode_texts(knowledge["text"], encoder="hashing")
    print(f"vectors: {vectors.shape}, similarities to the first:", (vectors @ vectors[0]).round(2))


if __name__ == "__main__":
    main()
