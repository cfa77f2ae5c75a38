"""Finding, checking and decoding source videos; the made fashion clips."""
