/* The hot loops compiled with -mavx2; empty where the compiler does not target x86-64. */
#if defined(__x86_64__)
#if !defined(__AVX2__)
#error "compile this file with -mavx2"
#endif
#include "loops_body.h"

const struct mkv_loops mkv_loops_avx2 = MKV_LOOPS_TABLE("avx2");
#endif
typedef int mkv_sums_avx2_not_empty; /* ISO C wants a declaration in every file */
