# ring: see src/ring.h
