"""How good clips are: a probe that reads attributes from them, and the scores made of its readings."""
