# lanes: byte streams (src/stream.h) and payload lanes (src/lane.h).

include "stream.pxi"
