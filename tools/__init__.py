"""One program a verb."""
