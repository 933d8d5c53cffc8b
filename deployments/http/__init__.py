"""The HTTP interface: endpoints, schemas, errors."""
