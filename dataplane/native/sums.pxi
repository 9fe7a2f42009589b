# sums: see src/sums.h
