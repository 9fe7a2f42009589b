# lanes: see src/lanes.h
