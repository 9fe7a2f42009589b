"""What inference engines plug in. Nothing of an engine is imported before the engine asks for it.

`keys.py` names blocks, `blocks.py` describes them, so that any engine shares with any other that
has the same bytes; `docs/keys.md` has both byte by byte. `reasons.py` counts why requests missed.
"""
