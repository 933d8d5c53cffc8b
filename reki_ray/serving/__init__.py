"""Room 7, serve: the published version behind HTTP, measured and checked."""
