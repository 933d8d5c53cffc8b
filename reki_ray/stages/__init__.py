"""The stages of the pipeline: one module each, thin wiring of the rooms on Ray."""
