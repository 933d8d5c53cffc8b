"""What every room builds on: workspace, tables, files, progress, and the Ray cluster of a run."""
