"""The kinds of sources, one a file; `mmdit.clips.source` opens them all."""
