# lanes: byte streams (src/stream.h), and jobs and the lanes that run them (src/lane.h).

include "stream.pxi"
include "jobs.pxi"
include "groups.pxi"
