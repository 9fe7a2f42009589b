"""The data protocol, sans-I/O: frames, bodies, sessions and tickets. See docs/wire-protocol.md.

Import from the modules: `frame` (headers and the incremental reader), `items` (GET, GET_RANGES,
PUT), `messages` (the control operations), `hints`, `session` and `client_session`, `ticket`.
"""
