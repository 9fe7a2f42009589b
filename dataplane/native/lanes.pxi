# lanes: byte streams (src/stream.h), the short way of a GET (src/single.h), and jobs with the lanes
# that run them (src/lane.h).
include "stream.pxi"
include "single.pxi"
include "jobs.pxi"
include "groups.pxi"
