# index: see src/index.h
