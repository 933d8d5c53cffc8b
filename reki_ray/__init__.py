"""reki-ray: an LLM's open-world knowledge for any recommendation model, asked offline on Ray."""

__version__ = "0.1.0"
